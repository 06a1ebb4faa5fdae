#include "ref/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace deepinfer::ref {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

std::vector<double> cleaned(std::span<const float> logits) {
  std::vector<double> x(logits.begin(), logits.end());
  for (double& v : x) {
    if (std::isnan(v)) v = kNone;
    if (v == std::numeric_limits<double>::infinity()) v = std::numeric_limits<float>::max();
  }
  return x;
}

// Each result is rounded to F32, which decides ties, and kept finite.
double rounded(double x) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return x == kNone ? x : static_cast<float>(std::min(x, kLargest));
}

void penalize(std::vector<double>& x, const SampleRow& row) {
  for (size_t token = 0; token < x.size(); ++token) {
    const auto id = static_cast<int32_t>(token);
    const auto in_output = static_cast<double>(std::count(row.output.begin(), row.output.end(), id));
    const bool in_prompt = std::count(row.prompt.begin(), row.prompt.end(), id) != 0;
    if (in_prompt || in_output > 0)
      x[token] =
          rounded(x[token] > 0 ? x[token] / row.repetition_penalty : x[token] * row.repetition_penalty);
    const double presence = in_output > 0 ? row.presence_penalty : 0;
    x[token] = rounded(x[token] - (row.frequency_penalty * in_output + presence));
  }
}

std::vector<double> softmax(const std::vector<double>& x) {
  const double max = *std::max_element(x.begin(), x.end());
  std::vector<double> p(x.size(), 0.0);
  if (max == kNone) return p;
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += p[i] = x[i] == kNone ? 0 : std::exp(x[i] - max);
  for (double& v : p) v /= sum;
  return p;
}

double entropy(const std::vector<double>& p) {
  double h = 0;
  for (double v : p) h -= v > 0 ? v * std::log(v) : 0;
  return h;
}

void cut_sigma(std::vector<double>& x, double n) {
  const double max = *std::max_element(x.begin(), x.end());
  double mean = 0, count = 0, variance = 0;
  for (double v : x) count += v != kNone;
  for (double v : x) mean += v != kNone ? v / count : 0;
  for (double v : x) variance += v != kNone ? (v - mean) * (v - mean) / count : 0;
  for (double& v : x)
    if (v < max - n * std::sqrt(variance)) v = kNone;
}

double dynamic_temperature(const std::vector<double>& x, const SampleRow& row) {
  if (x.size() < 2) return row.temperature;
  const double low = std::max(0.0, static_cast<double>(row.temperature) - row.dynatemp_range);
  const double high = static_cast<double>(row.temperature) + row.dynatemp_range;
  const double part = entropy(softmax(x)) / std::log(static_cast<double>(x.size()));
  return low + (high - low) * std::pow(part, row.dynatemp_exponent);
}

void cut_typical(std::vector<double>& x, double most) {
  const std::vector<double> p = softmax(x);
  const double h = entropy(p);
  std::vector<double> shifted(x.size(), -kNone);
  std::vector<int32_t> order;
  for (size_t i = 0; i < x.size(); ++i) {
    if (p[i] == 0) continue;
    shifted[i] = std::fabs(-std::log(p[i]) - h);
    order.push_back(static_cast<int32_t>(i));
  }
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return shifted[a] < shifted[b]; });
  double sum = 0, last = 0;
  for (int32_t token : order) {
    last = shifted[token];
    sum += p[token];
    if (sum > most) break;
  }
  // Equal logits differ by nothing, also where rounding says so.
  for (size_t i = 0; i < x.size(); ++i)
    if (shifted[i] > last + 1e-12 * (1 + last)) x[i] = kNone;
}

// All with at least the threshold but the last of them in rank.
void cut_xtc(std::vector<double>& x, double threshold) {
  const std::vector<double> p = softmax(x);
  std::vector<int32_t> above;
  for (int32_t token : ranking(x))
    if (p[token] >= threshold) above.push_back(token);
  for (size_t i = 0; i + 1 < above.size(); ++i) x[above[i]] = kNone;
}

void keep_first(std::vector<double>& x, size_t k) {
  const std::vector<int32_t> order = ranking(x);
  for (size_t i = k; i < order.size(); ++i) x[order[i]] = kNone;
}

