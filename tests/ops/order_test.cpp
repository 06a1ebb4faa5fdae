// The order of every reduction depends on the model's shape and the absolute position alone: however a
// prompt is cut, whatever runs beside it, with any number of threads, each token's logits are the same bits.
#include <gtest/gtest.h>

#include <algorithm>

#include "fixture.h"
#include "layer.h"

namespace deepinfer::test {
namespace {

struct Case {
  std::string name;
  LayerShape shape;
};

LayerShape shape(DType weight, DType kv, int window = 0) {
  LayerShape s{.hidden = 96, .heads = 6, .kv_heads = 2, .dim_k = 32, .dim_v = 32};
  s.rotary = 32;
  s.ffn = 64;
  s.weight = weight;
  s.kv = kv;
  s.window = window;
  return s;
}

constexpr int kTokens = 290;
constexpr int kBlocks = 64;

// Sequences with inputs of their own, each with blocks of its own in the cache.
struct Sequence {
  std::vector<float> input;  // [tokens, hidden]
  std::vector<int32_t> blocks;
  std::vector<float> logits;  // [tokens, vocab], filled step by step
  int done = 0;
};

class Runner {
 public:
  Runner(const LayerShape& s, int threads, int sequences)
      : machine_(threads), layer_(machine_.context, s, 3), cache_(s, kBlocks) {
    Random random(11);
    std::vector<int32_t> ids(kBlocks);
    for (int i = 0; i < kBlocks; ++i) ids[i] = i;
    std::shuffle(ids.begin(), ids.end(), random);
    const int per_sequence = (kTokens + 15) / 16;
    for (int i = 0; i < sequences; ++i) {
      const auto first = ids.begin() + int64_t{i} * per_sequence;
      sequences_.push_back({random_floats(random, kTokens * s.hidden), {first, first + per_sequence}, {}, 0});
    }
  }

  // One step: the next counts[i] tokens of sequence i; those with one token come first, as in the engine.
  void step(const std::vector<int>& counts) {
    std::vector<int> order;
    for (int i = 0; i < static_cast<int>(counts.size()); ++i)
      if (counts[i] > 0) order.push_back(i);
    std::ranges::sort(order, {}, [&](int i) { return std::pair(counts[i], i); });
    std::vector<Batch::Row> rows;
    std::vector<float> hidden;
    const int64_t width = layer_.shape.hidden;
    for (const int i : order) {
      Sequence& s = sequences_[i];
      std::vector<int32_t> blocks = s.blocks;
      if (layer_.shape.window > 0) {  // freed behind the window
        for (int b = 0; (b + 1) * 16 <= s.done + 1 - layer_.shape.window; ++b) blocks[b] = -1;
      }
      rows.push_back({.slot = i,
                      .context_len = s.done,
                      .tokens = std::vector<int32_t>(counts[i], 0),
                      .blocks = {blocks}});
      hidden.insert(hidden.end(), s.input.begin() + s.done * width,
                    s.input.begin() + (s.done + counts[i]) * width);
    }
    Batch batch(rows);
    for (int32_t t = 0; t < batch.step.num_tokens; ++t) batch.logit_token.push_back(t);
    batch.step.logit_token = batch.logit_token;
    const std::vector<float> logits = layer_.run(machine_.context, batch.step, cache_.layer(), hidden);
    auto at = logits.begin();
    for (const int i : order) {
      sequences_[i].logits.insert(sequences_[i].logits.end(), at, at + counts[i] * Layer::kVocab);
      at += counts[i] * Layer::kVocab;
      sequences_[i].done += counts[i];
    }
    EXPECT_EQ(machine_.arena.used(), 0u) << "an operation kept scratch";
  }

  const std::vector<float>& logits(int i) const { return sequences_[i].logits; }
  int left(int i) const { return kTokens - sequences_[i].done; }

