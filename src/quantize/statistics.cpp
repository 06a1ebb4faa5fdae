#include "quantize/statistics.h"

#include <cmath>

#include "base/check.h"
#include "quantize/gemm.h"

namespace deepinfer::quantize {

InputStatistics input_statistics(ThreadPool& pool, const std::vector<float>& x, int64_t cols) {
  const int64_t tokens = static_cast<int64_t>(x.size()) / cols;
  DI_CHECK(tokens > 0, "{} values, {} columns", x.size(), cols);
  InputStatistics s{.cols = cols, .gram = std::vector<float>(cols * cols), .mean_abs = {}};
  const MatrixView view = row_major(x.data(), tokens, cols);
  multiply(pool,
           {.a = view.transposed(), .b = view, .c = s.gram.data(), .c_stride = cols, .upper_only = true});
  const float scale = 2.0f / static_cast<float>(tokens);
  for (int64_t i = 0; i < cols; ++i)
    for (int64_t j = i; j < cols; ++j) s.gram[j * cols + i] = s.gram[i * cols + j] *= scale;
  std::vector<double> sums(cols);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < cols; ++j) sums[j] += std::abs(x[t * cols + j]);
  s.mean_abs.resize(cols);
  for (int64_t j = 0; j < cols; ++j)
    s.mean_abs[j] = static_cast<float>(sums[j] / static_cast<double>(tokens));
  return s;
}

std::vector<double> output_errors(ThreadPool& pool, const InputStatistics& input, const std::vector<float>& d,
                                  int64_t rows) {
  const int64_t K = input.cols;
  std::vector<float> product(rows * K);
  multiply(pool, {.a = row_major(d.data(), rows, K),
                  .b = row_major(input.gram.data(), K, K),
                  .c = product.data(),
                  .c_stride = K});
  std::vector<double> errors(rows);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < K; ++j) errors[i] += static_cast<double>(d[i * K + j]) * product[i * K + j];
  return errors;
}

}  // namespace deepinfer::quantize
