#include "backend/cuda/self_check.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>

#include "backend/cuda_error.h"
#include "base/check.h"
#include "base/log.h"
#include "base/paths.h"
#include "deepinfer/version.h"

namespace deepinfer::cuda {
namespace {

namespace json = boost::json;

constexpr std::string_view kRight = "right";
constexpr std::string_view kRunning = "running, process ";
constexpr size_t kMostBytes = 64 << 10;  // of the file

// A program that was built again has another size or time.
std::string build_id() {
  struct stat s{};
  if (::stat(own_file().c_str(), &s) != 0) return version();
  return fmt::format("{} {} {}.{:09}", version(), s.st_size, s.st_mtim.tv_sec, s.st_mtim.tv_nsec);
}

std::filesystem::path file_of(const Gpu& gpu, const std::filesystem::path& folder) {
  std::string card;
  for (const char c : gpu.facts().name) card += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '-';
  return folder / fmt::format("gpu-check-{}.json", card);
}

// The verdicts by key; those of another build, card or driver count as none.
class Verdicts {
 public:
  Verdicts(const Gpu& gpu, std::filesystem::path file) : file_(std::move(file)) {
    const GpuFacts& f = gpu.facts();
    head_["build"] = build_id();
    head_["card"] =
        fmt::format("{}, compute capability {}, {} multiprocessors", f.name, f.capability, f.multiprocessors);
    head_["driver"] = f.driver;
    read();
  }

  std::optional<std::string> find(const std::string& key) const {
    const json::value* v = paths_.if_contains(key);
    if (v == nullptr || !v->is_string()) return std::nullopt;
    return std::string(v->get_string());
  }

  void set(const std::string& key, std::string_view verdict) {
    paths_[key] = verdict;
    write();
  }
  void forget(const std::string& key) {
    paths_.erase(key);
    write();
  }

 private:
  // A file that cannot be written now is written at another start, if it then can.
  void write() const {
    json::object whole = head_;
    whole["paths"] = paths_;
    std::error_code ignored;
    std::filesystem::create_directories(file_.parent_path(), ignored);
    const std::filesystem::path fresh = file_.string() + fmt::format(".{}", ::getpid());
    std::ofstream out(fresh, std::ios::binary | std::ios::trunc);
    out << json::serialize(whole) << '\n';
    out.close();
    if (out) std::filesystem::rename(fresh, file_, ignored);
    if (!out || ignored) std::filesystem::remove(fresh, ignored);
  }

  void read() {
    std::ifstream in(file_, std::ios::binary);
    std::string text(kMostBytes, '\0');
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(in.gcount()));
    boost::system::error_code error;
    const json::value whole = json::parse(text, error);
    if (error || !whole.is_object()) return;
    for (const auto& [name, value] : head_) {
      const json::value* found = whole.get_object().if_contains(name);
      if (found == nullptr || *found != value) return;
    }
    const json::value* paths = whole.get_object().if_contains("paths");
    if (paths != nullptr && paths->is_object()) paths_ = paths->get_object();
  }

  std::filesystem::path file_;
  json::object head_, paths_;
};

// A check that another process is at just now says nothing about the path.
bool is_running_elsewhere(std::string_view verdict) {
  int pid = 0;
  std::istringstream(std::string(verdict.substr(kRunning.size()))) >> pid;
  return pid > 0 && pid != ::getpid() && (::kill(pid, 0) == 0 || errno == EPERM);
}

double norm(const float* values, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
  return std::sqrt(sum);
}

// Empty when the path is right, else what is wrong. An error when it could not be found out. Throws what the
// path throws.
Result<std::string> run_check(Gpu& gpu, const PathCheck& check) {
  DI_ASSIGN(const std::vector<Comparison> cases, check.run(gpu));
  for (const Comparison& c : cases) {
    const std::string wrong = difference(c);
    if (!wrong.empty()) return "disagreed with the plain kernel: " + wrong;
  }
  return std::string();
}

// As run_check, with what it throws.
Result<std::string> find_fault(Gpu& gpu, const PathCheck& check, Verdicts& verdicts) {
  try {
    return run_check(gpu, check);
  } catch (const std::bad_alloc& e) {
    return make_error(ErrorCode::kMemory, "{}", e.what());
  } catch (const CudaError& e) {
    std::string wrong = fmt::format("failed: {}", e.what());
    if (!e.sticky()) return wrong;
    verdicts.set(check.key, wrong);
    throw CudaError(fmt::format("GPU {} ({}): the self-check of {} {}: start again, it is off from now on",
                                gpu.facts().index, gpu.facts().name, check.name, wrong),
                    e.code(), true);
  } catch (const std::exception& e) {
    return fmt::format("failed: {}", e.what());
  }
}

}  // namespace

std::string difference(const Comparison& c) {
  if (c.fast.size() != c.plain.size())
    return fmt::format("{}: {} values, expected {}", c.shape, c.fast.size(), c.plain.size());
  std::vector<float> delta(c.row);
  for (size_t at = 0; at + c.row <= c.plain.size(); at += c.row) {
    for (size_t i = 0; i < c.row; ++i) delta[i] = c.fast[at + i] - c.plain[at + i];
    const double error = norm(delta.data(), c.row), most = c.bound * norm(c.plain.data() + at, c.row);
    // Written so that NaN is wrong.
    if (!(error <= most))
      return fmt::format("{}: row {} is off by {:.3g}, expected at most {:.3g}", c.shape, at / c.row, error,
                         most);
  }
  return {};
}

void self_check(Gpu& gpu, const std::vector<PathCheck>& checks, const std::filesystem::path& folder) {
  const std::filesystem::path file = file_of(gpu, folder);
  Verdicts verdicts(gpu, file);
  auto off = [&](const PathCheck& check, std::string_view why) {
    gpu.fast.*check.flag = false;
    log::warn(
        "GPU {} ({}): {} is switched off and a slower kernel serves: in the self-check it {} "
        "(delete {} to check it again)",
        gpu.facts().index, gpu.facts().name, check.name, why, file.string());
  };
  const auto start = std::chrono::steady_clock::now();
  std::string checked;
  for (const PathCheck& check : checks) {
    if (!(gpu.fast.*check.flag)) continue;
    const std::optional<std::string> known = verdicts.find(check.key);
    if (known == kRight) continue;
    const bool running = known && known->starts_with(kRunning);
    if (known && !(running && is_running_elsewhere(*known))) {
      off(check, running ? "did not come to an end the last time" : std::string_view(*known));
      continue;
    }
    verdicts.set(check.key, fmt::format("{}{}", kRunning, ::getpid()));
    const Result<std::string> wrong = find_fault(gpu, check, verdicts);
    if (!wrong) {
      verdicts.forget(check.key);
      off(check, "could not be run: " + wrong.error().message);
      continue;
    }
    verdicts.set(check.key, wrong->empty() ? kRight : std::string_view(*wrong));
    if (!wrong->empty()) off(check, *wrong);
    checked += (checked.empty() ? "" : ", ") + check.key;
  }
  if (checked.empty()) return;
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  log::info("GPU {} ({}): self-check of {} took {:.0f} ms", gpu.facts().index, gpu.facts().name, checked,
            took.count());
}

}  // namespace deepinfer::cuda
