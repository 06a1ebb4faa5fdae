// What the tests of the operations share: a context, random weights in a file's layout, steps over a cache.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "ops/ops.h"
#include "ref/reference.h"

namespace deepinfer::test {

// A CPU context with threads and a scratch arena of its own.
struct Machine {
  explicit Machine(int threads, size_t scratch = size_t{64} << 20)
      : pool(threads), arena(std::move(Buffer::allocate(scratch)).value()) {
    context.pool = &pool;
    context.scratch = &arena;
  }
  ThreadPool pool;
  Arena arena;
  Context context;
};

using Random = std::mt19937_64;

inline std::vector<float> random_floats(Random& random, size_t n, float scale = 1.0f) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(random);
  return v;
}

// Rows as they stand in a file.
struct Matrix {
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  std::vector<std::byte> data;

  const std::byte* row(int64_t i) const { return data.data() + i * row_bytes(dtype, cols); }
  LinearPart part() const { return {data.data(), rows}; }
};

inline Matrix random_matrix(Random& random, DType dtype, int64_t rows, int64_t cols, double scale = 0.05) {
  Matrix m{dtype, rows, cols, std::vector<std::byte>(rows * row_bytes(dtype, cols))};
  const DTypeInfo& t = info(dtype);
  std::normal_distribution<double> normal(0, scale);
  for (size_t at = 0; at < m.data.size(); at += t.block_bytes) {
    std::byte* block = m.data.data() + at;
    const auto half = [&](int offset, double v) {
      const uint16_t bits = ref::to_f16(v);
      std::memcpy(block + offset, &bits, 2);
    };
    if (dtype == DType::kF32) {
      const float v = static_cast<float>(normal(random));
      std::memcpy(block, &v, 4);
    } else if (dtype == DType::kF16) {
      half(0, normal(random));
    } else if (dtype == DType::kBF16) {
      const uint16_t bits = ref::to_bf16(static_cast<float>(normal(random)));
      std::memcpy(block, &bits, 2);
    } else {
      for (int i = 0; i < t.block_bytes; ++i) block[i] = static_cast<std::byte>(random());
      half(0, (dtype == DType::kQ8_0 ? 0.03 : 0.4) * scale * (1 + static_cast<double>(random() % 100) / 50));
      if (dtype == DType::kQ4_1) half(2, -3 * scale * (1 + static_cast<double>(random() % 100) / 100));
    }
  }
  return m;
}

inline LinearWeight pack(Context& context, const std::vector<const Matrix*>& parts,
                         RowOrder order = RowOrder::kConcatenated) {
  LinearSource source{.dtype = parts[0]->dtype, .cols = parts[0]->cols, .parts = {}, .order = order};
  for (const Matrix* m : parts) source.parts.push_back(m->part());
  Result<LinearWeight> packed = ops::pack_linear(context, source);
  DI_CHECK(packed.ok(), "{}", packed.error().message);
  return std::move(packed).value();
}

inline Tensor tensor(std::vector<float>& v, std::initializer_list<int64_t> shape) {
  return make_tensor(v.data(), DType::kF32, shape);
}

// One step's rows, with the storage behind its spans.
struct Batch {
  struct Row {
    int32_t slot = 0;
    int32_t context_len = 0;
    std::vector<int32_t> tokens;
    std::vector<std::vector<int32_t>> blocks;  // [KV groups] ids by position
    bool logits = false;
  };

  explicit Batch(const std::vector<Row>& rows, int groups = 1) {
    row_start.push_back(0);
    tables.resize(groups);
    size_t stride = 0;
    for (const Row& r : rows)
      for (const auto& ids : r.blocks) stride = std::max(stride, ids.size());
    for (const Row& r : rows) {
      row_slot.push_back(r.slot);
      context_len.push_back(r.context_len);
      for (size_t i = 0; i < r.tokens.size(); ++i) {
        token.push_back(r.tokens[i]);
        position.push_back(r.context_len + static_cast<int32_t>(i));
      }
      row_start.push_back(static_cast<int32_t>(token.size()));
      if (r.logits) logit_token.push_back(row_start.back() - 1);
      for (int g = 0; g < groups; ++g) {
        std::vector<int32_t> ids = r.blocks.empty() ? std::vector<int32_t>() : r.blocks[g];
        ids.resize(stride, -1);
        tables[g].insert(tables[g].end(), ids.begin(), ids.end());
      }
    }
    for (auto& t : tables) views.push_back({t, static_cast<int32_t>(stride)});
    step = {.num_rows = static_cast<int32_t>(rows.size()),
            .num_tokens = static_cast<int32_t>(token.size()),
            .row_slot = row_slot,
            .row_start = row_start,
            .context_len = context_len,
            .token = token,
            .position = position,
            .block_table = views,
            .logit_token = logit_token};
  }
  Batch(const Batch&) = delete;

  std::vector<int32_t> row_slot, row_start, context_len, token, position, logit_token;
  std::vector<std::vector<int32_t>> tables;
  std::vector<BlockTable> views;
  StepBatch step;
};

}  // namespace deepinfer::test