void cut_mirostat(std::vector<double>& x, const SampleRow& row) {
  const std::vector<double> p = softmax(x);
  const std::vector<int32_t> order = ranking(x);
  if (row.mirostat == 2) {
    size_t k = 0;
    while (k < order.size() && p[order[k]] > 0 && -std::log2(p[order[k]]) <= row.mirostat_mu) ++k;
    return keep_first(x, std::max<size_t>(k, 1));
  }
  double products = 0, squares = 0;
  for (size_t i = 0; i < 99 && i + 1 < order.size() && p[order[i + 1]] > 0; ++i) {
    const double t = std::log(static_cast<double>(i + 2) / static_cast<double>(i + 1));
    products += t * std::log(p[order[i]] / p[order[i + 1]]);
    squares += t * t;
  }
  if (squares == 0) return keep_first(x, 1);
  const double slope = std::max(products / squares, 1e-9), e = slope - 1;
  const double quotient = std::fabs(e) < 1e-6 ? 1 / std::log(static_cast<double>(x.size()))
                                              : e / (1 - std::pow(static_cast<double>(x.size()), -e));
  const double k = std::pow(quotient * std::exp2(static_cast<double>(row.mirostat_mu)), 1 / slope);
  keep_first(x, k < static_cast<double>(x.size()) ? static_cast<size_t>(std::max(k, 1.0)) : x.size());
}

}  // namespace

std::vector<int32_t> ranking(std::span<const double> logits) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::sort(ids.begin(), ids.end(),
            [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  return ids;
}

std::vector<double> log_softmax(std::span<const float> logits) {
  std::vector<double> x = cleaned(logits);
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double v : x) sum += v == kNone ? 0 : std::exp(v - max);
  for (double& v : x) v = v == kNone ? kNone : v - max - std::log(sum);
  return x;
}

namespace {

// After mask, bias and penalties; something is finite.
std::vector<double> shaped(std::vector<double> x, const SampleRow& row, bool xtc_hits) {
  const int32_t first = ranking(x)[0];
  std::vector<double> p(x.size(), 0.0);
  if (row.greedy()) {
    p[first] = 1;
    return p;
  }
  const bool mirostat = row.mirostat != 0;
  double temperature = row.temperature;
  if (row.top_n_sigma > 0 && !mirostat) cut_sigma(x, row.top_n_sigma);
  if (row.dynatemp_range > 0 && !mirostat) temperature = dynamic_temperature(x, row);
  if (temperature < 1e-5) {
    p[first] = 1;
    return p;
  }
  for (double& v : x) v /= temperature;
  if (mirostat) {
    cut_mirostat(x, row);
    return softmax(x);
  }
  if (row.min_p > 0) {
    const double floor = x[first] + std::log(static_cast<double>(row.min_p));
    for (double& v : x)
      if (v < floor) v = kNone;
  }
  if (row.top_k > 0) keep_first(x, row.top_k);
  if (row.typical_p < 1) cut_typical(x, row.typical_p);
  if (row.top_p < 1) {
    const std::vector<double> before = softmax(x);
    double sum = 0;
    for (int32_t token : ranking(x)) {
      if (sum >= row.top_p) x[token] = kNone;
      sum += before[token];
    }
  }
  if (xtc_hits && row.has_xtc()) cut_xtc(x, std::max(static_cast<double>(row.xtc_threshold), 1e-7));
  return softmax(x);
}

}  // namespace

std::vector<double> token_probabilities(std::span<const float> logits, const SampleRow& row,
                                        std::optional<bool> xtc_hits) {
  std::vector<double> x = cleaned(logits);
  const std::vector<double> none(x.size(), kNone);
  std::vector<double> allowed(x.size(), 1);
  for (size_t i = 0; i < x.size(); ++i)
    if (row.mask != nullptr && (row.mask[i / 32] >> (i % 32) & 1) == 0) allowed[i] = 0;
  for (int32_t token : row.banned) allowed[token] = 0;
  for (size_t i = 0; i < x.size(); ++i)
    if (allowed[i] == 0) x[i] = kNone;
  for (const LogitBias& b : row.bias) x[b.token] = rounded(x[b.token] + b.bias);
  penalize(x, row);
  for (const LogitBias& b : row.late_bias) x[b.token] = rounded(x[b.token] + b.bias);

  if (x == none) {
    std::vector<double> p(x.size(), 0.0);
    const auto first = std::find(allowed.begin(), allowed.end(), 1.0);
    p[first == allowed.end() ? 0 : first - allowed.begin()] = 1;
    return p;
  }
  if (xtc_hits || !row.has_xtc()) return shaped(x, row, xtc_hits.value_or(false));
  std::vector<double> p = shaped(x, row, false);
  const std::vector<double> hit = shaped(x, row, true);
  const double part = std::min(1.0, static_cast<double>(row.xtc_probability));
  for (size_t i = 0; i < p.size(); ++i) p[i] = (1 - part) * p[i] + part * hit[i];
  return p;
}

}  // namespace deepinfer::ref
