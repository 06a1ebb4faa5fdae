#include "backend/cpu/sample_shape.h"

#include <algorithm>
#include <cmath>

#include "backend/cpu/sample_candidates.h"

namespace deepinfer::cpu {
namespace {

constexpr double kGreedyBelow = 1e-5;
constexpr double kNoWeight = 87;  // e^-87 of the largest is no candidate
constexpr int64_t kSlopeTokens = 100;

class Shaper {
 public:
  explicit Shaper(const ShapeArgs& args)
      : row_(args.row),
        k_(args.kernels),
        x_(args.x),
        vocab_(args.vocab),
        s_(args.scratch),
        list_(args.kernels, args.x, args.vocab, args.scratch) {}

  int32_t choose(float max, double* surprise) {
    temperature_ = row_.temperature;
    softmax_ = {.max = max, .scale = static_cast<float>(1 / temperature_), .floor = kNone};
    const Noise noise = noise_of(row_.seed, row_.position);
    int64_t n;
    if (row_.mirostat != 0) {
      n = row_.mirostat == 1 ? mirostat_1() : mirostat_2();
    } else {
      if (row_.top_n_sigma > 0) cut_sigma();
      if (row_.dynatemp_range > 0 && vocab_ > 1 && !set_temperature()) return list_.first_of(max);
      n = cut(noise.coin);
    }
    double total;
    const int32_t token = list_.draw_from_list(n, noise.draw, &total);
    *surprise = n > 1 ? std::log2(total / list_.weight(token)) : 0;
    return token;
  }

 private:
  void raise_floor(double floor) {
    const double within = std::clamp<double>(floor, -kLargest, softmax_.max);
    softmax_.floor = std::max(softmax_.floor, static_cast<float>(within));
  }

  // Sums in units of the range of logits: no square overflows.
  void cut_sigma() {
    float min = softmax_.max;
    for (int64_t i = 0; i < vocab_; ++i)
      if (x_[i] > kNone && x_[i] < min) min = x_[i];
    const double range = static_cast<double>(softmax_.max) - min;
    if (range == 0) return;
    double sum = 0, squares = 0, count = 0;
    for (int64_t i = 0; i < vocab_; ++i) {
      if (!(x_[i] > kNone)) continue;
      const double u = (static_cast<double>(softmax_.max) - x_[i]) / range;
      sum += u;
      squares += u * u;
      ++count;
    }
    const double mean = sum / count;
    const double deviation = std::sqrt(std::max(squares / count - mean * mean, 0.0)) * range;
    raise_floor(softmax_.max - row_.top_n_sigma * deviation);
  }

  // False: so low that the most likely token is taken.
  bool set_temperature() {
    const Softmax plain{.max = softmax_.max, .scale = 1, .floor = softmax_.floor};
    k_.row_weights(x_, vocab_, plain, s_.values);
    double total = 0, moment = 0;
    for (int64_t i = 0; i < vocab_; ++i) {
      if (s_.values[i] == 0) continue;
      total += s_.values[i];
      moment += s_.values[i] * (static_cast<double>(softmax_.max) - x_[i]);
    }
    const double entropy = std::max(std::log(total) + moment / total, 0.0);
    const double low = std::max(0.0, static_cast<double>(row_.temperature) - row_.dynatemp_range);
    const double high = static_cast<double>(row_.temperature) + row_.dynatemp_range;
    const double part = std::pow(entropy / std::log(static_cast<double>(vocab_)), row_.dynatemp_exponent);
    temperature_ = low + (high - low) * std::min(part, 1.0);
    softmax_.scale = static_cast<float>(1 / temperature_);
    return temperature_ >= kGreedyBelow;
  }

  // What min_p, top_k, typical_p, top_p and xtc leave, in the list.
  int64_t cut(double coin) {
    if (row_.min_p > 0) raise_floor(softmax_.max + std::log(static_cast<double>(row_.min_p)) * temperature_);
    raise_floor(softmax_.max - kNoWeight * temperature_);
    const bool top_k = row_.top_k > 0 && row_.top_k < vocab_;
    int64_t n = list_.select_top(top_k ? row_.top_k : vocab_, below(softmax_.floor));
    double total = list_.weigh(softmax_, n);
    if (row_.typical_p < 1) n = typical(n, &total);
    if (row_.top_p < 1) {
      n = list_.nucleus(softmax_, n, row_.top_p * total);
      total = sum(0, n);
    }
    if (row_.has_xtc() && coin < row_.xtc_probability) n = exclude_top(n, total);
    return n;
  }

  double sum(int64_t begin, int64_t end) const {
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += list_.weight(s_.ids[i]);
    return sum;
  }

  // How far -log p is from the entropy: in both stands the log of the sum, which falls out.
  float distance(int32_t token, float mean) const {
    return std::fabs((x_[token] - softmax_.max) * softmax_.scale - mean);
  }