 private:
  Machine machine_;
  Layer layer_;
  Cache cache_;
  std::vector<Sequence> sequences_;
};

class Order : public testing::TestWithParam<Case> {};

TEST_P(Order, AnyCutAnyNeighboursAnyThreadsGiveTheSameBits) {
  constexpr int kSequences = 3;
  std::vector<std::vector<float>> expected;
  for (int i = 0; i < kSequences; ++i) {  // each alone and whole, on one thread
    Runner whole(GetParam().shape, 1, kSequences);
    std::vector<int> counts(kSequences, 0);
    counts[i] = kTokens;
    whole.step(counts);
    expected.push_back(whole.logits(i));
  }
  for (const int threads : {1, 2, 3}) {
    Runner one_by_one(GetParam().shape, threads, kSequences);
    for (int t = 0; t < kTokens; ++t) one_by_one.step({1, 0, 0});
    ASSERT_TRUE(std::memcmp(one_by_one.logits(0).data(), expected[0].data(), expected[0].size() * 4) == 0)
        << "one token a step, " << threads << " threads";

    Random random(threads);
    Runner mixed(GetParam().shape, threads, kSequences);
    while (mixed.left(0) + mixed.left(1) + mixed.left(2) > 0) {
      std::vector<int> counts;
      for (int i = 0; i < kSequences; ++i) {
        constexpr int kSizes[] = {0, 1, 1, 2, 7, 8, 9, 16, 33, 64};
        counts.push_back(std::min(mixed.left(i), kSizes[random() % std::size(kSizes)]));
      }
      if (counts[0] + counts[1] + counts[2] > 0) mixed.step(counts);
    }
    for (int i = 0; i < kSequences; ++i)
      ASSERT_TRUE(std::memcmp(mixed.logits(i).data(), expected[i].data(), expected[i].size() * 4) == 0)
          << "mixed steps, sequence " << i << ", " << threads << " threads";
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, Order,
                         testing::Values(Case{"q4_1", shape(DType::kQ4_1, DType::kF16)},
                                         Case{"q4_0", shape(DType::kQ4_0, DType::kF32)},
                                         Case{"q8_0", shape(DType::kQ8_0, DType::kBF16)},
                                         Case{"bf16", shape(DType::kBF16, DType::kF16)},
                                         Case{"f16", shape(DType::kF16, DType::kF16)},
                                         Case{"f32", shape(DType::kF32, DType::kF32)},
                                         Case{"window", shape(DType::kQ4_1, DType::kF16, 50)},
                                         Case{"cache_int8", shape(DType::kF32, DType::kI8)},
                                         Case{"cache_fp8", shape(DType::kF32, DType::kF8E4M3)},
                                         Case{"window_int8", shape(DType::kF32, DType::kI8, 50)}),
                         [](const auto& i) { return i.param.name; });

// What ops::scratch_bytes promises is enough, for one token and for many.
TEST(Scratch, IsEnough) {
  const LayerShape s = shape(DType::kBF16, DType::kF32);
  for (const int threads : {1, 3}) {
    for (const int tokens : {1, 2, 3, 40, 213}) {
      Machine sizes(threads);
      const size_t bytes = ops::scratch_bytes(sizes.context, tokens, tokens, 192, 320);
      Machine m(threads, bytes);
      Layer layer(m.context, s, 1);
      Cache cache(s, 16);
      std::vector<int32_t> blocks = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
      Batch batch({{.tokens = std::vector<int32_t>(tokens, 0), .blocks = {blocks}}});
      for (int32_t t = 0; t < tokens; ++t) batch.logit_token.push_back(t);
      batch.step.logit_token = batch.logit_token;
      std::vector<float> hidden = random_floats(layer.random, tokens * s.hidden);
      EXPECT_NO_THROW(layer.run(m.context, batch.step, cache.layer(), hidden)) << tokens << " tokens";
    }
  }
}

}  // namespace
}  // namespace deepinfer::test
