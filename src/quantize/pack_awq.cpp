// AWQ's layout "gemm". Source: AutoAWQ, awq/modules/linear/gemm.py, WQLinear_GEMM.from_linear().
#include "quantize/pack.h"

namespace deepinfer::quantize {
namespace {

// Which of 8 output features stands in each nibble of a word, the lowest first.
constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

}  // namespace

void pack_awq(const QuantizedLinear& linear, std::vector<OutTensor>& out) {
  const CodedRows& c = linear.coded;
  const int64_t N = c.rows, K = c.cols, groups = c.spec.groups(K);
  OutTensor weight = word_tensor(linear.name + ".qweight", {K, N / 8});
  OutTensor zeros = word_tensor(linear.name + ".qzeros", {groups, N / 8});
  for (int64_t word = 0; word < N / 8; ++word)
    for (int nibble = 0; nibble < 8; ++nibble) {
      const int64_t r = word * 8 + kOrder[nibble];
      const std::byte* codes = c.codes.data() + r * (K / 2);
      for (int64_t j = 0; j < K; ++j)
        words(weight)[j * (N / 8) + word] |= static_cast<uint32_t>(get_u4(codes, j)) << nibble * 4;
      for (int64_t g = 0; g < groups; ++g)
        words(zeros)[g * (N / 8) + word] |= static_cast<uint32_t>(c.zeros[r * groups + g]) << nibble * 4;
    }
  out.push_back(std::move(weight));
  out.push_back(std::move(zeros));
  out.push_back(transposed_scales(linear));
}

}  // namespace deepinfer::quantize
