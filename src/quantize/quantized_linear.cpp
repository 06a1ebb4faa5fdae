#include "quantize/quantized_linear.h"

#include "quant/codes.h"

namespace deepinfer::quantize {

CodedRows empty_codes(const RoundSpec& spec, int64_t rows, int64_t cols) {
  CodedRows coded{.spec = spec, .rows = rows, .cols = cols};
  coded.codes.resize(rows * row_bytes(spec.dtype, cols));
  coded.scales.resize(rows * spec.groups(cols) * row_bytes(spec.scale_dtype, 1));
  if (!spec.symmetric) coded.zeros.resize(rows * spec.groups(cols));
  return coded;
}

std::vector<float> dequantize_rows(const CodedRows& coded) {
  std::vector<float> out(coded.rows * coded.cols);
  const LinearSource source = coded.source();
  for (int64_t r = 0; r < coded.rows; ++r)
    dequantize_codes(source, source.parts.front(), r, out.data() + r * coded.cols);
  return out;
}

std::vector<float> QuantizedLinear::dequantize() const {
  std::vector<float> out(coded.rows * coded.cols);
  LinearSource source = coded.source();
  source.column_order = order;
  for (int64_t r = 0; r < coded.rows; ++r)
    dequantize_codes(source, source.parts.front(), r, out.data() + r * coded.cols);
  return out;
}

void QuantizedLinear::divide_rows(const std::vector<float>& divisors) {
  const int64_t groups = coded.spec.groups(coded.cols);
  const DType dtype = coded.spec.scale_dtype;
  for (int64_t r = 0; r < coded.rows; ++r)
    for (int64_t g = r * groups; g < (r + 1) * groups; ++g)
      store_scale(dtype, load_scale(dtype, coded.scales.data(), g) / divisors[r], coded.scales.data(), g);
  for (size_t r = 0; r < bias.size(); ++r) bias[r] /= divisors[r];
}

}  // namespace deepinfer::quantize
