// deepinfer serve on an emulated GPU: it answers, and when a kernel breaks the device's context in mid-run,
// the request ends with an error and the program with exit code 4 and the reason. Each case is a process of
// its own.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <thread>

#include "cli/serve_command.h"
#include "emulation/emulated_gpu.h"
#include "unit/server/raw_client.h"

namespace deepinfer {
namespace {

using testing::AllOf;
using testing::HasSubstr;

int free_port() {
  const int s = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{.sin_family = AF_INET};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  const bool bound = bind(s, reinterpret_cast<sockaddr*>(&address), length) == 0 &&
                     getsockname(s, reinterpret_cast<sockaddr*>(&address), &length) == 0;
  close(s);
  return bound ? ntohs(address.sin_port) : 0;
}

Config tiny_on_gpu() {
  setenv("DEEPINFER_CUDA_LIB_DIR", FAKE_NVML_DIR, 1);
  setenv("FAKE_NVML", "driver=580.1;cuda=13000;gpu=Emulated GPU|GPU-1", 1);
  Config c;
  c.model.name = (std::filesystem::path(DI_SOURCE_DIR) / "tests/golden/tiny_llama/base").string();
  c.gpu.device = "cuda";
  c.gpu.max_num_seqs = 2;
  c.gpu.max_num_batched_tokens = 32;
  c.gpu.kv_cache_memory_bytes = 4 << 20;
  c.cpu.threads = 1;
  c.server.port = free_port();
  return c;
}

server::RawReply ask(const Config& c, const std::string& request) {
  server::RawClient client(static_cast<uint16_t>(c.server.port));
  client.send(request);
  return client.read_reply();
}

std::string completion() {
  return server::post("/v1/completions",
                      R"({"model": "base", "prompt": [5, 17, 200], "max_tokens": 8, "ignore_eos": true})");
}

// What the process writes last: the test looks for it.
void say(const char* what, const server::RawReply& reply) {
  std::fprintf(stderr, "%s: %d %s\n", what, reply.status, reply.body.c_str());
}

[[noreturn]] void serve_and_break() {
  const Config config = tiny_on_gpu();
  std::thread client([&config] {
    server::RawReply reply;
    do {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      reply = ask(config, completion());
    } while (reply.body.find("still loading") != std::string::npos);
    say("before", reply);
    emulation::fail_kernel(20);
    say("broken", ask(config, completion()));
  });
  const int code = serve_command(config);
  client.join();
  std::_Exit(code);
}

TEST(ServeOnALostDevice, EndsWithTheReasonAndCode4) {
  testing::FLAGS_gtest_death_test_style = "fast";
  EXPECT_EXIT(serve_and_break(), testing::ExitedWithCode(4),
              AllOf(HasSubstr("before: 200"), HasSubstr("broken: 503"), HasSubstr("has to be started again"),
                    HasSubstr("deepinfer: GPU 0"), HasSubstr("context is broken")));
}

}  // namespace
}  // namespace deepinfer
