// cuda::Gpu on the emulated machine: what opens and what does not, memory, ranges, events, graphs, faults.
#include <gmock/gmock.h>

#include <cstdlib>
#include <cstring>

#include "backend/cuda_error.h"
#include "backend/cuda_gpu.h"
#include "backend/cuda_step.h"
#include "emulation/emulated_gpu.h"

namespace deepinfer::cuda {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override { emulation::reset_machine(); }
  void TearDown() override { gpu_.reset(); }

  // On a machine like this; empty when it opens.
  std::string refusal(const emulation::MachineConfig& machine, int index = 0) {
    emulation::reset_machine(machine);
    const auto gpu = Gpu::open({.index = index});
    if (!gpu) EXPECT_EQ(gpu.error().code, ErrorCode::kMemory);
    return gpu ? "" : gpu.error().message;
  }
  Gpu& open(const emulation::MachineConfig& machine = {}) {
    emulation::reset_machine(machine);
    auto gpu = Gpu::open({});
    EXPECT_TRUE(gpu.ok());
    gpu_ = std::move(gpu).value();
    return *gpu_;
  }
  std::unique_ptr<Gpu> gpu_;
};

TEST_F(GpuTest, MachinesThatCannotServeSayWhy) {
  EXPECT_THAT(refusal({.driver_version = 0}), HasSubstr("no NVIDIA driver is installed"));
  EXPECT_THAT(refusal({.driver_version = 12080}),
              AllOf(HasSubstr("serves CUDA 12.8"), HasSubstr("expected 13.0"), HasSubstr("580")));
  EXPECT_THAT(refusal({.device_count = 0}), HasSubstr("shows no GPU"));
  EXPECT_THAT(refusal({.name = "Tesla T4", .major = 7, .minor = 5}),
              AllOf(HasSubstr("Tesla T4"), HasSubstr("7.5"), HasSubstr("expected 8.0")));
  EXPECT_THAT(refusal({.device_count = 2}, 2), AllOf(HasSubstr("cuda:2"), HasSubstr("cuda:0 to cuda:1")));
  EXPECT_THAT(refusal({}, -1), HasSubstr("cuda:-1"));
  EXPECT_EQ(refusal({.major = 8, .minor = 0}), "");
  EXPECT_EQ(refusal({.device_count = 2}, 1), "");
}

TEST_F(GpuTest, AnEmptyListOfVisibleDevicesIsNamed) {
  ASSERT_EQ(setenv("CUDA_VISIBLE_DEVICES", "", 1), 0);
  EXPECT_THAT(refusal({.device_count = 0}), HasSubstr("CUDA_VISIBLE_DEVICES is ''"));
  ASSERT_EQ(unsetenv("CUDA_VISIBLE_DEVICES"), 0);
}

TEST_F(GpuTest, FactsAreTheCards) {
  const Gpu& gpu = open({.name = "Some card", .major = 12, .minor = 0, .multiprocessors = 170});
  EXPECT_EQ(gpu.facts().name, "Some card");
  EXPECT_EQ(gpu.facts().capability, 120);
  EXPECT_EQ(gpu.facts().multiprocessors, 170);
  EXPECT_TRUE(gpu.fast.pdl);
  EXPECT_EQ(gpu.memory().total_bytes, size_t{1} << 30);
}

// Code that a driver made from PTX of compute_80 has no wait for the kernel in front: nothing may overlap.
TEST_F(GpuTest, KernelsOverlapOnlyWhereTheirCodeWaits) {
  const auto overlaps = [&](int major, int minor) { return open({.major = major, .minor = minor}).fast.pdl; };
  EXPECT_FALSE(overlaps(8, 9));
  EXPECT_TRUE(overlaps(9, 0));
  EXPECT_FALSE(overlaps(10, 0));
  EXPECT_TRUE(overlaps(12, 1));
}

TEST_F(GpuTest, TooMuchMemoryIsRefusedWithTheNumbers) {
  Gpu& gpu = open({.total_memory = size_t{2} << 30, .used_by_others = size_t{1} << 30});
  EXPECT_EQ(gpu.memory_at_open().free_bytes, size_t{1} << 30);
  const auto refused = gpu.allocate(size_t{3} << 29);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kMemory);
  EXPECT_THAT(refused.error().message,
              AllOf(HasSubstr("1.50 GiB asked for"), HasSubstr("1.00 of 2.00 GiB free")));
  EXPECT_TRUE(gpu.allocate(1 << 20).ok()) << "the refusal left nothing behind";
}

