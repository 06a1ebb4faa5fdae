// FlashInfer's kernels against the own attention kernel, on a card: every unit of the build, lengths around
// pages, tiles and splits, pages in any order, padding, windows. Shapes that this card or build does not
// serve are skipped with the reason.
#include "backend/cuda/fast/fast_attention.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <random>

#include "backend/cuda/fast/attention_sample.h"
#include "backend/cuda/fast/units.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/self_check.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr double kBound = 1.0 / 64;  // as in the self-check

struct Case {
  std::string name;
  bool decode = false;
  SampleShape shape;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

// Around a page (16), XQA's tiles (64, 256), FA2's tiles (64, 128), and enough for many splits.
const std::vector<int> kContexts = {0,   1,   14,  15,  16,  17,  31,  63,   64,   65,   127, 128,
                                    129, 254, 255, 256, 257, 511, 700, 1023, 1024, 2049, 5000};

std::vector<SampleRow> rows_of(bool decode, int variant, std::mt19937& random) {
  std::vector<SampleRow> rows;
  auto context = [&] { return kContexts[random() % kContexts.size()]; };
  switch (variant) {
    case 0:  // all lengths
      for (const int c : kContexts) rows.push_back({.context = c});
      rows.push_back({.padding = true});
      break;
    case 1:  // one row alone: the most splits
      rows.push_back({.context = 4097});
      break;
    default:  // more rows than the card takes at once, padding behind
      for (int i = 0; i < 150; ++i) rows.push_back({.context = static_cast<int>(random() % 400)});
      for (int i = 0; i < 5; ++i) rows.push_back({.padding = true});
  }
  if (decode) return rows;
  rows.resize(variant == 1 ? 0 : 3);
  const int chunks = variant == 1 ? 1 : 6;
  for (int i = 0; i < chunks; ++i) {
    const int longest = variant == 0 ? 300 : variant == 1 ? 2000 : 12;
    rows.push_back(
        {.context = i % 2 == 0 ? 0 : context(), .tokens = 2 + static_cast<int>(random() % longest)});
  }
  return rows;
}

std::vector<Case> cases() {
  std::mt19937 random(11);
  std::vector<Case> all;
  auto add = [&](bool decode, SampleShape shape) {
    for (const int window : {0, 1, 100, 1000})
      for (int variant = 0; variant < 3; ++variant) {
        shape.window = window;
        shape.rows = rows_of(decode, variant, random);
        shape.seed = random();
        all.push_back({fmt::format("{}_{}_{}_d{}_g{}_kv{}_w{}_{}", decode ? "xqa" : "fa2",
                                   info(shape.activation).name, info(shape.kv_dtype).name, shape.dim,
                                   shape.heads / shape.kv_heads, shape.kv_heads, window, variant),
                       decode, shape});
      }
  };
  for (const XqaUnit& u : xqa_units()) {
    const bool fp8 = u.kv_dtype == DType::kF8E4M3;
    add(true, {.heads = 3 * u.group,
               .kv_heads = 3,
               .dim = u.dim,
               .activation = u.activation,
               .kv_dtype = u.kv_dtype,
               .k_scale = fp8 ? 0.75f : 1.0f,
               .v_scale = fp8 ? 0.5f : 1.0f});
  }
  for (const Fa2Unit& u : fa2_units())
    for (const int dim : {64, 128})
      for (const int group : {1, 3, 4, 7, 8})
        add(false, {.heads = 2 * group,
                    .kv_heads = 2,
                    .dim = dim,
                    .activation = u.activation,
                    .kv_dtype = u.activation});
  return all;
}

class FastAttentionOnCard : public testing::TestWithParam<Case> {
 protected:
  static void SetUpTestSuite() {
    if (device_count() == 0) return;
    auto opened = Gpu::open({.self_check = false});
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    gpu = std::move(opened).value().release();
    const auto ready = prepare_fast_attention(*gpu);
    ASSERT_TRUE(ready.ok()) << ready.error().message;
  }
  static void TearDownTestSuite() {
    delete gpu;
    gpu = nullptr;
  }

  static void run_fast(const PagedAttention& a) {
    GetParam().decode ? xqa_decode(*gpu, a) : fa2_prefill(*gpu, a);
  }

