#include "quantize/gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "quantize/cholesky.h"
#include "quantize/gemm.h"
#include "quantize/grid.h"

namespace deepinfer::quantize {
namespace {

constexpr int64_t kBlock = 128;  // columns whose corrections to later ones are applied as one product

std::vector<int32_t> largest_first(const std::vector<float>& diagonal) {
  std::vector<int32_t> order(diagonal.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return diagonal[a] != diagonal[b] ? diagonal[a] > diagonal[b] : a < b;
  });
  return order;
}

// The columns of each row in another order.
std::vector<float> reordered(const std::vector<float>& m, int64_t rows, const std::vector<int32_t>& order) {
  const auto cols = static_cast<int64_t>(order.size());
  std::vector<float> out(m.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < cols; ++j) out[r * cols + j] = m[r * cols + order[j]];
  return out;
}

class Solver {
 public:
  Solver(ThreadPool& pool, const GptqInput& input, const GptqOptions& options, Linear& linear,
         CodedRows& coded)
      : pool_(pool), input_(input), options_(options), w_(linear.weight), coded_(coded) {}

  void run() {
    const int64_t rows = coded_.rows, cols = coded_.cols;
    grids_.resize(rows);
    errors_.resize(rows * kBlock);
    for (int64_t first = 0; first < cols; first += kBlock) {
      const int64_t size = std::min(kBlock, cols - first), after = first + size;
      pool_.run([&](int thread) {
        for (int64_t r = thread; r < rows; r += pool_.size()) round_block(r, first, size);
      });
      if (after == cols) break;
      multiply(pool_, {.a = {errors_.data(), rows, size, kBlock, 1},
                       .b = {input_.u.data() + first * cols + after, size, cols - after, cols, 1},
                       .c = w_.data() + after,
                       .c_stride = cols,
                       .add = true,
                       .negate = true});
    }
  }

 private:
  // Columns [first, first + size) of a row; what each loses goes to the later ones of the block here, to
  // those after it through errors_.
  void round_block(int64_t row, int64_t first, int64_t size) {
    const int64_t cols = coded_.cols, groups = coded_.spec.groups(cols);
    float* w = w_.data() + row * cols;
    std::byte* codes = coded_.codes.data() + row * row_bytes(DType::kU4, cols);
    Grid& grid = grids_[row];
    for (int64_t j = first; j < first + size; ++j) {
      if (j % options_.group == 0) {
        const GridSpec spec{.symmetric = true, .scale_dtype = options_.scale_dtype};
        const int64_t n = std::min(options_.group, cols - j);
        grid = best_grid(spec, w + j, input_.importance.data() + j, n);
        store_scale(options_.scale_dtype, grid.scale, coded_.scales.data(),
                    row * groups + j / options_.group);
      }
      const int code = grid.code(w[j]);
      set_u4(codes, j, code);
      const float* u = input_.u.data() + j * cols;
      const float error = (w[j] - grid.value(code)) / u[j];
      errors_[row * kBlock + j - first] = error;
      for (int64_t k = j + 1; k < first + size; ++k) w[k] -= error * u[k];
    }
  }

  ThreadPool& pool_;
  const GptqInput& input_;
  const GptqOptions& options_;
  std::vector<float>& w_;
  CodedRows& coded_;
  std::vector<Grid> grids_;    // of each row's present group
  std::vector<float> errors_;  // [rows, kBlock]
};

}  // namespace

Result<GptqInput> prepare_gptq(ThreadPool& pool, const InputStatistics& s, const GptqOptions& options) {
  const int64_t n = s.cols;
  std::vector<float> diagonal(n);
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += diagonal[i] = s.gram[i * n + i];
  mean /= static_cast<double>(n);
  if (!std::isfinite(mean))
    return make_error(ErrorCode::kModel,
                      "calibration: the inputs of a linear are not finite: the model overflows on this text");
  GptqInput input;
  std::vector<float> h = s.gram;
  if (mean == 0) mean = 1;
  for (int64_t i = 0; i < n;
       ++i)  // an input that is always 0 says nothing about its column: rounded as it is
    if (diagonal[i] == 0) h[i * n + i] = static_cast<float>(mean);
  input.importance = diagonal;
  for (float& x : input.importance) x = std::max(x, static_cast<float>(mean) * 1e-6f);
  if (options.act_order) {
    input.order = largest_first(diagonal);
    input.importance = reordered(input.importance, 1, input.order);
    const std::vector<float> columns = reordered(h, n, input.order);
    for (int64_t i = 0; i < n; ++i) std::copy_n(columns.data() + input.order[i] * n, n, h.data() + i * n);
  }
  input.damping = options.damping;
  float added = 0;
  for (int attempt = 0; attempt < 4; ++attempt, input.damping *= 10) {
    const float wanted = input.damping * static_cast<float>(mean);
    for (int64_t i = 0; i < n; ++i) h[i * n + i] += wanted - added;
    added = wanted;
    input.u = inverse_cholesky(pool, h, n);
    if (!input.u.empty()) return input;
  }
  return make_error(
      ErrorCode::kModel,
      "calibration: the inputs of a linear cannot be factored even with damping {}: give more, and "
      "more varied, calibration text",
      input.damping / 10);
}

QuantizedLinear quantize_gptq(ThreadPool& pool, const GptqInput& input, const GptqOptions& options,
                              Linear linear) {
  const RoundSpec spec{
      .dtype = DType::kU4, .group = options.group, .symmetric = true, .scale_dtype = options.scale_dtype};
  QuantizedLinear out{.name = linear.name,
                      .coded = empty_codes(spec, linear.rows, linear.cols),
                      .order = input.order,
                      .bias = std::move(linear.bias)};
  if (!input.order.empty()) linear.weight = reordered(linear.weight, linear.rows, input.order);
  Solver(pool, input, options, linear, out.coded).run();
  return out;
}

}  // namespace deepinfer::quantize
