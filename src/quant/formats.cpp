#include "quant/formats.h"

#include <algorithm>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr QuantFormat kFormats[] = {
    {"F32", DType::kF32, 1, dequantize_f32},     {"F16", DType::kF16, 1, dequantize_f16},
    {"BF16", DType::kBF16, 1, dequantize_bf16},  {"Q4_0", DType::kQ4_0, 32, dequantize_q4_0},
    {"Q4_1", DType::kQ4_1, 32, dequantize_q4_1}, {"Q8_0", DType::kQ8_0, 32, dequantize_q8_0},
};

}  // namespace

std::span<const QuantFormat> quant_formats() {
  return kFormats;
}

const QuantFormat* find_format(DType dtype) {
  const auto* it = std::find_if(std::begin(kFormats), std::end(kFormats),
                                [&](const QuantFormat& f) { return f.dtype == dtype; });
  return it == std::end(kFormats) ? nullptr : it;
}

Result<LinearSource> shard_rows(const LinearSource& source, int rank, int ranks) {
  DI_CHECK(ranks > 0 && rank >= 0 && rank < ranks, "rank {} of {}", rank, ranks);
  LinearSource out = source;
  const int64_t bytes = row_bytes(source.dtype, source.cols);
  for (LinearPart& part : out.parts) {
    if (part.rows % ranks != 0)
      return make_error(ErrorCode::kUnsupported, "a weight of {} rows does not divide over {} ranks",
                        part.rows, ranks);
    part.rows /= ranks;
    if (part.random)
      part.random->first += rank * part.rows * source.cols;
    else
      part.data = static_cast<const std::byte*>(part.data) + rank * part.rows * bytes;
  }
  return out;
}

}  // namespace deepinfer