TEST_F(GpuTest, CopiesAndEventsComeInOrder) {
  Gpu& gpu = open();
  Buffer host = std::move(gpu.allocate_pinned(3000)).value(),
         back = std::move(gpu.allocate_pinned(3000)).value();
  Buffer device = std::move(gpu.allocate(3000)).value();
  for (int round = 0; round < 5; ++round) {
    std::memset(host.data(), 10 + round, 3000);
    gpu.copy_in(device.data(), host.data(), 3000);
    gpu.fill(device.data() + 1000, 1, 500);
    gpu.copy_out(back.data(), device.data(), 3000);
    const Event done = gpu.record();
    gpu.wait(done);
    EXPECT_TRUE(gpu.done(done));
    EXPECT_EQ(back.data()[999], static_cast<std::byte>(10 + round));
    EXPECT_EQ(back.data()[1000], std::byte{1});
    EXPECT_EQ(back.data()[2999], static_cast<std::byte>(10 + round));
  }
}

TEST_F(GpuTest, ARangeKeepsItsAddressesWhileItGrows) {
  Gpu& gpu = open();
  const size_t before = gpu.memory().free_bytes;
  const int64_t live = emulation::machine_counts().live_allocations;
  {
    Range range = std::move(gpu.reserve(size_t{1} << 33)).value();
    EXPECT_EQ(gpu.memory().free_bytes, before) << "addresses are not memory";
    ASSERT_TRUE(gpu.map(range, 1000).ok());
    EXPECT_EQ(range.mapped(), range.granularity());
    gpu.fill(range.data(), 5, 1000);
    ASSERT_TRUE(gpu.map(range, 10 * range.granularity() - 1).ok());
    EXPECT_EQ(range.mapped(), 10 * range.granularity());
    Buffer back = std::move(gpu.allocate_pinned(1000)).value();
    gpu.copy_out(back.data(), range.data(), 1000);
    gpu.fill(range.data() + 9 * range.granularity(), 6, 1000);
    gpu.synchronize();
    EXPECT_EQ(back.data()[999], std::byte{5});
    const auto refused = gpu.map(range, size_t{2} << 30);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, ErrorCode::kMemory);
    EXPECT_EQ(range.mapped(), 10 * range.granularity());
  }
  EXPECT_EQ(gpu.memory().free_bytes, before);
  EXPECT_EQ(emulation::machine_counts().live_allocations, live);
}

TEST_F(GpuTest, ADriverWithoutVirtualMemoryIsNamed) {
  Gpu& gpu = open({.virtual_memory = false});
  const auto range = gpu.reserve(1 << 30);
  ASSERT_FALSE(range.ok());
  EXPECT_THAT(range.error().message, HasSubstr("update the driver"));
}

TEST_F(GpuTest, AGraphRunsAgainOnWhatIsThereThen) {
  Gpu& gpu = open();
  Buffer from = std::move(gpu.allocate(64)).value(), to = std::move(gpu.allocate(64)).value();
  Buffer host = std::move(gpu.allocate_pinned(64)).value(), back = std::move(gpu.allocate_pinned(64)).value();
  gpu.begin_capture();
  gpu.copy_out(back.data(), from.data(), 64);
  const Graph graph = gpu.end_capture();
  for (int round = 1; round < 4; ++round) {
    std::memset(host.data(), round, 64);
    gpu.copy_in(from.data(), host.data(), 64);
    gpu.launch(graph);
    gpu.synchronize();
    EXPECT_EQ(back.data()[63], static_cast<std::byte>(round));
  }
}

TEST_F(GpuTest, AnAbandonedCaptureLeavesTheStreamUsable) {
  Gpu& gpu = open();
  Buffer device = std::move(gpu.allocate(64)).value(), back = std::move(gpu.allocate_pinned(64)).value();
  gpu.begin_capture();
  gpu.fill(device.data(), 1, 64);
  gpu.abandon_capture();
  gpu.abandon_capture();  // none is under way: nothing happens
  gpu.fill(device.data(), 2, 64);
  gpu.copy_out(back.data(), device.data(), 64);
  gpu.synchronize();
  EXPECT_EQ(back.data()[0], std::byte{2});
}

TEST_F(GpuTest, AKernelsFaultIsStickyAndSoToldToTheCaller) {
  Gpu& gpu = open();
  Buffer tables = std::move(gpu.allocate(64)).value(), deltas = std::move(gpu.allocate(64)).value();
  gpu.fill(deltas.data(), 0, 64);
  gpu.synchronize();
  const StepState state{.tables = reinterpret_cast<int32_t*>(tables.data())};
  emulation::fail_kernel(0);
  try {
    apply_deltas(gpu, state, reinterpret_cast<const BlockDelta*>(deltas.data()), 2);
    gpu.wait(gpu.record());
    ADD_FAILURE() << "the fault was not told";
  } catch (const CudaError& e) {
    EXPECT_TRUE(e.sticky());
    EXPECT_THAT(e.what(), HasSubstr("illegal"));
  }
  EXPECT_THROW(gpu.synchronize(), CudaError);
}

}  // namespace
}  // namespace deepinfer::cuda
