// Random weights of codes with scales beside them, and what tests of CUDA's products with them share.
#pragma once

#include <gtest/gtest.h>

#include "backend/cuda.h"
#include "backend/cuda/linear.h"
#include "emulation/linear_fixture.h"
#include "quant/codes.h"

namespace deepinfer::test {

struct CodesCase {
  DType weight = DType::kU4, activation = DType::kBF16;
  int64_t group = 128;  // 0: whole rows
  DType scale = DType::kF16;
  bool points = false;   // zero points; else the same zero everywhere
  bool ordered = false;  // columns in another order than x
};

inline std::string codes_name(const testing::TestParamInfo<CodesCase>& i) {
  const CodesCase& c = i.param;
  return std::string(info(c.weight).name) + "_" + std::string(info(c.activation).name) + "_" +
         (c.group == 0 ? "row" : std::to_string(c.group)) + "_" + std::string(info(c.scale).name) +
         (c.points ? "_points" : "") + (c.ordered ? "_ordered" : "");
}

// Parts of a weight, with their storage, and their values in double precision.
class Codes {
 public:
  Codes(Random& random, const CodesCase& c, const std::vector<int64_t>& rows, int64_t cols) {
    source_ = {.dtype = c.weight, .cols = cols, .parts = {}};
    source_.group = c.group == 0 ? cols : std::min(c.group, cols);
    source_.scale_dtype = c.scale;
    source_.zero = c.weight == DType::kU8 ? 128 : 8;
    if (c.ordered) {
      for (int32_t i = 0; i < cols; ++i) source_.column_order.push_back(i);
      std::shuffle(source_.column_order.begin(), source_.column_order.end(), random);
    }
    storage_.resize(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) source_.parts.push_back(fill(random, c, rows[i], storage_[i]));
  }

  LinearSource source(RowOrder order = RowOrder::kConcatenated) const {
    LinearSource s = source_;
    s.order = order;
    return s;
  }
  LinearSource& mutable_source() { return source_; }

  LinearWeight pack(Context& context, RowOrder order = RowOrder::kConcatenated) const {
    const LinearSource s = source(order);
    const Result<void> checked = check_codes(s);
    DI_CHECK(checked.ok(), "{}", checked.error().message);
    Result<LinearWeight> packed = cuda::pack_linear(context, s);
    DI_CHECK(packed.ok(), "{}", packed.error().message);
    context.gpu->synchronize();  // a weight may be dropped again at once
    return std::move(packed).value();
  }

  // As the oracle gives it.
  std::vector<double> row(int64_t part, int64_t row) const {
    std::vector<float> values(static_cast<size_t>(source_.cols));
    dequantize_codes(source_, source_.parts[part], row, values.data());
    return {values.begin(), values.end()};
  }

 private:
  struct Storage {
    std::vector<std::byte> codes, scales;
    std::vector<int16_t> zeros;
  };

  LinearPart fill(Random& random, const CodesCase& c, int64_t rows, Storage& s) const {
    const int64_t groups = source_.groups() * rows;
    s.codes.resize(static_cast<size_t>(row_bytes(c.weight, source_.cols) * rows));
    for (std::byte& b : s.codes) b = static_cast<std::byte>(random());
    std::vector<float> scales;
    for (int64_t i = 0; i < groups; ++i)
      scales.push_back((c.weight == DType::kU8 ? 0.0015f : 0.02f) *
                       (1 + static_cast<float>(random() % 1000) / 500));
    s.scales.resize(scales.size() * (c.scale == DType::kF32 ? 4 : 2));
    encode(c.scale, scales, s.scales.data());
    const int most = c.weight == DType::kU8 ? 257 : 17;
    for (int64_t i = 0; c.points && i < groups; ++i) s.zeros.push_back(static_cast<int16_t>(random() % most));
    return {.data = s.codes.data(),
            .rows = rows,
            .scale = s.scales.data(),
            .zero = c.points ? s.zeros.data() : nullptr};
  }

  LinearSource source_;
  std::vector<Storage> storage_;
};

// Of a sum in F32 in any order over exact integers, each group times its scale; `rounded_to_a` where the
// weight is first expanded to A.
inline double codes_bound(const Sum& s, int64_t cols, double rounded_to_a) {
  return ((static_cast<double>(cols) + 8) * kEps + rounded_to_a) * s.magnitude + 1e-30;
}

}  // namespace deepinfer::test
