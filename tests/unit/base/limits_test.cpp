#include "base/limits.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>
#include <limits>
#include <string>
#include <thread>

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kMiB = 1 << 20;

// A root folder with just the files that are read.
class Limits : public testing::Test {
 protected:
  Limits() : root_(fs::path(testing::TempDir()) / ("di_limits_" + std::to_string(getpid()))) {
    write("proc/meminfo", "MemTotal:       16384 kB\nMemFree:  1 kB\n");
  }
  ~Limits() override { fs::remove_all(root_); }

  void write(const std::string& name, const std::string& text) {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }
  void mount(const std::string& text) { write("proc/self/mountinfo", text); }
  void cgroup(const std::string& text) { write("proc/self/cgroup", text); }
  void v2(const std::string& own) {
    mount("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
    cgroup("0::" + own + "\n");
  }
  MachineLimits limits(const std::vector<int>& cpus = {0, 1, 2, 3, 4, 5, 6, 7}) const {
    return machine_limits(root_, cpus);
  }

  fs::path root_;
};

TEST_F(Limits, WithoutAnything) {
  const MachineLimits m = limits();
  EXPECT_EQ(m.threads, 8);
  EXPECT_EQ(m.affinity, 8);
  EXPECT_EQ(m.cores, 8);
  EXPECT_EQ(m.quota, 0);
  EXPECT_EQ(m.memory_bytes, 16 * kMiB);
  EXPECT_EQ(limits({5}).threads, 1);
  EXPECT_EQ(limits({}).threads, 1);
}

TEST_F(Limits, HyperthreadsAreOneCore) {
  for (int cpu = 0; cpu < 8; ++cpu) {
    const std::string pair = std::to_string(cpu % 4) + "," + std::to_string(cpu % 4 + 4) + "\n";
    write("sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/" +
              (cpu % 2 ? "core_cpus_list" : "thread_siblings_list"),
          pair);
  }
  EXPECT_EQ(limits().cores, 4);
  EXPECT_EQ(limits().threads, 4);
  EXPECT_EQ(limits({0, 4}).threads, 1) << "two threads of one core";
  EXPECT_EQ(limits({0, 1}).threads, 2);
}

TEST_F(Limits, CgroupV2QuotaIsRoundedUp) {
  v2("/a/b");
  write("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n");
  write("sys/fs/cgroup/a/b/memory.max", "max\n");
  write("sys/fs/cgroup/a/memory.max", "8388608\n");
  EXPECT_DOUBLE_EQ(limits().quota, 1.5);
  EXPECT_EQ(limits().threads, 2);
  EXPECT_EQ(limits({0}).threads, 1);
  EXPECT_EQ(limits().memory_bytes, 8 * kMiB) << "a limit of a cgroup above counts";
  write("sys/fs/cgroup/a/cpu.max", "20000 100000\n");
  EXPECT_EQ(limits().threads, 1);
  write("sys/fs/cgroup/a/cpu.max", "max 100000\n");
  EXPECT_EQ(limits().threads, 2);
}

TEST_F(Limits, CgroupV2InAContainer) {
  mount("1 0 0:5 / / rw - overlay overlay rw\n2 1 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
  cgroup("0::/\n");
  write("sys/fs/cgroup/cpu.max", "400000 100000\n");
  write("sys/fs/cgroup/memory.max", "4194304\n");
  EXPECT_EQ(limits().threads, 4);
  EXPECT_EQ(limits().memory_bytes, 4 * kMiB);
  cgroup("0::/../../outside\n");  // another namespace: what is mounted is what can be seen
  EXPECT_EQ(limits().threads, 4);
}

TEST_F(Limits, CgroupV1) {
  mount(
      "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
      "33 31 0:30 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n");
  cgroup("5:memory:/box\n3:cpuacct,cpu:/box/inner\n0::/\n");
  write("sys/fs/cgroup/cpu,cpuacct/box/inner/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu,cpuacct/box/inner/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(limits().threads, 8);
  write("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "210000\n");
  write("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(limits().threads, 3);
  write("sys/fs/cgroup/my memory/memory.limit_in_bytes", "9223372036854771712\n");  // means none
  EXPECT_EQ(limits().memory_bytes, 16 * kMiB);
  write("sys/fs/cgroup/my memory/box/memory.limit_in_bytes", "2097152\n");
  EXPECT_EQ(limits().memory_bytes, 2 * kMiB);
}

TEST_F(Limits, CgroupV1InAContainer) {
  mount("32 31 0:29 /docker/0a1b /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
  cgroup("4:memory:/docker/0a1b\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "3145728\n");
  EXPECT_EQ(limits().memory_bytes, 3 * kMiB);
  cgroup("4:memory:/docker/0a1b/child\n");
  write("sys/fs/cgroup/memory/child/memory.limit_in_bytes", "1048576\n");
  EXPECT_EQ(limits().memory_bytes, 1 * kMiB);
}

TEST_F(Limits, BrokenFilesAreNoLimits) {
  v2("/a");
  fs::create_directories(root_ / "sys/fs/cgroup/a");
  for (const std::string text :
       {"", "\n", "max", "x y", "0 100000", "100000 0", "-5 100000", "100000", "99999999999999999999 1"}) {
    write("sys/fs/cgroup/a/cpu.max", text);
    write("sys/fs/cgroup/a/memory.max", text.empty() || text[0] == '1' ? "0" : text);
    EXPECT_EQ(limits().threads, 8) << text;
    EXPECT_EQ(limits().memory_bytes, 16 * kMiB) << text;
  }
  for (const std::string text : {"", ":", "::", "0:", "30 23 0:26 / /x - cgroup2", " - - - -\n", "\n\n"}) {
    mount(text);
    cgroup(text);
    EXPECT_EQ(limits().threads, 8) << text;
  }
  write("proc/meminfo", "MemTotal: lots\n");
  EXPECT_EQ(limits().ram_bytes, 0);
  EXPECT_EQ(limits().memory_bytes, std::numeric_limits<int64_t>::max());
}

TEST(LimitsHere, AreReal) {
  const MachineLimits m = machine_limits();
  EXPECT_GE(m.threads, 1);
  EXPECT_LE(m.threads, m.affinity);
  EXPECT_GT(m.memory_bytes, 64 * kMiB);
  EXPECT_LE(m.memory_bytes, m.ram_bytes);
}

TEST(LimitsHere, AffinityIsThisThreads) {
  std::vector<int> cpus;
  std::thread([&cpus] {
    const std::vector<int> all = allowed_cpus();
    ASSERT_FALSE(all.empty());
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(all.back(), &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    cpus = allowed_cpus();
    EXPECT_EQ(cpus, std::vector<int>{all.back()});
  }).join();
}

TEST(Turns, IdleTimeIsThisThreadsAlone) {
  std::thread([] {
    use_idle_time();
    EXPECT_EQ(sched_getscheduler(0), SCHED_IDLE);
    ask_for_short_turns();  // would bring it back among the others
    EXPECT_EQ(sched_getscheduler(0), SCHED_IDLE);
  }).join();
  EXPECT_NE(sched_getscheduler(0), SCHED_IDLE);
}

TEST(Turns, ShortOnesKeepTheShare) {
  std::thread([] {
    setpriority(PRIO_PROCESS, 0, 3);
    ask_for_short_turns();
    struct {
      uint32_t size, policy;
      uint64_t flags;
      int32_t nice;
      uint32_t priority;
      uint64_t runtime, deadline, period;
    } attr{};
    ASSERT_EQ(syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0), 0);
    EXPECT_EQ(attr.policy, static_cast<uint32_t>(SCHED_OTHER));
    EXPECT_EQ(attr.nice, 3);
    if (attr.runtime == 0) GTEST_SKIP() << "this kernel knows no turns of a thread's own: 6.12 brought them";
    EXPECT_EQ(attr.runtime, 100'000u);
  }).join();
}

}  // namespace
}  // namespace deepinfer
