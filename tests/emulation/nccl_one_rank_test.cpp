// NCCL with one rank, in streams and in graphs: what one card can show of several. On the emulation its
// stand-in, on a card the library itself.
#include <gtest/gtest.h>

#include <optional>

#include "comm/nccl_communicator.h"
#include "emulation/model_fixture.h"
#include "engine/cuda_ranks.h"

namespace deepinfer::test {
namespace {

Result<NcclApi> nccl() {
#ifdef EMULATED_NCCL_DIR
  return load_nccl({{EMULATED_NCCL_DIR, "the test"}}, "libnccl.so.2");
#else
  return load_nccl();
#endif
}

class NcclOneRank : public testing::Test {
 protected:
  void SetUp() override {
    fresh_machine(1);
    auto api = nccl();
    if (!api) GTEST_SKIP() << "no NCCL: " << api.error().message;
    api_ = *api;
  }
  NcclApi api_;
};

TEST_F(NcclOneRank, CallsInStreamsAndGraphs) {
  constexpr size_t kFloats = size_t{1} << 16;
  auto gpu = cuda::Gpu::open({.self_check = false});
  ASSERT_TRUE(gpu.ok()) << gpu.error().message;
  auto device = (*gpu)->allocate(2 * kFloats * sizeof(float));
  auto host = (*gpu)->allocate_pinned(kFloats * sizeof(float));
  ASSERT_TRUE(device.ok() && host.ok());
  const auto group = make_nccl_group(api_, 1);
  ASSERT_TRUE(group.ok()) << group.error().message;
  const auto comm = NcclCommunicator::join(*group, 0, (*gpu)->stream());
  ASSERT_TRUE(comm.ok()) << comm.error().message;
  auto* const values = reinterpret_cast<float*>(device->data());
  auto* const back = reinterpret_cast<float*>(host->data());
  for (size_t i = 0; i < kFloats; ++i) back[i] = static_cast<float>(i % 1000);
  (*gpu)->copy_in(values, back, kFloats * sizeof(float));
  (*gpu)->synchronize();
  const auto calls = [&] {
    (*comm)->all_reduce({values, kFloats});
    (*comm)->broadcast(std::as_writable_bytes(std::span(values, kFloats)), 0);
    (*comm)->all_gather(std::as_bytes(std::span(values, kFloats)),
                        std::as_writable_bytes(std::span(values + kFloats, kFloats)));
  };
  const auto expect_values = [&](const char* where) {
    std::fill_n(back, kFloats, -1.0f);
    (*gpu)->copy_out(back, values + kFloats, kFloats * sizeof(float));
    (*gpu)->synchronize();
    for (size_t i = 0; i < kFloats; ++i)
      ASSERT_EQ(back[i], static_cast<float>(i % 1000)) << where << ", " << i;
  };
  calls();
  expect_values("in the stream");
  (*gpu)->begin_capture();
  calls();
  cuda::Graph graph = (*gpu)->end_capture();
  for (int i = 0; i < 3; ++i) {
    (*gpu)->fill(values + kFloats, 0, kFloats * sizeof(float));
    (*gpu)->launch(graph);
    expect_values("in a graph");
  }
  (*comm)->check();
  graph = {};
}

// A model whose graphs begin with NCCL's broadcast has the bits of the same without.
TEST_F(NcclOneRank, AModelWhoseGraphsCallIt) {
  const Scene s{.deterministic = true};
  std::map<int, std::vector<float>> logits[2];
  for (const bool ranks : {false, true}) {
    fresh_machine(1);
    std::unique_ptr<CudaRunner> one;
    std::unique_ptr<CudaRanks> group;
    if (!ranks) {
      one = make_runner(s);
      ASSERT_TRUE(one);
    } else {
      const auto checkpoint = open_weights(path_of(s.model));
      auto gpu = cuda::Gpu::open({.deterministic = true, .self_check = false});
      ASSERT_TRUE(checkpoint.ok() && gpu.ok());
      std::vector<CudaRankStart> starts;
      starts.push_back({.gpu = std::move(*gpu),
                        .load =
                            [&](cuda::Gpu& on, Communicator& all) {
                              ThreadPool pool(1);
                              Context context{.device = {Device::Kind::kCuda, 0},
                                              .pool = &pool,
                                              .gpu = &on,
                                              .comm = &all,
                                              .activation = s.activation};
                              return make_model(checkpoint->config, checkpoint->weights, context);
                            },
                        .options = {.max_num_seqs = s.seqs,
                                    .max_num_batched_tokens = s.tokens,
                                    .max_model_len = s.max_len,
                                    .kv_dtype = s.kv,
                                    .activation = s.activation,
                                    .plan_cache = [&s](const MeasuredMemory& m) {
                                      return CachePlan{s.blocks, m.max_model_len};
                                    }}});
      auto made = CudaRanks::create(std::move(starts), api_, std::chrono::seconds(60));
      ASSERT_TRUE(made.ok()) << made.error().message;
      group = std::move(*made);
    }
    std::optional<Feeder> feeder;
    if (ranks)
      feeder.emplace(*group, 2, 40, 7);
    else
      feeder.emplace(*one, 2, 40, 7);
    feeder->step({19, 8});
    for (int i = 0; i < 5; ++i) logits[ranks ? 1 : 0] = feeder->step({1, 1});
  }
  EXPECT_EQ(logits[0], logits[1]);
}

}  // namespace
}  // namespace deepinfer::test
