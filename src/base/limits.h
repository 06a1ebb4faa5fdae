// What this process may use of the machine: fewer threads and less memory than the machine has, in a
// container, under taskset or with hyperthreads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

namespace deepinfer {

struct MachineLimits {
  int threads = 1;           // min(affinity, ceil(quota), cores), at least 1
  int64_t memory_bytes = 0;  // the least memory limit of the cgroups above this process, at most the RAM

  // Where they come from.
  int affinity = 0;       // CPUs that this process may run on
  int cores = 0;          // physical cores among them
  double quota = 0;       // CPUs' worth of time (cgroup v1 or v2); 0: no quota
  int64_t ram_bytes = 0;  // of the machine; 0: the system does not say
};

// Of this process now. Reads a few small files; what is missing or broken counts as no limit.
MachineLimits machine_limits();

// The same of another root folder (/proc, /sys) and list of allowed CPUs, for tests.
MachineLimits machine_limits(const std::filesystem::path& root, const std::vector<int>& cpus);

// The CPUs of this process's affinity mask.
std::vector<int> allowed_cpus();

// The calling thread's share of a busy CPU becomes about a tenth of another's (nice 10): for work that must
// not delay who waits for the next token.
void let_others_first();

// The calling thread gets what others leave of a busy CPU (SCHED_IDLE), and leaves it the moment another
// wakes.
void use_idle_time();

// The calling thread, when it wakes, need not wait for another's turn of some milliseconds to end: it asks
// for turns of 0.1 ms, and the system puts who asks for less first (Linux 6.12 and newer; nothing changes on
// older ones). For threads that wait for each other many times in a step. Its share stays the same.
void ask_for_short_turns();

// The folders of this process's cgroup and of all above it that can be seen, of version 2 or of a controller
// ("cpu", "memory") of version 1.
std::vector<std::filesystem::path> cgroup_folders(const std::filesystem::path& root, bool v2,
                                                  std::string_view controller);

}  // namespace deepinfer