  // Splits the list at the median until it is known which distance makes the sum exceed its part.
  int64_t typical(int64_t n, double* total) {
    double moment = 0;
    for (int64_t i = 0; i < n; ++i)
      moment +=
          static_cast<double>(list_.weight(s_.ids[i])) * ((x_[s_.ids[i]] - softmax_.max) * softmax_.scale);
    const auto mean = static_cast<float>(moment / *total);
    const auto nearer = [&](int32_t a, int32_t b) {
      const float da = distance(a, mean), db = distance(b, mean);
      return da != db ? da < db : a < b;
    };
    const double target = row_.typical_p * *total;
    // None that is likelier than the mean is further from it than the most likely one: mostly few are left.
    const int64_t near =
        std::partition(s_.ids, s_.ids + n, [&](int32_t t) { return distance(t, mean) <= std::fabs(mean); }) -
        s_.ids;
    int64_t begin = 0, end = n;
    double before = sum(0, near);
    if (before > target) {
      before = 0;
      end = near;
    } else if (near < n) {
      // The others are the further the less they weigh; those below this weigh less than what is cut off.
      const double least = (*total - target) / static_cast<double>(n);
      int32_t* const rest =
          std::partition(s_.ids + near, s_.ids + n, [&](int32_t t) { return list_.weight(t) >= least; });
      begin = near;
      if (rest - s_.ids > near) end = rest - s_.ids;
    } else {
      before = 0;
    }
    while (end - begin > 1) {
      const int64_t middle = begin + (end - begin) / 2;
      std::nth_element(s_.ids + begin, s_.ids + middle, s_.ids + end, nearer);
      const double front = sum(begin, middle);
      if (before + front > target) {
        end = middle;
      } else {
        before += front;
        begin = middle;
      }
    }
    const float last = distance(s_.ids[begin], mean);
    int32_t* const kept =
        std::partition(s_.ids, s_.ids + n, [&](int32_t t) { return distance(t, mean) <= last; });
    n = kept - s_.ids;
    *total = sum(0, n);
    return n;
  }

  int64_t exclude_top(int64_t n, double total) {
    const Ahead ahead{x_};
    const double least = std::max(static_cast<double>(row_.xtc_threshold), 1e-7) * total;
    int32_t last = -1;
    for (int64_t i = 0; i < n; ++i) {
      const int32_t token = s_.ids[i];
      if (list_.weight(token) >= least && (last < 0 || ahead(last, token))) last = token;
    }
    if (last < 0) return n;
    return std::remove_if(s_.ids, s_.ids + n, [&](int32_t token) { return ahead(token, last); }) - s_.ids;
  }

  // Basu et al., "Mirostat: a neural text decoding algorithm that directly controls perplexity" (2021): the
  // slope of a Zipf distribution fitted to the most likely tokens, and how many of them have the surprise mu.
  int64_t mirostat_1() {
    raise_floor(softmax_.max - kNoWeight * temperature_);
    const float floor = below(softmax_.floor);
    const int64_t top = list_.select_top(std::min(kSlopeTokens, vocab_), floor);
    std::sort(s_.ids, s_.ids + top, Ahead{x_});
    double products = 0, squares = 0;
    for (int64_t i = 0; i + 1 < top; ++i) {
      const double t = std::log(static_cast<double>(i + 2) / static_cast<double>(i + 1));
      products += t * (static_cast<double>(x_[s_.ids[i]]) - x_[s_.ids[i + 1]]) * softmax_.scale;
      squares += t * t;
    }
    int64_t k = 1;
    if (top > 1) {
      const double slope = std::max(products / squares, 1e-9), epsilon = slope - 1;
      const double log_vocab = std::log(static_cast<double>(vocab_));
      // Towards a slope of 1 the quotient becomes 1 / log V.
      const double quotient =
          std::fabs(epsilon) < 1e-6 ? 1 / log_vocab : epsilon / (1 - std::exp(-epsilon * log_vocab));
      const double found = std::exp((std::log(quotient) + row_.mirostat_mu * std::log(2.0)) / slope);
      k = found >= static_cast<double>(vocab_) ? vocab_ : std::max<int64_t>(static_cast<int64_t>(found), 1);
    }
    const int64_t n = list_.select_top(k, floor);
    list_.weigh(softmax_, n);
    return n;
  }

  int64_t mirostat_2() {
    const double total = list_.sum_all(softmax_);
    const double floor = softmax_.max + (std::log(total) - row_.mirostat_mu * std::log(2.0)) * temperature_;
    int64_t n = 1;
    if (floor > softmax_.max) {
      s_.ids[0] = list_.first_of(softmax_.max);
    } else {
      raise_floor(std::max(floor, softmax_.max - kNoWeight * temperature_));
      n = list_.select_top(vocab_, below(softmax_.floor));
    }
    list_.weigh(softmax_, n);
    return n;
  }

  const SampleRow& row_;
  const Kernels& k_;
  const float* x_;
  int64_t vocab_;
  const RowScratch& s_;
  Candidates list_;
  double temperature_ = 1;
  Softmax softmax_;
};

}  // namespace

int32_t choose_shaped(const ShapeArgs& args, float max, double* surprise) {
  return Shaper(args).choose(max, surprise);
}

}  // namespace deepinfer::cpu
