#include "doctor/host.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <utility>

#include "base/limits.h"

namespace deepinfer::doctor {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
constexpr size_t kMaxFile = 4 << 20;
constexpr double kBusy = 0.25;       // of the threads, taken by other work
constexpr double kThrottled = 0.02;  // of the periods
constexpr int kOtherFiles = 64;      // beside connections

// Empty when it cannot be read.
std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text(kMaxFile, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(in.gcount(), 0)));
  return text;
}

std::string word(const fs::path& path) {
  std::istringstream in(read(path));
  std::string out;
  in >> out;
  return out;
}

// The first number after `name` in a file of names with values.
std::optional<int64_t> value_of(const std::string& text, std::string_view name) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name)) continue;
    std::istringstream rest(line.substr(name.size()));
    int64_t value = 0;
    if (rest >> value) return value;
  }
  return {};
}

std::optional<int64_t> number(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end != text.data() ? std::optional(value) : std::nullopt;
}

fs::path cpu_folder(const Host& host, int cpu) {
  return host.root / "sys/devices/system/cpu" / fmt::format("cpu{}", cpu);
}

std::string cpu_name(const Host& host) {
  std::istringstream lines(read(host.root / "proc/cpuinfo"));
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU of unknown name";
}

// The least room that a cgroup above this process leaves, without what it would give up (its page cache).
int64_t cgroup_room(const Host& host) {
  int64_t room = kNoLimit;
  for (const bool v2 : {false, true})
    for (const fs::path& folder : cgroup_folders(host.root, v2, "memory")) {
      const auto limit = number(read(folder / (v2 ? "memory.max" : "memory.limit_in_bytes")));
      const auto used = number(read(folder / (v2 ? "memory.current" : "memory.usage_in_bytes")));
      if (!limit || !used) continue;
      const std::string stat = read(folder / "memory.stat");
      const int64_t cache = value_of(stat, v2 ? "inactive_file " : "total_inactive_file ").value_or(0);
      room = std::min(room, std::max<int64_t>(*limit - std::max<int64_t>(*used - cache, 0), 0));
    }
  return room;
}

// Soft and hard limit of this process; kNoLimit for none.
std::optional<std::pair<int64_t, int64_t>> process_limit(const Host& host, std::string_view name) {
  std::istringstream lines(read(host.root / "proc/self/limits"));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name)) continue;
    std::istringstream rest(line.substr(name.size()));
    std::string soft, hard;
    if (!(rest >> soft >> hard)) return {};
    const auto value = [](const std::string& text) {
      return text == "unlimited" ? std::optional(kNoLimit) : number(text);
    };
    const auto low = value(soft), high = value(hard);
    if (!low || !high) return {};
    return std::pair(*low, *high);
  }
  return {};
}

}  // namespace

Host this_host() {
  return {"/", allowed_cpus()};
}

Finding check_instruction_set(const Host& host, std::string_view kernels,
                              const std::optional<std::string>& forced) {
  const char* topic = "CPU";
  const std::string what = fmt::format("{}, {} kernels", cpu_name(host), kernels);
  if (forced)
    return warning(
        topic,
        fmt::format("{}, because DEEPINFER_CPU_ISA is set to {}: a test's setting, which keeps faster "
                    "kernels from being chosen",
                    what, *forced),
        "unset DEEPINFER_CPU_ISA");
  if (kernels != "portable") return ok(topic, what);
  return warning(topic,
                 what +
                     ": this processor has no AVX2 (or its hypervisor hides it), so models run several "
                     "times slower than on one that has");
}

Finding check_threads(const Host& host, int threads) {
  const char* topic = "CPU threads";
  const MachineLimits limits = machine_limits(host.root, host.cpus);
  std::string what =
      fmt::format("{} of {} CPUs, which are {} cores", limits.threads, limits.affinity, limits.cores);
  if (limits.quota > 0) what += fmt::format(", with a quota of {:.2f} CPUs", limits.quota);
  if (threads > limits.threads)
    return warning(
        topic,
        fmt::format("cpu.threads is {}, but this process may use {}: threads that wait for each other "
                    "and share a core are slower than fewer threads",
                    threads, what),
        fmt::format("leave cpu.threads out, or --threads {}", limits.threads));
  if (limits.quota > 0 && limits.quota < limits.threads)
    return warning(
        topic,
        fmt::format("{}: the threads use up the quota before each period is over, and then all of them "
                    "stand still",
                    what),
        fmt::format("docker update --cpus {} CONTAINER, or --threads {}", limits.threads,
                    std::max(1, static_cast<int>(limits.quota))));
  return ok(topic, what);
}

Finding check_throttling(const Host& host) {
  const char* topic = "CPU quota";
  for (const bool v2 : {true, false})
    for (const fs::path& folder : cgroup_folders(host.root, v2, "cpu")) {
      const std::string stat = read(folder / "cpu.stat");
      const auto periods = value_of(stat, "nr_periods "), throttled = value_of(stat, "nr_throttled ");
      if (!periods || !throttled || *periods <= 0) continue;
      const double share = static_cast<double>(*throttled) / static_cast<double>(*periods);
      if (share > kThrottled)
        return warning(
            topic,
            fmt::format("the cgroup was throttled in {:.0f}% of its periods: answers stop for up to 0.1 s "
                        "at a time",
                        100 * share),
            fmt::format("docker update --cpus {} CONTAINER (Kubernetes: resources.limits.cpu)",
                        std::max<size_t>(host.cpus.size(), 1)));
    }
  return ok(topic, "not throttled");
}

