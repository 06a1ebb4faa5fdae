#include "quant/online.h"

#include <atomic>

#include "base/check.h"
#include "quant/formats.h"

namespace deepinfer {
namespace {

// One row as F32. `bits` is for random values, which stand nowhere.
void read_row(const RawTensor& m, const QuantFormat& format, int64_t row, float* out,
              std::vector<std::byte>& bits) {
  const int64_t cols = m.shape[1];
  if (m.random) {
    write_random(*m.random, row * cols, (row + 1) * cols, bits.data());
    dequantize_bf16(bits.data(), cols, out);
  } else {
    format.dequantize(m.data + row * row_bytes(m.dtype, cols), cols, out);
  }
}

}  // namespace

RoundSpec online_spec(std::string_view method, int64_t cols) {
  if (method == "fp8") return {.dtype = DType::kF8E4M3, .group = 0, .scale_dtype = DType::kF32};
  int64_t group = 32;
  if (cols % 64 == 0) group = 64;
  if (cols % 128 == 0) group = 128;
  return {.dtype = DType::kU4, .group = group, .scale_dtype = DType::kF16};
}

double online_bits(std::string_view method) {
  return method == "fp8" ? 8 : 4 + 16.0 / 128;
}

Result<CodedMatrix> quantize_matrix(const RawTensor& m, const RoundSpec& spec, ThreadPool* pool) {
  const QuantFormat* format = find_format(m.dtype);
  DI_CHECK(format != nullptr && format->group == 1 && m.shape.size() == 2, "{}: {} of rank {} to quantize",
           m.origin, info(m.dtype).name, m.shape.size());
  const int64_t rows = m.shape[0], cols = m.shape[1];
  if (cols % 2 != 0)
    return make_error(ErrorCode::kUnsupported, "{}: {} columns cannot be quantized, expected an even number",
                      m.origin, cols);
  CodedMatrix out{.dtype = spec.dtype,
                  .rows = rows,
                  .cols = cols,
                  .group = spec.group_of(cols),
                  .scale_dtype = spec.scale_dtype,
                  .zero = spec.zero()};
  const int64_t bytes = row_bytes(spec.dtype, cols), scale_bytes = row_bytes(spec.scale_dtype, out.groups());
  DI_ASSIGN(out.own_codes, Buffer::allocate(static_cast<size_t>(rows * bytes)));
  out.codes = out.own_codes.data();
  out.scales.resize(static_cast<size_t>(rows * scale_bytes));
  if (!spec.symmetric) out.zeros.resize(static_cast<size_t>(rows * out.groups()));
  std::atomic<int64_t> bad = -1;
  const int threads = pool != nullptr ? pool->size() : 1;
  const auto work = [&](int t) {
    std::vector<float> x(static_cast<size_t>(cols));
    std::vector<std::byte> bits(m.random ? static_cast<size_t>(cols) * 2 : 0);
    for (int64_t r = rows * t / threads; r < rows * (t + 1) / threads; ++r) {
      read_row(m, *format, r, x.data(), bits);
      if (!all_finite(x.data(), cols)) bad = r;
      round_row(spec, x.data(), cols, out.own_codes.data() + r * bytes, out.scales.data() + r * scale_bytes,
                spec.symmetric ? nullptr : out.zeros.data() + r * out.groups());
    }
  };
  if (pool != nullptr)
    pool->run(work);
  else
    work(0);
  if (bad >= 0)
    return make_error(ErrorCode::kModel,
                      "{}: row {} holds something that is no finite number: the model cannot be quantized",
                      m.origin, bad.load());
  return out;
}

}  // namespace deepinfer
