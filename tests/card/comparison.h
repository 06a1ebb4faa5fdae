// What a device said at some positions beside the model in F32, the CPU backend and noise.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "deepinfer/engine.h"
#include "support/noise_bound.h"

namespace deepinfer::test {

inline constexpr int kTop = 20;  // tokens whose log-probabilities the device gives

struct Position {
  size_t sequence = 0, row = 0;  // the logits' row that predicts the token
  bool chosen = false;           // by the device, greedily; else a token of the prompt
  OutputToken said;
};

// A part of what noise does, beside the range that a right device keeps in all but one of a thousand cases.
struct Judged {
  double value = 0, least = 0, most = 0;
  bool good() const { return value >= least && value <= most; }  // false for NaN
};

struct Verdict {
  int positions = 0;
  double divergence = 0, worst_divergence = 0, noise_divergence = 0, cpu_divergence = 0;  // from F32, in nats
  // Of log-probabilities: root mean square of the device's error over that of the noise's, of all positions
  // and of the worst; root of the ratio of mean divergences.
  Judged all, worst, mean_divergence;
  double directions = 0;
  int continued = 0, equal = 0, equal_cpu = 0;  // tokens, and those that are F32's and the CPU's first choice
  int decided = 0;                              // where noise does not explain another choice
  Judged gap;  // how much more likely F32 finds its first choice, over the most that noise explains

  bool good() const;
  boost::json::object to_json() const;
};

class Comparison {
 public:
  explicit Comparison(std::vector<Position> positions) : positions_(std::move(positions)) {}

  // First F32, then the CPU, then seeds of noise: logits [rows, V] of each sequence.
  void add(const std::vector<std::vector<float>>& logits, int vocab);
  int models() const { return static_cast<int>(seen_.size()); }

  Verdict verdict() const;

 private:
  // At one position, of one model.
  struct Seen {
    std::vector<double> logprob;  // of the tokens that the device lists
    int32_t best = 0;
    double best_logprob = 0, second_logprob = 0, chosen_logprob = 0;
  };

  const std::vector<Seen>& exact() const { return seen_[0]; }
  int seeds() const { return models() - 2; }
  void judge_gaps(const std::vector<double>& noise, double directions, Verdict& v) const;

  std::vector<Position> positions_;
  std::vector<std::vector<Seen>> seen_;  // [model][position]
};

}  // namespace deepinfer::test
