#include "card/comparison.h"

#include <algorithm>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <span>

#include "base/check.h"

namespace deepinfer::test {
namespace {

constexpr double kChance = 1e-3;

std::vector<double> said_by_device(const Position& p) {
  std::vector<double> logprob;
  for (const TokenLogprob& t : p.said.top) logprob.push_back(t.logprob);
  return logprob;
}

// Of the listed tokens, and of all others as one: never above the divergence of the whole distributions.
double divergence(std::span<const double> exact, std::span<const double> other) {
  double sum = 0, p_rest = 1, q_rest = 1;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double p = std::exp(exact[i]);
    sum += p * (exact[i] - other[i]);
    p_rest -= p;
    q_rest -= std::exp(other[i]);
  }
  // What float log-probabilities leave of one is noise below this.
  if (p_rest > 1e-5 && q_rest > 1e-5) sum += p_rest * std::log(p_rest / q_rest);
  return sum;
}

// Of the errors of log-probabilities, less their mean: what all have in common is the error of the sum over
// the vocabulary, which one token may dominate; the divergence shows it.
double mean_square(std::span<const double> exact, std::span<const double> other) {
  double sum = 0, squares = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double e = other[i] - exact[i];
    sum += e;
    squares += e * e;
  }
  const auto n = static_cast<double>(exact.size());
  return (squares - sum * sum / n) / n;
}

// Twice the mean's square over the variance: the degrees of a chi-square with the same two.
double degrees(std::span<const double> values) {
  double sum = 0, squares = 0;
  for (const double v : values) sum += v, squares += v * v;
  const auto n = static_cast<double>(values.size());
  const double mean = sum / n, variance = (squares - sum * mean) / (n - 1);
  DI_CHECK(variance > 0, "{} seeds of noise gave the same", values.size());
  return 2 * mean * mean / variance;
}

double mean(std::span<const double> values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

// A device that keeps q, k, v and attention's probabilities in F32 does half of the roundings: those of the
// inputs of its four products a layer.
Judged judge(double device, double noise, const NoiseBound& bound) {
  return {std::sqrt(device / noise), std::sqrt(0.5) * bound.least(1), bound.most(1)};
}

}  // namespace

void Comparison::add(const std::vector<std::vector<float>>& logits, int vocab) {
  std::vector<Seen> seen;
  for (const Position& p : positions_) {
    const auto V = static_cast<size_t>(vocab);
    const auto row = std::span(logits.at(p.sequence)).subspan(p.row * V, V);
    const auto best = std::max_element(row.begin(), row.end());
    double sum = 0;
    float second = -HUGE_VALF;
    for (auto i = row.begin(); i != row.end(); ++i) {
      sum += std::exp(static_cast<double>(*i) - *best);
      if (i != best) second = std::max(second, *i);
    }
    const double total = *best + std::log(sum);
    Seen s{.logprob = {},
           .best = static_cast<int32_t>(best - row.begin()),
           .best_logprob = *best - total,
           .second_logprob = second - total,
           .chosen_logprob = row[p.said.id] - total};
    for (const TokenLogprob& t : p.said.top) s.logprob.push_back(row[t.token] - total);
    seen.push_back(std::move(s));
  }
  seen_.push_back(std::move(seen));
}

Verdict Comparison::verdict() const {
  DI_CHECK(seeds() > 1 && !positions_.empty(), "{} models, {} positions", models(), positions_.size());
  Verdict v{.positions = static_cast<int>(positions_.size())};
  const auto S = static_cast<size_t>(seeds());
  std::vector<double> device, noise, seed_error(S), seed_divergence(S);
  double relative_variance = 0;
  for (size_t i = 0; i < positions_.size(); ++i) {
    const std::vector<double> said = said_by_device(positions_[i]);
    const std::vector<double>& want = exact()[i].logprob;
    DI_CHECK(said.size() == want.size() && !said.empty(), "{} of {} log-probabilities", said.size(),
             want.size());
    const double d = divergence(want, said);
    v.divergence += d / v.positions;
    v.worst_divergence = std::max(v.worst_divergence, d);
    v.cpu_divergence += divergence(want, seen_[1][i].logprob) / v.positions;
    std::vector<double> errors(S);
    for (size_t s = 0; s < S; ++s) {
      errors[s] = mean_square(want, seen_[2 + s][i].logprob);
      seed_error[s] += errors[s] / v.positions;
      seed_divergence[s] += divergence(want, seen_[2 + s][i].logprob) / v.positions;
    }
    device.push_back(mean_square(want, said));
    noise.push_back(mean(errors));
    relative_variance += 2 / degrees(errors) / v.positions;
  }
  v.directions = 2 / relative_variance;
  v.noise_divergence = mean(seed_divergence);
  // Noise in weights is the same at every position, rounding is not: the means of seeds vary more than a
  // device's.
  v.all = judge(mean(device), mean(noise), {degrees(seed_error), seeds()});
  v.mean_divergence = judge(v.divergence, v.noise_divergence, {degrees(seed_divergence), seeds()});
  for (size_t i = 0; i < device.size(); ++i) {
    const double ratio = std::sqrt(device[i] / noise[i]);
    v.worst.value = std::isfinite(ratio) ? std::max(v.worst.value, ratio) : HUGE_VAL;
  }
  v.worst.most = NoiseBound{v.directions, seeds()}.most(v.positions);
  judge_gaps(noise, v.directions, v);
  return v;
}

// The difference of two log-probabilities of a position is off by the square root of two times one's error,
// which is nearly normal, a sum of many roundings; its size is known from the seeds: Student's distribution.
void Comparison::judge_gaps(const std::vector<double>& noise, double directions, Verdict& v) const {
  v.continued = static_cast<int>(
      std::count_if(positions_.begin(), positions_.end(), [](const Position& p) { return p.chosen; }));
  const boost::math::students_t law(seeds() * directions);
  const double factor = std::sqrt(2.0) * boost::math::quantile(boost::math::complement(
                                             law, kChance / std::max(v.continued, 1)));
  v.gap.most = 1;
  for (size_t i = 0; i < positions_.size(); ++i) {
    if (!positions_[i].chosen) continue;
    const Seen& s = exact()[i];
    const double explained = factor * std::sqrt(noise[i]);
    v.gap.value = std::max(v.gap.value, (s.best_logprob - s.chosen_logprob) / explained);
    v.decided += s.best_logprob - s.second_logprob > explained;
    v.equal += s.best == positions_[i].said.id;
    v.equal_cpu += seen_[1][i].best == positions_[i].said.id;
  }
}

bool Verdict::good() const {
  return positions > 0 && all.good() && worst.good() && mean_divergence.good() && gap.good();
}

boost::json::object Verdict::to_json() const {
  auto range = [](const Judged& j) {
    return boost::json::object{{"value", j.value}, {"least", j.least}, {"most", j.most}, {"good", j.good()}};
  };
  return {{"positions", positions},
          {"divergence", divergence},
          {"worst_divergence", worst_divergence},
          {"noise_divergence", noise_divergence},
          {"cpu_divergence", cpu_divergence},
          {"error", range(all)},
          {"worst_error", range(worst)},
          {"mean_divergence", range(mean_divergence)},
          {"directions", directions},
          {"continued_tokens", continued},
          {"equal_tokens", equal},
          {"equal_to_cpu", equal_cpu},
          {"decided_tokens", decided},
          {"gap", range(gap)},
          {"good", good()}};
}

}  // namespace deepinfer::test
