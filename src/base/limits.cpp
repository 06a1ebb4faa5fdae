#include "base/limits.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>

namespace deepinfer {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFile = size_t{4} << 20;

// Empty when it cannot be read.
std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text;
  char part[4096];
  while (text.size() < kMaxFile && (in.read(part, sizeof part) || in.gcount() > 0))
    text.append(part, static_cast<size_t>(in.gcount()));
  return text;
}

std::optional<int64_t> to_int(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end == text.data()) return std::nullopt;
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> out;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    out.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

bool has_word(std::string_view list, std::string_view word) {
  const auto words = split(list, ',');
  return std::find(words.begin(), words.end(), word) != words.end();
}

// mountinfo writes blanks and backslashes as three octal digits.
std::string unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto octal = [&](size_t j) { return j < text.size() && text[j] >= '0' && text[j] <= '7'; };
    if (text[i] == '\\' && octal(i + 1) && octal(i + 2) && octal(i + 3)) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

struct Mount {
  std::string root;   // the cgroup that is mounted
  std::string point;  // where
};

// "36 35 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct"
std::optional<Mount> find_mount(const std::string& mountinfo, bool v2, std::string_view controller) {
  for (std::string_view line : split(mountinfo, '\n')) {
    const auto fields = split(line, ' ');
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    if (fields.size() < 6 || fields.end() - dash < 4) continue;
    const std::string_view type = dash[1];
    if (v2 ? type == "cgroup2" : type == "cgroup" && has_word(dash[3], controller))
      return Mount{unescape(fields[3]), unescape(fields[4])};
  }
  return std::nullopt;
}

// "4:memory:/a/b" of v1, "0::/a/b" of v2
std::optional<std::string> own_cgroup(const std::string& cgroups, bool v2, std::string_view controller) {
  for (std::string_view line : split(cgroups, '\n')) {
    const size_t first = line.find(':');
    const size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    if (v2 ? controllers.empty() : has_word(controllers, controller))
      return std::string(line.substr(second + 1));
  }
  return std::nullopt;
}

}  // namespace

std::vector<fs::path> cgroup_folders(const fs::path& root, bool v2, std::string_view controller) {
  const auto mount = find_mount(read_file(root / "proc/self/mountinfo"), v2, controller);
  const auto own = own_cgroup(read_file(root / "proc/self/cgroup"), v2, controller);
  if (!mount || !own) return {};
  const fs::path top = root / fs::path(mount->point).relative_path();
  // A container often sees its own cgroup as the mount's root, while the name is the host's.
  fs::path below = fs::path(*own).relative_path();
  if (mount->root != "/") {
    const fs::path relative = fs::path(*own).lexically_relative(mount->root);
    below = relative.empty() || *relative.begin() == ".." || relative == "." ? fs::path() : relative;
  }
  std::vector<fs::path> out;
  std::error_code ec;
  const bool outside = std::find(below.begin(), below.end(), "..") != below.end();
  if (!outside && fs::is_directory(top / below, ec))
    for (fs::path p = below; !p.empty(); p = p.parent_path()) out.push_back(top / p);
  out.push_back(top);
  return out;
}

