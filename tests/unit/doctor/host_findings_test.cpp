// Each finding about CPU, memory and limits, on a machine that the test makes up in a folder.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "doctor/host.h"
#include "findings.h"

namespace deepinfer::doctor {
namespace {

namespace fs = std::filesystem;

class HostTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("host-" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& name, const std::string& text) {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }
  void cpu(int n, const std::string& file, const std::string& text) {
    write("sys/devices/system/cpu/cpu" + std::to_string(n) + "/" + file, text);
  }
  // A cgroup of version 2 named /box.
  void box(const std::string& file, const std::string& text) {
    write("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    write("proc/self/cgroup", "0::/box\n");
    write("sys/fs/cgroup/box/" + file, text);
  }
  void memory(int64_t total_mib, int64_t available_mib) {
    write("proc/meminfo", "MemTotal: " + std::to_string(total_mib * 1024) +
                              " kB\nMemFree: 1 kB\nMemAvailable:   " + std::to_string(available_mib * 1024) +
                              " kB\n");
  }
  Host host(int cpus = 4) const {
    Host out{root_, {}};
    for (int i = 0; i < cpus; ++i) out.cpus.push_back(i);
    return out;
  }

  fs::path root_;
};

constexpr int64_t kMiB = 1 << 20;

TEST_F(HostTest, NothingIsKnownOfAnEmptyMachine) {
  for (const Finding& f : {check_threads(host(), 0), check_throttling(host()), check_load(host()),
                           check_governor(host()), check_huge_pages(host()), check_memory(host(), kMiB),
                           check_open_files(host(), 4096), check_locked_memory(host())})
    expect(f, Level::kOk, "");
}

TEST_F(HostTest, InstructionSet) {
  write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Example 9000\nflags\t: avx2\n");
  expect(check_instruction_set(host(), "avx512", {}), Level::kOk, "Example 9000, avx512 kernels");
  expect(check_instruction_set(host(), "portable", {}), Level::kWarning, "no AVX2");
  expect(check_instruction_set(host(), "avx2", "avx2"), Level::kWarning, "is set to avx2",
         "unset DEEPINFER_CPU_ISA");
}

TEST_F(HostTest, ThreadsQuotaAndHyperthreads) {
  for (int i = 0; i < 4; ++i) cpu(i, "topology/core_cpus_list", i < 2 ? "0-1" : "2-3");
  expect(check_threads(host(), 0), Level::kOk, "2 of 4 CPUs, which are 2 cores");
  expect(check_threads(host(), 4), Level::kWarning, "cpu.threads is 4", "--threads 2");
  box("cpu.max", "150000 100000");
  expect(check_threads(host(), 0), Level::kWarning, "quota of 1.50 CPUs",
         "docker update --cpus 2 CONTAINER, or --threads 1");
  box("cpu.max", "200000 100000");
  expect(check_threads(host(), 0), Level::kOk, "quota of 2.00");
  box("cpu.max", "max 100000");
  expect(check_threads(host(), 2), Level::kOk, "2 cores");
}

TEST_F(HostTest, Throttling) {
  box("cpu.stat", "usage_usec 5\nnr_periods 1000\nnr_throttled 5\n");
  expect(check_throttling(host()), Level::kOk, "not throttled");
  box("cpu.stat", "nr_periods 1000\nnr_throttled 420\nthrottled_usec 9\n");
  expect(check_throttling(host()), Level::kWarning, "throttled in 42% of its periods",
         "docker update --cpus 4");
}

TEST_F(HostTest, Load) {
  write("proc/loadavg", "0.40 0.1 0.1 1/2 3\n");
  expect(check_load(host()), Level::kOk, "0.40 of 4");
  write("proc/loadavg", "3.20 0.1 0.1 1/2 3\n");
  expect(check_load(host()), Level::kWarning, "3.20 threads", "top -o %CPU");
}

TEST_F(HostTest, Governor) {
  expect(check_governor(host()), Level::kOk, "none here");
  for (int i = 0; i < 4; ++i) cpu(i, "cpufreq/scaling_governor", "performance\n");
  expect(check_governor(host()), Level::kOk, "performance");
  cpu(3, "cpufreq/scaling_governor", "powersave\n");
  expect(check_governor(host()), Level::kWarning, "powersave on 1 of 4", "scaling_governor");
  expect(check_governor(host(3)), Level::kOk, "performance");  // of the CPUs that it may use
  cpu(3, "cpufreq/energy_performance_preference", "balance_performance\n");
  expect(check_governor(host()), Level::kOk, "");
  cpu(3, "cpufreq/energy_performance_preference", "power\n");
  expect(check_governor(host()), Level::kWarning, "powersave, preference power");
}

TEST_F(HostTest, HugePages) {
  const char* file = "sys/kernel/mm/transparent_hugepage/enabled";
  write(file, "always [madvise] never\n");
  expect(check_huge_pages(host()), Level::kOk, "madvise");
  write(file, "always madvise [never]\n");
  expect(check_huge_pages(host()), Level::kWarning, "4 KiB", "echo madvise | sudo tee /sys/kernel/mm");
  write(file, "broken ] [");
  expect(check_huge_pages(host()), Level::kOk, "unknown");
}

TEST_F(HostTest, Memory) {
  memory(16384, 8000);
  expect(check_memory(host(), 0), Level::kOk, "7.8 GiB free of 16.0 GiB");
  expect(check_memory(host(), 4000 * kMiB), Level::kOk, "takes about 3.9 GiB");
  expect(check_memory(host(), 9000 * kMiB), Level::kWarning, "only when other programs end",
         "--quantization int4");
  expect(check_memory(host(), 20000 * kMiB), Level::kProblem, "does not fit", "--quantization int4");
}

TEST_F(HostTest, MemoryOfACgroup) {
  memory(16384, 8000);
  box("memory.max", std::to_string(4096 * kMiB));
  box("memory.current", std::to_string(3000 * kMiB));
  box("memory.stat", "anon 5\nfile 7\ninactive_file " + std::to_string(2000 * kMiB) + "\n");
  expect(check_memory(host(), 0), Level::kOk, "3.0 GiB free of 16.0 GiB, of which the cgroup allows 4.0 GiB");
  expect(check_memory(host(), 3500 * kMiB), Level::kWarning, "");
  expect(check_memory(host(), 5000 * kMiB), Level::kProblem, "");
}

TEST_F(HostTest, OpenFiles) {
  const char* file = "proc/self/limits";
  write(file,
        "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288         "
        "      files\n");
  expect(check_open_files(host(), 4096), Level::kOk, "up to 524288");
  write(file, "Max open files            1024                 4096                 files\n");
  expect(check_open_files(host(), 4096), Level::kWarning, "needs 4160", "--max-connections 4032");
  write(file, "Max open files            unlimited            unlimited            files\n");
  expect(check_open_files(host(), 4096), Level::kOk, "no limit");
  write(file, "Max open files            many\n");
  expect(check_open_files(host(), 4096), Level::kOk, "unknown");
}

TEST_F(HostTest, LockedMemory) {
  write("proc/self/limits", "Max locked memory         8388608              8388608              bytes\n");
  expect(check_locked_memory(host()), Level::kOk, "8 MiB");
  fs::create_directories(root_ / "sys/class/infiniband");
  expect(check_locked_memory(host()), Level::kWarning, "InfiniBand", "ulimit -l unlimited");
}

TEST_F(HostTest, TheRealMachineIsUnderstood) {
  const Host real = this_host();
  EXPECT_FALSE(real.cpus.empty());
  EXPECT_THAT(check_memory(real, 0).text, testing::HasSubstr("free of"));
  EXPECT_THAT(check_load(real).text, testing::Not(testing::HasSubstr("unknown")));
}

}  // namespace
}  // namespace deepinfer::doctor
