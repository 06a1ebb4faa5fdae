// How a model is dealt to ranks, and that what a rank reads is its part of the whole, for every format.
#include "model/shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <random>

#include "base/check.h"
#include "model/checkpoint.h"
#include "model/linear_source.h"
#include "model/quantization.h"
#include "model/random_checkpoint.h"
#include "quant/codes.h"
#include "quant/formats.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

fs::path golden() {
  return fs::path(DI_SOURCE_DIR) / "tests/golden";
}

ModelConfig nine_heads() {
  return {.arch = "LlamaForCausalLM",
          .vocab_size = 333,
          .hidden = 160,
          .layers = 2,
          .heads = 9,
          .kv_heads = 3,
          .head_dim = 32,
          .ffn = 320,
          .max_position = 512};
}

TEST(Deal, RunsCoverAllAndStandOnUnits) {
  for (const int64_t total : {1, 9, 48, 333, 1536, 49152})
    for (const int64_t unit : {1, 2, 16, 32, 128})
      for (int ranks = 1; ranks <= 9; ++ranks) {
        int64_t next = 0, most = 0, least = total;
        for (int r = 0; r < ranks; ++r) {
          const auto run = deal(total, unit, r, ranks);
          ASSERT_EQ(run.first, next) << total << " in " << unit << ", rank " << r << " of " << ranks;
          ASSERT_TRUE(run.first % unit == 0 || run.first == total);
          next = run.end();
          most = std::max(most, run.count);
          least = std::min(least, run.count);
        }
        ASSERT_EQ(next, total);
        ASSERT_LT(most - least, 2 * unit);
      }
}

TEST(PlanShard, NineHeadsOnThreeKvHeads) {
  const auto c = random_checkpoint(nine_heads(), "nine", 1);
  ASSERT_TRUE(c);
  for (int ranks = 1; ranks <= 9; ++ranks) {
    int64_t heads = 0, ffn = 0;
    for (int r = 0; r < ranks; ++r) {
      const auto s = plan_shard(c->config, c->weights, r, ranks);
      ASSERT_TRUE(s) << s.error().message;
      EXPECT_EQ(s->heads.first, heads);
      EXPECT_EQ(s->ffn.first, ffn);
      EXPECT_GT(s->heads.count, 0);
      EXPECT_GT(s->ffn.count, 0);
      heads = s->heads.end();
      ffn = s->ffn.end();
      const HeadGroups g = s->head_groups(c->config);
      for (int64_t h = 0; h < s->heads.count; ++h) {
        const int64_t kv_head = s->kv_heads.first + (h + g.skip) / g.size;
        EXPECT_EQ(kv_head, (s->heads.first + h) / 3) << "rank " << r << " of " << ranks;
        EXPECT_LT(kv_head, s->kv_heads.end());
      }
      EXPECT_EQ(static_cast<int>(s->vocab_of.size()), ranks);
      EXPECT_EQ(s->vocab_of.back().end(), 333);
    }
    EXPECT_EQ(heads, 9);
    EXPECT_EQ(ffn, 320);
  }
  const auto ten = plan_shard(c->config, c->weights, 0, 10);
  ASSERT_FALSE(ten);
  EXPECT_EQ(ten.error().code, ErrorCode::kConfig);
  EXPECT_THAT(ten.error().message, HasSubstr("gpu.tensor_parallel_size: got 10, expected at most 9"));
  EXPECT_THAT(ten.error().message, HasSubstr("9 query heads"));
}

TEST(PlanShard, GroupsOfAQuantizationAreNotCut) {
  const auto c = open_weights(golden() / "quant_awq_g128");  // 128 columns: one group
  ASSERT_TRUE(c);
  const auto two = plan_shard(c->config, c->weights, 1, 2);
  ASSERT_TRUE(two) << two.error().message << " (one group a row can be cut anywhere)";
  const auto base = open_weights(golden() / "tiny_llama/base/model-q4_1.gguf");  // heads of 16, blocks of 32
  ASSERT_TRUE(base);
  const auto s = plan_shard(base->config, base->weights, 1, 2);
  ASSERT_TRUE(s) << s.error().message;
  EXPECT_EQ(s->heads.first, 2);
  EXPECT_EQ(s->ffn.first % 32, 0);
  const auto three = plan_shard(base->config, base->weights, 0, 3);
  ASSERT_FALSE(three);
  EXPECT_THAT(three.error().message, HasSubstr("expected at most 2"));
  EXPECT_THAT(three.error().message, HasSubstr("model.layers.0.self_attn.o_proj.weight"));
}

// Values of a source as the kernels read them, [rows, cols].
std::vector<float> values_of(const LinearSource& s) {
  std::vector<float> all, row(static_cast<size_t>(s.cols));
  const QuantFormat* format = has_codes(s.dtype) ? nullptr : find_format(s.dtype);
  for (const LinearPart& part : s.parts)
    for (int64_t r = 0; r < part.rows; ++r) {
      if (format == nullptr) {
        dequantize_codes(s, part, r, row.data());
      } else if (part.random) {
        std::vector<std::byte> bits(static_cast<size_t>(s.cols) * 2);
        write_random(*part.random, r * s.cols, (r + 1) * s.cols, bits.data());
        format->dequantize(bits.data(), s.cols, row.data());
      } else {
        format->dequantize(static_cast<const std::byte*>(part.data) + r * row_bytes(s.dtype, s.cols), s.cols,
                           row.data());
      }
      all.insert(all.end(), row.begin(), row.end());
    }
  return all;
}

constexpr DType kStored[] = {DType::kF32, DType::kF16, DType::kQ4_0, DType::kQ4_1, DType::kQ8_0};

