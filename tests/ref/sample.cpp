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
  std::vector<double> p(x.size());
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += p[i] = x[i] == kNone ? 0 : std::exp(x[i] - max);
  for (double& v : p) v /= sum;
  return p;
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

std::vector<double> token_probabilities(std::span<const float> logits, const SampleRow& row) {
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

  std::vector<double> p(x.size(), 0.0);
  if (x == none) {
    const auto first = std::find(allowed.begin(), allowed.end(), 1.0);
    p[first == allowed.end() ? 0 : first - allowed.begin()] = 1;
    return p;
  }
  const std::vector<int32_t> order = ranking(x);
  if (row.temperature < 1e-5f) {
    p[order[0]] = 1;
    return p;
  }
  for (double& v : x) v /= row.temperature;
  if (row.min_p > 0) {
    const double floor = x[order[0]] + std::log(static_cast<double>(row.min_p));
    for (double& v : x)
      if (v < floor) v = kNone;
  }
  if (row.top_k > 0)
    for (size_t i = row.top_k; i < order.size(); ++i) x[order[i]] = kNone;
  if (row.top_p < 1) {
    const std::vector<double> before = softmax(x);
    double sum = 0;
    for (int32_t token : order) {
      if (sum >= row.top_p) x[token] = kNone;
      sum += before[token];
    }
  }
  return softmax(x);
}

}  // namespace deepinfer::ref
