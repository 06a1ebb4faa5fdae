#include "quantize/awq.h"

#include <algorithm>
#include <cmath>

#include "quantize/grid.h"

namespace deepinfer::quantize {
namespace {

constexpr int kAlphas = 20;

// [cols]: the mean over all rows of |w| relative to the largest of its group.
std::vector<float> weight_magnitudes(std::span<const Linear* const> linears, int64_t group) {
  const int64_t cols = linears.front()->cols;
  std::vector<double> sums(cols);
  double rows = 0;
  for (const Linear* l : linears) {
    rows += static_cast<double>(l->rows);
    for (int64_t at = 0; at < l->rows * cols; at += cols)
      for (int64_t g = 0; g < cols; g += group) {
        const int64_t n = std::min(group, cols - g);
        const Range range = range_of(l->weight.data() + at + g, n);
        const float most = std::max({-range.low, range.high, 1e-12f});
        for (int64_t j = g; j < g + n; ++j) sums[j] += std::abs(l->weight[at + j]) / most;
      }
  }
  std::vector<float> means(cols);
  for (int64_t j = 0; j < cols; ++j) means[j] = static_cast<float>(sums[j] / rows);
  return means;
}

// The mean over the columns that share a factor.
void share(std::vector<float>& values, const std::vector<int32_t>& shared) {
  if (shared.empty()) return;
  const int32_t n = *std::max_element(shared.begin(), shared.end()) + 1;
  std::vector<double> sums(n), counts(n);
  for (size_t j = 0; j < values.size(); ++j) {
    sums[shared[j]] += values[j];
    counts[shared[j]] += 1;
  }
  for (size_t j = 0; j < values.size(); ++j)
    values[j] = static_cast<float>(sums[shared[j]] / counts[shared[j]]);
}

// x^alpha / w^(1 - alpha), or without w; centred around 1.
std::vector<float> factors_of(const std::vector<float>& x, const std::vector<float>& w, float alpha,
                              bool both) {
  std::vector<float> f(x.size());
  for (size_t j = 0; j < x.size(); ++j) {
    const float below = both ? std::pow(std::max(w[j], 1e-6f), 1 - alpha) : 1.0f;
    f[j] = std::max(std::pow(std::max(x[j], 1e-8f), alpha) / below, 1e-4f);
  }
  const auto [least, most] = std::minmax_element(f.begin(), f.end());
  const float middle = std::sqrt(*least * *most);
  // Factors further out than F16 scales and norms can follow would only lose precision.
  for (float& v : f) v = std::clamp(v / middle, 1.0f / 512, 512.0f);
  return f;
}

// w - its rounded form, when the columns are scaled by the factors for the rounding.
void rounding_error(const Linear& l, const std::vector<float>& factors, const AwqOptions& options,
                    ThreadPool& pool, std::vector<float>& out) {
  const GridSpec spec{.symmetric = false, .scale_dtype = options.scale_dtype};
  const int64_t cols = l.cols;
  pool.run([&](int thread) {
    std::vector<float> scaled(options.group);
    for (int64_t r = thread; r < l.rows; r += pool.size())
      for (int64_t g = 0; g < cols; g += options.group) {
        const int64_t n = std::min(options.group, cols - g);
        const float* w = l.weight.data() + r * cols + g;
        for (int64_t j = 0; j < n; ++j) scaled[j] = w[j] * factors[g + j];
        const Grid grid = grid_of(spec, range_of(scaled.data(), n));
        const float inverse = 1 / grid.scale, low = static_cast<float>(-grid.zero), high = 15 + low;
        for (int64_t j = 0; j < n; ++j) {
          const float code = std::min(high, std::max(low, std::nearbyint(scaled[j] * inverse)));
          out[r * cols + g + j] = w[j] - code * grid.scale / factors[g + j];
        }
      }
  });
}

double loss(ThreadPool& pool, const InputStatistics& input, const std::vector<Linear>& sampled,
            const std::vector<double>& shares, const std::vector<float>& factors, const AwqOptions& options) {
  double total = 0;
  std::vector<float> d;
  for (size_t i = 0; i < sampled.size(); ++i) {
    d.resize(sampled[i].weight.size());
    rounding_error(sampled[i], factors, options, pool, d);
    for (const double e : output_errors(pool, input, d, sampled[i].rows)) total += e * shares[i];
  }
  return total;
}

// d gram d^T for one group: gram is the whole matrix's block that begins at `first`; product [n] is scratch.
float group_error(const InputStatistics& input, int64_t first, const float* d, int64_t n, float* product) {
  std::fill_n(product, n, 0.0f);
  for (int64_t i = 0; i < n; ++i) {
    const float* gram = input.gram.data() + (first + i) * input.cols + first;
    for (int64_t j = 0; j < n; ++j) product[j] += gram[j] * d[i];
  }
  float total = 0;
  for (int64_t j = 0; j < n; ++j) total += product[j] * d[j];
  return total;
}

// Of ranges from the whole down to half of it the one whose rounding changes the group's output least.
// scratch: [2 n].
Grid clipped_grid(const InputStatistics& input, int64_t first, const float* w, int64_t n, float* scratch,
                  const AwqOptions& options) {
  float* const d = scratch;
  constexpr int kSteps = 12;
  constexpr float kStep = 0.04f;
  const GridSpec spec{.symmetric = false, .scale_dtype = options.scale_dtype};
  const Range range = range_of(w, n);
  Grid best = grid_of(spec, range);
  float least = -1;
  for (int step = 0; step < kSteps; ++step) {
    const Grid grid = grid_of(spec, range, 1 - kStep * static_cast<float>(step));
    for (int64_t j = 0; j < n; ++j) d[j] = w[j] - grid.value(grid.code(w[j]));
    const float error = group_error(input, first, d, n, scratch + n);
    if (least < 0 || error < least) {
      least = error;
      best = grid;
    }
  }
  return best;
}

// Rows spread over the whole linear: enough to tell factors apart.
Linear sampled_rows(const Linear& l) {
  constexpr int64_t kRows = 384;
  Linear out{.name = l.name, .rows = std::min(l.rows, kRows), .cols = l.cols, .weight = {}, .bias = {}};
  for (int64_t i = 0; i < out.rows; ++i) {
    const auto row = l.weight.begin() + i * l.rows / out.rows * l.cols;
    out.weight.insert(out.weight.end(), row, row + l.cols);
  }
  return out;
}

}  // namespace

std::vector<float> search_scales(ThreadPool& pool, const InputStatistics& input,
                                 std::span<const Linear* const> linears, const std::vector<int32_t>& shared,
                                 const AwqOptions& options) {
  std::vector<float> x = input.mean_abs, w = weight_magnitudes(linears, options.group);
  share(x, shared);
  share(w, shared);
  std::vector<Linear> sampled;
  std::vector<double> shares;  // how many rows of a linear each sampled row stands for
  for (const Linear* l : linears) {
    sampled.push_back(sampled_rows(*l));
    shares.push_back(static_cast<double>(l->rows) / static_cast<double>(sampled.back().rows));
  }
  std::vector<float> best(x.size(), 1.0f);
  double least = loss(pool, input, sampled, shares, best, options);
  for (const bool both : {true, false})
    for (int i = 0; i < kAlphas; ++i) {
      if (!both && i == 0) continue;  // all factors 1
      std::vector<float> factors = factors_of(x, w, static_cast<float>(i) / kAlphas, both);
      const double error = loss(pool, input, sampled, shares, factors, options);
      if (error >= least) continue;
      least = error;
      best = std::move(factors);
    }
  return best;
}

InputStatistics divided(InputStatistics input, const std::vector<float>& factors) {
  const int64_t n = input.cols;
  for (int64_t i = 0; i < n; ++i) {
    input.mean_abs[i] /= factors[i];
    for (int64_t j = 0; j < n; ++j) input.gram[i * n + j] /= factors[i] * factors[j];
  }
  return input;
}

QuantizedLinear quantize_awq(ThreadPool& pool, const InputStatistics& input, const AwqOptions& options,
                             Linear linear, const std::vector<float>& factors) {
  const int64_t rows = linear.rows, cols = linear.cols;
  const RoundSpec spec{
      .dtype = DType::kU4, .group = options.group, .symmetric = false, .scale_dtype = options.scale_dtype};
  QuantizedLinear out{.name = linear.name,
                      .coded = empty_codes(spec, rows, cols),
                      .order = {},
                      .bias = std::move(linear.bias)};
  const int64_t groups = spec.groups(cols);
  pool.run([&](int thread) {
    std::vector<float> d(2 * options.group);
    for (int64_t r = thread; r < rows; r += pool.size()) {
      float* w = linear.weight.data() + r * cols;
      for (int64_t j = 0; j < cols; ++j) w[j] *= factors[j];
      std::byte* codes = out.coded.codes.data() + r * row_bytes(DType::kU4, cols);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * options.group, n = std::min(options.group, cols - first);
        const Grid grid = clipped_grid(input, first, w + first, n, d.data(), options);
        store_scale(options.scale_dtype, grid.scale, out.coded.scales.data(), r * groups + g);
        out.coded.zeros[r * groups + g] = static_cast<int16_t>(grid.zero);
        for (int64_t j = first; j < first + n; ++j) set_u4(codes, j, grid.code(w[j]));
      }
    }
  });
  return out;
}

}  // namespace deepinfer::quantize