namespace {

std::optional<double> quota_of(const fs::path& folder, bool v2) {
  std::optional<int64_t> quota, period;
  if (v2) {
    const std::string text = read_file(folder / "cpu.max");  // "150000 100000" or "max 100000"
    const auto fields = split(text, ' ');
    if (fields.size() != 2) return std::nullopt;
    quota = to_int(fields[0]);
    period = to_int(fields[1]);
  } else {
    quota = to_int(read_file(folder / "cpu.cfs_quota_us"));  // -1: none
    period = to_int(read_file(folder / "cpu.cfs_period_us"));
  }
  if (!quota || !period || *quota <= 0 || *period <= 0) return std::nullopt;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

double cpu_quota(const fs::path& root) {
  double least = 0;
  for (const bool v2 : {false, true}) {
    for (const fs::path& folder : cgroup_folders(root, v2, "cpu")) {
      const auto quota = quota_of(folder, v2);
      if (quota && (least == 0 || *quota < least)) least = *quota;
    }
  }
  return least;
}

int64_t memory_limit(const fs::path& root) {
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const bool v2 : {false, true}) {
    for (const fs::path& folder : cgroup_folders(root, v2, "memory")) {
      const auto limit = to_int(read_file(folder / (v2 ? "memory.max" : "memory.limit_in_bytes")));
      if (limit && *limit > 0) least = std::min(least, *limit);
    }
  }
  return least;
}

int64_t ram(const fs::path& root) {
  const std::string text = read_file(root / "proc/meminfo");
  constexpr std::string_view kName = "MemTotal:";
  const size_t at = text.find(kName);
  if (at == std::string::npos) return 0;
  std::istringstream in(text.substr(at + kName.size()));
  int64_t kib = 0;
  in >> kib;
  return kib > 0 && kib < std::numeric_limits<int64_t>::max() / 1024 ? kib * 1024 : 0;
}

// CPUs with the same list of siblings are hyperthreads of one core.
int physical_cores(const fs::path& root, const std::vector<int>& cpus) {
  std::set<std::string> cores;
  for (int cpu : cpus) {
    const fs::path topology = root / "sys/devices/system/cpu" / ("cpu" + std::to_string(cpu)) / "topology";
    std::string siblings = read_file(topology / "core_cpus_list");
    if (siblings.empty()) siblings = read_file(topology / "thread_siblings_list");
    cores.insert(siblings.empty() ? "cpu" + std::to_string(cpu) : siblings);
  }
  return static_cast<int>(cores.size());
}

}  // namespace

std::vector<int> allowed_cpus() {
  // The kernel refuses a mask that is too small for its CPUs; 2^18 is far above what it can be built for.
  for (int size = 1024; size <= 1 << 18; size *= 2) {
    std::vector<cpu_set_t> mask(static_cast<size_t>(size) / CPU_SETSIZE);
    const size_t bytes = mask.size() * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, mask.data()) != 0) continue;
    std::vector<int> out;
    for (int cpu = 0; cpu < size; ++cpu)
      if (CPU_ISSET_S(cpu, bytes, mask.data())) out.push_back(cpu);
    return out;
  }
  std::vector<int> all;
  for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_ONLN); ++cpu) all.push_back(cpu);
  return all;
}

MachineLimits machine_limits(const fs::path& root, const std::vector<int>& cpus) {
  MachineLimits out;
  out.affinity = static_cast<int>(cpus.size());
  out.cores = physical_cores(root, cpus);
  out.quota = cpu_quota(root);
  out.ram_bytes = ram(root);
  out.memory_bytes = memory_limit(root);
  if (out.ram_bytes > 0) out.memory_bytes = std::min(out.memory_bytes, out.ram_bytes);
  double threads = std::min(out.affinity, out.cores);
  if (out.quota > 0) threads = std::min(threads, std::ceil(out.quota));
  out.threads = std::max(1, static_cast<int>(threads));
  return out;
}

MachineLimits machine_limits() {
  return machine_limits("/", allowed_cpus());
}

void let_others_first() {
  setpriority(PRIO_PROCESS, 0, 10);  // on Linux 0 is this thread alone
}

void use_idle_time() {
  const sched_param none{};
  sched_setscheduler(0, SCHED_IDLE, &none);
}

void ask_for_short_turns() {
  struct {  // struct sched_attr, which C libraries of before 2024 do not declare
    uint32_t size = sizeof *this;
    uint32_t policy = SCHED_OTHER;
    uint64_t flags = 0;
    int32_t nice = getpriority(PRIO_PROCESS, 0);
    uint32_t priority = 0;
    uint64_t runtime = 100'000;  // ns, the shortest that is granted
    uint64_t deadline = 0, period = 0;
  } attr;
  if (sched_getscheduler(0) == SCHED_OTHER) syscall(SYS_sched_setattr, 0, &attr, 0);
}

}  // namespace deepinfer
