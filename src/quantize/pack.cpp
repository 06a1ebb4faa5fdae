#include "quantize/pack.h"

namespace deepinfer::quantize {

OutTensor float_tensor(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& values,
                       DType dtype) {
  OutTensor t{name, std::string(info(dtype).name), std::move(shape), {}};
  t.data.resize(row_bytes(dtype, static_cast<int64_t>(values.size())));
  for (size_t i = 0; i < values.size(); ++i)
    store_scale(dtype, values[i], t.data.data(), static_cast<int64_t>(i));
  return t;
}

OutTensor word_tensor(const std::string& name, std::vector<int64_t> shape) {
  int64_t n = 4;
  for (const int64_t extent : shape) n *= extent;
  return {name, "I32", std::move(shape), std::vector<std::byte>(n)};
}

OutTensor transposed_scales(const QuantizedLinear& linear) {
  const CodedRows& c = linear.coded;
  const int64_t groups = c.spec.groups(c.cols), bytes = row_bytes(c.spec.scale_dtype, 1);
  OutTensor t{linear.name + ".scales", std::string(info(c.spec.scale_dtype).name), {groups, c.rows}, {}};
  t.data.resize(c.scales.size());
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t g = 0; g < groups; ++g)
      std::copy_n(c.scales.data() + (r * groups + g) * bytes, bytes,
                  t.data.data() + (g * c.rows + r) * bytes);
  return t;
}

}  // namespace deepinfer::quantize
