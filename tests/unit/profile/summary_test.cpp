#include "profile/summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <numeric>

namespace deepinfer {
namespace {

using testing::HasSubstr;
using testing::Not;

class Data {
 public:
  explicit Data(double seconds) { data_.seconds = seconds; }
  Data& add(Phase phase, double seconds, int64_t count = 1, std::array<int64_t, 3> args = {}) {
    data_.phases[static_cast<size_t>(phase)] = {count, static_cast<int64_t>(seconds * 1e9), args};
    return *this;
  }
  // 100 steps of `rows` rows; then so many ran, waited, were free.
  Data& steps(int64_t rows, std::array<int64_t, 3> counters) {
    for (int64_t& c : counters) c *= 100;
    return add(Phase::kStep, 1, 100, {4950, 100 * rows, 100 * rows}).add(Phase::kCounters, 0, 100, counters);
  }
  ProfileData data_;
};

double sum(const ProfileSummary& s) {
  return std::accumulate(s.shares.begin(), s.shares.end(), 0.0,
                         [](double all, const ProfileShare& share) { return all + share.percent; });
}

std::string advice(const ProfileSummary& s) {
  std::string all;
  for (const std::string& sentence : s.advice) all += sentence + "\n";
  return all;
}

const ProfileFacts kCpu{.device = "CPU", .max_num_seqs = 128, .blocks = 1000, .kv_dtype = "F16"};
const ProfileFacts kGpu{
    .device = "cuda:0", .gpu = true, .max_num_seqs = 128, .blocks = 1000, .kv_dtype = "BF16", .graphs = true};

TEST(Summary, SharesOfTheCpuAreTheWholeTime) {
  Data d(10);
  d.steps(4, {4, 0, 900});
  d.add(Phase::kLoop, 8).add(Phase::kForward, 6).add(Phase::kSampling, 1).add(Phase::kSchedule, 0.25);
  d.add(Phase::kCommit, 0.25).add(Phase::kQkv, 1).add(Phase::kProject, 1).add(Phase::kGateUp, 1.5);
  d.add(Phase::kHead, 0.5).add(Phase::kAttention, 1.5).add(Phase::kSample, 0.9);
  const ProfileSummary s = summarize(d.data_, kCpu);
  EXPECT_DOUBLE_EQ(s.percent("matrix products"), 40);
  EXPECT_DOUBLE_EQ(s.percent("attention"), 15);
  EXPECT_NEAR(s.percent("sampling"), 9, 1e-9);
  EXPECT_NEAR(s.percent("rest of the model"), 6, 1e-9);
  EXPECT_DOUBLE_EQ(s.percent("scheduling"), 5);
  EXPECT_NEAR(s.percent("host"), 5, 1e-9);
  EXPECT_DOUBLE_EQ(s.percent("idle"), 20);
  EXPECT_NEAR(sum(s), 100, 1e-9);
  ASSERT_EQ(s.parts.size(), 4u);
  EXPECT_EQ(s.parts[2].name, "gate_up");
  EXPECT_DOUBLE_EQ(s.parts[2].percent, 15);
  const std::string text = to_text(s);
  EXPECT_THAT(text, HasSubstr("profile of 10.000 s: 100 steps, 400 tokens, 4.0 rows a step"));
  EXPECT_THAT(text, HasSubstr("attention             15.0%      1.500 s"));
  EXPECT_EQ(to_json(s).at("shares").as_array().size(), s.shares.size());
}

TEST(Summary, ARoundThatBeganBeforeDoesNotMakeTimeNegative) {
  Data d(1);
  d.steps(1, {1, 0, 900}).add(Phase::kForward, 0.9).add(Phase::kSampling, 0.05);  // no round has ended
  const ProfileSummary s = summarize(d.data_, kCpu);
  for (const ProfileShare& share : s.shares) EXPECT_GE(share.percent, 0) << share.name;
  EXPECT_NEAR(sum(s), 100, 1e-9);
  EXPECT_NEAR(s.percent("idle"), 5, 1e-9);
}

TEST(Summary, OfAGpuIsWhatItsKernelsTook) {
  Data d(10);
  d.steps(4, {4, 0, 900}).add(Phase::kLoop, 9).add(Phase::kForward, 1).add(Phase::kWait, 7);
  d.data_.device.emplace();
  d.data_.device->nanoseconds = {4'000'000'000, 2'000'000'000, 500'000'000, 250'000'000, 250'000'000};
  const ProfileSummary s = summarize(d.data_, kGpu);
  EXPECT_DOUBLE_EQ(s.percent("matrix products"), 40);
  EXPECT_DOUBLE_EQ(s.percent("attention"), 20);
  EXPECT_DOUBLE_EQ(s.percent("copies"), 2.5);
  EXPECT_DOUBLE_EQ(s.percent("idle"), 10);  // the engine had nothing
  EXPECT_DOUBLE_EQ(s.percent("host"), 20);  // the GPU had nothing, the engine had
  EXPECT_NEAR(sum(s), 100, 1e-9);
  EXPECT_THAT(s.note, HasSubstr("the GPU waited"));
}

TEST(Summary, AGpuWithoutCuptiSaysSo) {
  Data d(10);
  d.steps(4, {4, 0, 900}).add(Phase::kLoop, 9).add(Phase::kForward, 1).add(Phase::kWait, 7);
  d.data_.device_problem = "CUPTI: no usable library";
  const ProfileSummary s = summarize(d.data_, kGpu);
  EXPECT_DOUBLE_EQ(s.percent("waiting for the GPU"), 70);
  EXPECT_NEAR(sum(s), 100, 1e-9);
  EXPECT_THAT(to_text(s), HasSubstr("no usable library"));
}

ProfileSummary with(ProfileFacts facts, const std::function<void(Data&)>& change) {
  Data d(10);
  d.steps(64, {64, 0, 500}).add(Phase::kLoop, 10).add(Phase::kForward, 9.5);
  change(d);
  return summarize(d.data_, facts);
}

TEST(Advice, EachCauseHasItsRemedy) {
  EXPECT_THAT(advice(summarize(Data(1).data_, kCpu)), HasSubstr("No step ran"));
  EXPECT_THAT(advice(with(kCpu, [](Data& d) { d.add(Phase::kLoop, 4).add(Phase::kForward, 3.9); })),
              HasSubstr("gpu.max_num_seqs allows 128"));
  EXPECT_THAT(advice(with(kCpu, [](Data& d) { d.add(Phase::kAttention, 5); })),
              HasSubstr("gpu.kv_cache_dtype: int8 or fp8"));
  EXPECT_THAT(advice(with(kGpu,
                          [](Data& d) {
                            d.data_.device.emplace();
                            d.data_.device->nanoseconds[static_cast<size_t>(Work::kAttention)] =
                                5'000'000'000;
                          })),
              HasSubstr("gpu.kv_cache_dtype: fp8 halves"));
  ProfileFacts small = kCpu;
  small.kv_dtype = "F8_E4M3";
  EXPECT_THAT(advice(with(small, [](Data& d) { d.add(Phase::kAttention, 5); })), HasSubstr("8 bits already"));
  EXPECT_THAT(advice(with(kCpu, [](Data& d) { d.add(Phase::kGateUp, 6); })), HasSubstr("model.quantization"));
  EXPECT_THAT(advice(with(kCpu, [](Data& d) { d.add(Phase::kGateUp, 6).steps(1, {1, 0, 900}); })),
              HasSubstr("A step has 1.0 rows"));
  EXPECT_THAT(advice(with(kCpu, [](Data& d) { d.add(Phase::kSampling, 3).add(Phase::kSample, 3); })),
              HasSubstr("temperature 0"));
  EXPECT_THAT(advice(with(kCpu, [](Data& d) { d.add(Phase::kForward, 5); })),
              HasSubstr("Host and scheduling 50%"));
  ProfileFacts eager = kGpu;
  eager.graphs = false;
  EXPECT_THAT(advice(with(eager, [](Data& d) { d.add(Phase::kForward, 5); })),
              HasSubstr("gpu.enforce_eager"));
  EXPECT_THAT(advice(with(kCpu, [](Data& d) { d.steps(128, {128, 30, 500}); })),
              HasSubstr("raise gpu.max_num_seqs"));
  EXPECT_THAT(advice(with(kCpu, [](Data& d) { d.steps(64, {64, 30, 10}); })),
              HasSubstr("gpu.kv_cache_memory_bytes"));
  const std::string fine = advice(with(kCpu, [](Data&) {}));
  EXPECT_THAT(fine, HasSubstr("Nothing stands out"));
  EXPECT_THAT(fine, Not(HasSubstr("Idle")));
}

TEST(Kernels, AreKnownByTheirNames) {
  const auto work = [](const char* mangled) { return work_of(readable_name(mangled)); };
  EXPECT_EQ(readable_name("_ZN9deepinfer4cuda12_GLOBAL__N_113decode_kernelEi"),
            "deepinfer::cuda::decode_kernel");
  EXPECT_EQ(readable_name("_ZN9deepinfer4cuda6skinny6kernelILi1EEEvNS0_7ProductE"),
            "deepinfer::cuda::skinny::kernel");
  EXPECT_EQ(readable_name("nvjet_hsh_128x64"), "nvjet_hsh_128x64");
  EXPECT_EQ(work("_ZN9deepinfer4cuda12_GLOBAL__N_113decode_kernelEi"), Work::kAttention);
  EXPECT_EQ(work("_ZN9deepinfer4cuda6skinny6kernelILi1EEEvNS0_7ProductE"), Work::kMatrices);
  EXPECT_EQ(work("nvjet_hsh_128x64"), Work::kMatrices);
  EXPECT_EQ(work("deepinfer::cuda::prefill_kernel"), Work::kAttention);
  EXPECT_EQ(work("flashinfer_BatchPrefillWithPagedKVCacheKernel"), Work::kAttention);
  EXPECT_EQ(work("deepinfer::cuda::sampling::sample_rows"), Work::kSampling);
  EXPECT_EQ(work("deepinfer::cuda::copy_kernel"), Work::kRest);
  EXPECT_EQ(work("copy to host"), Work::kCopies);
  EXPECT_EQ(work("fill"), Work::kCopies);
  EXPECT_EQ(work("deepinfer::cuda::embed_kernel"), Work::kRest);
}

}  // namespace
}  // namespace deepinfer