struct Case {
  std::string name, folder, online;
  DType stored = DType::kBF16;  // of random bytes, when it is not BF16
};

// The matrices of a checkpoint as bytes of another dtype.
void store_as(DType dtype, Checkpoint& c) {
  std::mt19937 random(3);
  const int block = info(dtype).block_bytes;
  for (auto& [name, t] : c.weights.tensors) {
    if (t.shape.size() != 2) continue;
    const int64_t bytes = t.shape[0] * row_bytes(dtype, t.shape[1]);
    auto data = Buffer::allocate(static_cast<size_t>(bytes));
    ASSERT_TRUE(data);
    for (int64_t i = 0; i < bytes; ++i) data->data()[i] = std::byte{static_cast<uint8_t>(random())};
    // The high bytes of floats: numbers near 0.06 in F16, near 0.01 in F32.
    const bool wide = dtype == DType::kF32;
    const int last = wide ? 3 : 1;
    const std::byte high{static_cast<uint8_t>(wide ? 0x3c : 0x2c)};
    for (int64_t i = 0; i < bytes; i += block) data->data()[i + last] = high;
    for (int64_t i = 3; dtype == DType::kQ4_1 && i < bytes; i += block) data->data()[i] = std::byte{0x2c};
    t.dtype = dtype;
    t.random.reset();
    t.data = data->data();
    t.bytes = static_cast<size_t>(bytes);
    c.weights.copies.push_back(std::move(*data));
  }
}

std::vector<Case> cases() {
  std::vector<Case> all = {{"bf16", "tiny_llama/base", ""},   {"int4", "tiny_llama/base", "int4"},
                           {"fp8", "tiny_llama/base", "fp8"}, {"random", "", ""},
                           {"random_int4", "", "int4"},       {"random_fp8", "", "fp8"}};
  for (const DType t : kStored) all.push_back({std::string(info(t).name), "", "", t});
  for (const auto& entry : fs::directory_iterator(golden()))
    if (const std::string name = entry.path().filename(); name.starts_with("quant_"))
      all.push_back({.name = name, .folder = name});
  return all;
}

Result<Checkpoint> open(const Case& c) {
  DI_ASSIGN(Checkpoint checkpoint, c.folder.empty() ? random_checkpoint(nine_heads(), "nine", 5)
                                                    : open_weights(golden() / c.folder));
  if (c.stored != DType::kBF16) store_as(c.stored, checkpoint);
  if (!c.online.empty()) DI_TRY(set_quantization(checkpoint, c.online));
  return checkpoint;
}

class CutMatrices : public testing::TestWithParam<Case> {};

// How far a part may be from the whole: not at all, but for what act order makes plain numbers of 16 bits.
void expect_part(const std::vector<float>& whole, const Extent& rows, const Extent& cols,
                 const std::vector<float>& part, float relative, const std::string& what) {
  ASSERT_EQ(part.size(), static_cast<size_t>(rows.run.count * cols.run.count)) << what;
  for (int64_t r = 0; r < rows.run.count; ++r)
    for (int64_t j = 0; j < cols.run.count; ++j) {
      const float want = whole[(rows.run.first + r) * cols.size + cols.run.first + j];
      const float got = part[r * cols.run.count + j];
      ASSERT_LE(std::fabs(got - want), relative * std::fabs(want))
          << what << ", row " << r << ", column " << j;
    }
}

TEST_P(CutMatrices, AreTheirPartOfTheWhole) {
  const auto c = open(GetParam());
  ASSERT_TRUE(c) << c.error().message;
  const ModelConfig& m = c->config;
  const Shard all = whole_model(m);
  const std::string layer = fmt::format("model.layers.{}.", m.layers - 1);
  ThreadPool pool(2);
  int cut = 0;
  for (int ranks = 2; ranks <= 4; ++ranks)
    for (int r = 0; r < ranks; ++r) {
      const auto s = plan_shard(m, c->weights, r, ranks);
      if (!s) {
        EXPECT_EQ(s.error().code, ErrorCode::kConfig);
        continue;
      }
      ++cut;
      const Extent H = m.hidden, F{m.ffn, s->ffn};
      const struct {
        const char* name;
        Extent rows, cols;
      } matrices[] = {{"self_attn.q_proj", s->q(m), H},
                      {"self_attn.k_proj", s->kv(m), H},
                      {"self_attn.v_proj", s->kv(m), H},
                      {"self_attn.o_proj", H, s->q(m)},
                      {"mlp.gate_proj", F, H},
                      {"mlp.up_proj", F, H},
                      {"mlp.down_proj", H, F}};
      for (const auto& x : matrices) {
        const std::string name = layer + x.name + ".weight";
        const std::string what = fmt::format("{}, rank {} of {}", name, r, ranks);
        const auto order = RowOrder::kConcatenated;
        const auto whole = read_linear(c->weights, {{name, x.rows.size}}, x.cols.size, order, &pool);
        const auto part = read_linear(c->weights, {{name, x.rows}}, x.cols, order, &pool);
        ASSERT_TRUE(whole && part) << (whole ? part.error().message : whole.error().message);
        const bool permuted = !whole->source.column_order.empty() && !x.cols.all();
        EXPECT_EQ(has_codes(part->source.dtype), has_codes(whole->source.dtype) && !permuted) << what;
        expect_part(values_of(whole->source), x.rows, x.cols, values_of(part->source),
                    permuted ? 1.0f / 512 : 0, what);
      }
    }
  EXPECT_GE(cut, 2) << "at least two ranks share this model";
}

INSTANTIATE_TEST_SUITE_P(Formats, CutMatrices, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace deepinfer