Finding check_load(const Host& host) {
  const char* topic = "CPU load";
  std::istringstream in(read(host.root / "proc/loadavg"));
  double load = 0;
  if (!(in >> load)) return ok(topic, "unknown: there is no /proc/loadavg");
  const MachineLimits limits = machine_limits(host.root, host.cpus);
  if (load <= kBusy * limits.threads) return ok(topic, fmt::format("{:.2f} of {}", load, limits.threads));
  return warning(
      topic,
      fmt::format("{:.2f} threads of other programs want to run on the {} that a model would use: each "
                  "step waits for the slowest thread",
                  load, limits.threads),
      "top -o %CPU");
}

Finding check_governor(const Host& host) {
  const char* topic = "CPU governor";
  int known = 0, slow = 0;
  std::string name;
  for (const int cpu : host.cpus) {
    const fs::path folder = cpu_folder(host, cpu) / "cpufreq";
    const std::string governor = word(folder / "scaling_governor");
    if (governor.empty()) continue;
    ++known;
    // Of drivers that choose the clock themselves, "powersave" is the usual one; their preference decides.
    const std::string preference = word(folder / "energy_performance_preference");
    const bool lazy = preference.empty() ? governor != "performance" && governor != "schedutil"
                                         : preference == "power" || preference == "balance_power";
    if (!lazy) continue;
    ++slow;
    name = preference.empty() ? governor : governor + ", preference " + preference;
  }
  if (known == 0) return ok(topic, "none here: a hypervisor or the firmware chooses the clock");
  if (slow == 0)
    return ok(topic,
              fmt::format("{}", word(cpu_folder(host, host.cpus.front()) / "cpufreq/scaling_governor")));
  return warning(
      topic,
      fmt::format("{} on {} of {} CPUs: the clock stays low, or rises late at each step", name, slow, known),
      "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor");
}

Finding check_huge_pages(const Host& host) {
  const char* topic = "Huge pages";
  const std::string text = read(host.root / "sys/kernel/mm/transparent_hugepage/enabled");
  const size_t open = text.find('['), close = text.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open)
    return ok(topic, "unknown: this kernel has no transparent huge pages");
  const std::string mode = text.substr(open + 1, close - open - 1);
  if (mode != "never") return ok(topic, mode + ": weights lie in pages of 2 MiB");
  return warning(
      topic, "never: weights lie in pages of 4 KiB, and looking these up takes time in every step on a CPU",
      "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled");
}

Finding check_memory(const Host& host, int64_t needed) {
  const char* topic = "Memory";
  const std::string info = read(host.root / "proc/meminfo");
  const auto available_kib = value_of(info, "MemAvailable:");
  if (!available_kib) return ok(topic, "unknown: there is no /proc/meminfo");
  const MachineLimits limits = machine_limits(host.root, host.cpus);
  const int64_t room = cgroup_room(host);
  const int64_t free = std::min(*available_kib * 1024, room);
  std::string what = fmt::format("{} free of {}", size_text(free), size_text(limits.ram_bytes));
  if (limits.memory_bytes < limits.ram_bytes)
    what += fmt::format(", of which the cgroup allows {}", size_text(limits.memory_bytes));
  if (needed == 0) return ok(topic, what);
  what += fmt::format("; the model takes about {}", size_text(needed));
  const char* smaller =
      "--quantization int4 (or a smaller GGUF file), --max-model-len, --kv-cache-memory-bytes make it "
      "smaller";
  if (needed > limits.memory_bytes) return problem(topic, what + ": it does not fit", smaller);
  if (needed <= free) return ok(topic, what);
  return warning(topic,
                 what + ": it fits only when other programs end; else the kernel swaps, or ends a process",
                 fmt::format("{}, or end what holds memory: ps aux --sort -rss | head", smaller));
}

Finding check_open_files(const Host& host, int max_connections) {
  const char* topic = "Open files";
  const auto limit = process_limit(host, "Max open files");
  if (!limit) return ok(topic, "unknown: there is no /proc/self/limits");
  const int64_t needed = int64_t{max_connections} + kOtherFiles;
  if (limit->second >= needed)
    return ok(topic, limit->second == kNoLimit
                         ? "no limit"
                         : fmt::format("up to {}: the server raises its limit itself", limit->second));
  return warning(
      topic,
      fmt::format("at most {}, but server.max_connections {} needs {}: connections above it are refused",
                  limit->second, max_connections, needed),
      fmt::format("ulimit -Hn {0} as root (systemd: LimitNOFILE={0}), or --max-connections {1}", needed,
                  std::max<int64_t>(limit->second - kOtherFiles, 1)));
}

Finding check_locked_memory(const Host& host) {
  const char* topic = "Locked memory";
  const auto limit = process_limit(host, "Max locked memory");
  if (!limit) return ok(topic, "unknown: there is no /proc/self/limits");
  const std::string what = limit->first == kNoLimit ? "no limit" : size_text(limit->first);
  std::error_code ignored;
  if (limit->first == kNoLimit || !fs::exists(host.root / "sys/class/infiniband", ignored))
    return ok(topic, what);
  return warning(topic, what + ": InfiniBand registers memory of GPUs, and NCCL fails when it may not",
                 "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity; docker run --ulimit memlock=-1)");
}

}  // namespace deepinfer::doctor
