// GPTQ's layout, version 1. Source: AutoGPTQ and GPTQModel, the QuantLinear classes' pack().
#include "quantize/pack.h"

namespace deepinfer::quantize {

void pack_gptq(const QuantizedLinear& linear, std::vector<OutTensor>& out) {
  const CodedRows& c = linear.coded;
  const int64_t N = c.rows, K = c.cols, groups = c.spec.groups(K), group = c.spec.group_of(K);
  OutTensor weight = word_tensor(linear.name + ".qweight", {K / 8, N});  // 8 rows of K a word, the first low
  OutTensor zeros = word_tensor(linear.name + ".qzeros", {groups, N / 8});
  OutTensor indices = word_tensor(linear.name + ".g_idx", {K});
  for (int64_t j = 0; j < K; ++j) {
    const int64_t column = linear.order.empty() ? j : linear.order[j];
    words(indices)[column] = static_cast<uint32_t>(j / group);
    for (int64_t r = 0; r < N; ++r) {
      const auto code = static_cast<uint32_t>(get_u4(c.codes.data() + r * (K / 2), j));
      words(weight)[column / 8 * N + r] |= code << column % 8 * 4;
    }
  }
  for (int64_t r = 0; r < N; ++r)
    for (int64_t g = 0; g < groups; ++g) {
      const int zero = c.zeros.empty() ? c.spec.zero() : c.zeros[r * groups + g];
      words(zeros)[g * (N / 8) + r / 8] |= static_cast<uint32_t>((zero - 1) & 15) << r % 8 * 4;
    }
  out.push_back(std::move(weight));
  out.push_back(std::move(zeros));
  out.push_back(transposed_scales(linear));
  out.push_back(std::move(indices));
}

}  // namespace deepinfer::quantize
