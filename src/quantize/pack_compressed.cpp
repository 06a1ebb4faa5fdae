// Layouts of compressed-tensors. Source: its compressors/pack_quantized and float_quantized.
#include <bit>
#include <span>

#include "quantize/pack.h"

namespace deepinfer::quantize {
namespace {

OutTensor scales_of(const QuantizedLinear& linear) {
  const CodedRows& c = linear.coded;
  return {linear.name + ".weight_scale",
          std::string(info(c.spec.scale_dtype).name),
          {c.rows, c.spec.groups(c.cols)},
          c.scales};
}

}  // namespace

void pack_int4(const QuantizedLinear& linear, std::vector<OutTensor>& out) {
  const CodedRows& c = linear.coded;
  // 8 columns a word, the first low, each plus 8: with the even column in a byte's low nibble these are the
  // codes as they stand.
  static_assert(std::endian::native == std::endian::little);
  out.push_back({linear.name + ".weight_packed", "I32", {c.rows, c.cols / 8}, c.codes});
  out.push_back(scales_of(linear));
  const int64_t shape[2] = {c.rows, c.cols};
  const auto bytes = std::as_bytes(std::span(shape));
  out.push_back({linear.name + ".weight_shape", "I64", {2}, {bytes.begin(), bytes.end()}});
}

void pack_fp8(const QuantizedLinear& linear, std::vector<OutTensor>& out) {
  const CodedRows& c = linear.coded;
  out.push_back({linear.name + ".weight", "F8_E4M3", {c.rows, c.cols}, c.codes});
  out.push_back(scales_of(linear));
}

}  // namespace deepinfer::quantize