  static Gpu* gpu;
};
Gpu* FastAttentionOnCard::gpu = nullptr;

TEST_P(FastAttentionOnCard, AgreesWithThePlainKernel) {
  const Case& c = GetParam();
  auto made = AttentionSample::make(*gpu, c.shape);
  ASSERT_TRUE(made.ok()) << made.error().message;
  AttentionSample& sample = **made;
  const PagedAttention& a = sample.attention();
  if (!(c.decode ? xqa_supports(*gpu, a) : fa2_supports(*gpu, a)))
    GTEST_SKIP() << "not served by this build on " << gpu->facts().name;
  const int first = c.decode ? 0 : sample.decode_rows(),
            last = c.decode ? sample.decode_rows() : sample.tokens();
  auto scratch = gpu->allocate(attention_scratch_bytes(*gpu, a) + 1);
  ASSERT_TRUE(scratch.ok()) << scratch.error().message;
  attention_plain(*gpu, a, scratch->data());
  const auto plain = sample.read_out(*gpu, first, last);
  ASSERT_TRUE(plain.ok());
  // Twice: what a launch leaves behind (semaphores) must serve the next.
  for (int again = 0; again < 2; ++again) {
    sample.clear_out(*gpu);
    run_fast(a);
    const auto fast = sample.read_out(*gpu, first, last);
    ASSERT_TRUE(fast.ok());
    EXPECT_EQ(difference({c.name, *plain, *fast, static_cast<size_t>(c.shape.dim), kBound}), "")
        << "seed " << c.shape.seed;
  }
  // The other rows' results are another kernel's.
  const auto others =
      c.decode ? sample.read_out(*gpu, last, sample.tokens()) : sample.read_out(*gpu, 0, first);
  if (others.ok())
    for (const float x : *others) ASSERT_TRUE(std::isnan(x)) << "a result of a row that is not served";
}

// A graph takes its plan along: replayed after another step's plan was made, it computes the same.
TEST_P(FastAttentionOnCard, IsTheSameInAGraph) {
  const Case& c = GetParam();
  if (c.shape.window != 0) GTEST_SKIP() << "once a shape is enough: without a window";
  auto made = AttentionSample::make(*gpu, c.shape);
  SampleShape other_shape = c.shape;
  other_shape.rows = {{.context = 33}, {.context = 5, .tokens = 70}};
  auto other = AttentionSample::make(*gpu, other_shape);
  ASSERT_TRUE(made.ok() && other.ok());
  AttentionSample& sample = **made;
  const PagedAttention& a = sample.attention();
  if (!(c.decode ? xqa_supports(*gpu, a) : fa2_supports(*gpu, a)))
    GTEST_SKIP() << "not served by this build on " << gpu->facts().name;
  run_fast(a);
  const auto eager = sample.read_out(*gpu, 0, sample.tokens());
  ++gpu->parts().steps;
  gpu->begin_capture();
  run_fast(a);
  run_fast(a);  // a second layer: with the plan of the first
  const Graph graph = gpu->end_capture();
  ++gpu->parts().steps;
  run_fast((*other)->attention());
  gpu->synchronize();
  sample.clear_out(*gpu);
  gpu->launch(graph);
  const auto replayed = sample.read_out(*gpu, 0, sample.tokens());
  gpu->parts().steps = 0;
  ASSERT_TRUE(eager.ok() && replayed.ok());
  ASSERT_EQ(eager->size(), replayed->size());
  for (size_t i = 0; i < eager->size(); ++i)
    ASSERT_TRUE((*eager)[i] == (*replayed)[i] || (std::isnan((*eager)[i]) && std::isnan((*replayed)[i])))
        << "value " << i;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(FastAttentionOnCard);
INSTANTIATE_TEST_SUITE_P(All, FastAttentionOnCard, testing::ValuesIn(cases()),
                         [](const auto& i) { return i.param.name; });

// The self-check of this build on this card, as a start would run it.
TEST(SelfCheckOnCard, FindsNoFault) {
  auto opened = Gpu::open({.self_check = false});
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  Gpu& gpu = **opened;
  ASSERT_TRUE(gpu.open_fast_paths().ok());
  for (const PathCheck& check : path_checks()) {
    if (!(gpu.fast.*check.flag)) {
      std::cout << check.name << ": not in this build, or not for this card\n";
      continue;
    }
    const auto found = check.run(gpu);
    ASSERT_TRUE(found.ok()) << found.error().message;
    EXPECT_FALSE(found->empty()) << check.name << ": nothing was compared";
    for (const Comparison& one : *found) EXPECT_EQ(difference(one), "") << check.name;
  }
}

}  // namespace
}  // namespace deepinfer::cuda
