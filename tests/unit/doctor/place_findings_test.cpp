// Findings about disks, ports, models and their printing.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>

#include "doctor/model.h"
#include "doctor/network.h"
#include "doctor/storage.h"
#include "findings.h"

namespace deepinfer::doctor {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using testing::HasSubstr;

class PlaceTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("place-" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const std::string& name, const std::string& text) {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name, std::ios::binary) << text;
  }

  fs::path root_;
};

TEST_F(PlaceTest, ReadSpeedIsMeasuredWithinItsBounds) {
  write("model/small.json", "{}");
  write("model/large.bin", std::string(9 << 20, 'x'));
  const auto whole = measure_read(root_ / "model", 1 << 30, 10);
  ASSERT_TRUE(whole.ok()) << whole.error().message;
  EXPECT_EQ(whole->bytes, 9 << 20);
  EXPECT_GT(whole->bytes_per_second(), 0);
  const auto part = measure_read(root_ / "model/large.bin", 1, 10);
  ASSERT_TRUE(part.ok());
  EXPECT_EQ(part->bytes, 4 << 20);
  EXPECT_LT(measure_read(root_ / "model/large.bin", 1 << 30, 0)->bytes, 9 << 20);
  EXPECT_THAT(measure_read(root_ / "none", 1, 1).error().message,
              HasSubstr("none: cannot read: No such file"));
}

TEST_F(PlaceTest, ReadSpeed) {
  const int64_t model = int64_t{16} << 30;
  expect(check_read_speed("/m", {int64_t{1} << 30, 0.5}, model), Level::kOk, "2.15 GB/s where /m lies");
  expect(check_read_speed("/m", {100'000'000, 1, false}, model), Level::kWarning, "(partly from memory)",
         "cp -r /m TO_A_LOCAL_SSD");
  expect(check_read_speed("/m", {100'000'000, 1}, 100 << 20), Level::kOk, "in 1.0 s");  // slow, and no matter
  expect(check_read_speed("/m", {}, model), Level::kOk, "unknown");
}

TEST_F(PlaceTest, FreeSpace) {
  expect(check_space("Cache", {"/c", int64_t{40} << 30}, "X_DIR"), Level::kOk, "40.0 GiB free for /c");
  expect(check_space("Cache", {"/c", int64_t{1} << 30}, "X_DIR"), Level::kWarning, "too little",
         "export X_DIR=");
  expect(check_space("Cache", {"/c", 0, false}, "X_DIR"), Level::kWarning, "cannot be written",
         "export X_DIR=");
  const Space real = space_of(root_ / "not/yet/there");
  EXPECT_GT(real.free, 0);
  EXPECT_TRUE(real.writable);
}

// A socket that listens on a free port of 127.0.0.1.
struct Listener {
  int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  int port = 0;
  Listener() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(fd, 1) != 0 ||
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
      throw std::runtime_error("cannot listen");
    port = ntohs(address.sin_port);
  }
  ~Listener() { ::close(fd); }
};

TEST_F(PlaceTest, Port) {
  Config::Server server;
  {
    const Listener listener;
    server.port = listener.port;
    const auto holder = port_holder("/", server.port);
    ASSERT_TRUE(holder);
    EXPECT_EQ(holder->pid, getpid());
    expect(check_port(server, holder), Level::kProblem, "is taken by " + holder->name, "--port ");
    expect(check_port(server, PortHolder{}), Level::kProblem, "another program");
    expect(check_port(server, PortHolder{77, "deepinfer"}), Level::kOk, "a running deepinfer's (pid 77)");
  }
  expect(check_port(server, {}), Level::kOk, "is free");
  server.host = "203.0.113.7";
  expect(check_port(server, {}), Level::kProblem, "cannot listen", "--host 127.0.0.1");
  server.host = "a.name.that.is.not.asked.for";
  expect(check_port(server, {}), Level::kOk, "looked up when the server starts");
  server.port = 0;
  expect(check_port(server, {}), Level::kOk, "any");
  server.uds = "/run/x";
  expect(check_port(server, {}), Level::kOk, "/run/x");
}

TEST_F(PlaceTest, WhoHasAPort) {
  write(
      "proc/net/tcp",
      "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
      "   0: 0100007F:1F40 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 11 1 0\n"
      "   1: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0\n"
      "broken\n");
  EXPECT_FALSE(port_holder(root_, 8001));
  const auto hidden = port_holder(root_, 8000);
  ASSERT_TRUE(hidden);
  EXPECT_EQ(hidden->pid, 0);
  write("proc/31/comm", "nginx\n");
  fs::create_directories(root_ / "proc/31/fd");
  fs::create_symlink("socket:[4242]", root_ / "proc/31/fd/7");
  const auto known = port_holder(root_, 8000);
  ASSERT_TRUE(known);
  EXPECT_EQ(known->pid, 31);
  EXPECT_EQ(known->name, "nginx");
}

TEST_F(PlaceTest, Exposure) {
  Config::Server server;
  expect(check_exposure(server), Level::kOk, "this machine only");
  server.host = "0.0.0.0";
  expect(check_exposure(server), Level::kWarning, "without server.api_key", "--api-key-file");
  server.api_key_file = "keys";
  expect(check_exposure(server), Level::kOk, "has a key");
}

TEST_F(PlaceTest, Model) {
  hub::Settings hub;
  hub.cache = root_ / "hub";
  Config config;
  const auto finding = [&](const std::string& name) {
    config.model.name = name;
    return check_model(config, hub).finding;
  };
  expect(finding("/nowhere/x.gguf"), Level::kProblem, "no such file or folder", "deepinfer list");
  expect(finding("org/name:Q4_0"), Level::kWarning, "not on this machine", "deepinfer pull org/name:Q4_0");
  hub.offline = true;
  expect(finding("org/name"), Level::kProblem, "HF_HUB_OFFLINE", "unset");
  write("broken.gguf", "GGUF and no more");
  expect(finding((root_ / "broken.gguf").string()), Level::kProblem, "broken.gguf");
  setenv("DEEPINFER_CACHE_DIR", root_.c_str(), 1);
  expect(finding(""), Level::kWarning, "no model is named", "fetch_default_model.sh");
}

TEST_F(PlaceTest, NeededMemory) {
  Config config;
  EXPECT_GT(memory_needed(config, 1 << 30), (int64_t{1} << 30) + (int64_t{512} << 20));
  config.gpu.kv_cache_memory_bytes = int64_t{4} << 30;
  EXPECT_GT(memory_needed(config, 1 << 30), int64_t{5} << 30);
}

TEST(FindingsTest, Printed) {
  const std::vector<Finding> all = {
      ok("CPU", "good"), warning("Disk", std::string(60, 'a') + " " + std::string(60, 'b'), "mend it"),
      problem("Port \"8000\"", "taken")};
  EXPECT_EQ(findings_text(all),
            "ok       CPU          good\n"
            "warning  Disk         " +
                std::string(60, 'a') + "\n" + std::string(22, ' ') + std::string(60, 'b') + "\n" +
                std::string(22, ' ') + "-> mend it\n" +
                "problem  Port \"8000\"  taken\n1 problem, 1 warning\n");
  const json::value v = json::parse(findings_json(all));
  EXPECT_EQ(v.at("problems"), 1);
  EXPECT_EQ(v.at("warnings"), 1);
  EXPECT_EQ(v.at("findings").at(2).at("topic"), "Port \"8000\"");
  EXPECT_TRUE(v.at("findings").at(0).at("command").is_null());
  EXPECT_EQ(v.at("findings").at(1).at("level"), "warning");
}

}  // namespace
}  // namespace deepinfer::doctor
