#include "support/exact_model.h"

#include <cmath>

#include "base/check.h"

namespace deepinfer::test {
namespace {

constexpr int kSeeds = 8;

}  // namespace

double distance(std::span<const float> got, std::span<const float> want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += std::pow(static_cast<double>(want[i]), 2);
  }
  return std::sqrt(difference / norm);
}

Result<std::unique_ptr<ExactModel>> ExactModel::open(const std::filesystem::path& path, DType activation,
                                                     DType kv, int max_tokens) {
  auto m = std::make_unique<ExactModel>();
  const ModelHarness::Options options{.max_tokens = max_tokens};
  DI_ASSIGN(const Checkpoint read, open_weights(path));
  DI_ASSIGN(Checkpoint exact, to_float(read, activation));
  for (int s = 0; s < kSeeds; ++s) {
    DI_ASSIGN(Checkpoint noisy, with_noise(exact, Rounding::of(activation, kv), 1 + s));
    DI_ASSIGN(std::unique_ptr<ModelHarness> h, ModelHarness::open(std::move(noisy), options));
    m->noisy_.push_back(std::move(h));
  }
  DI_ASSIGN(m->exact_, ModelHarness::open(std::move(exact), options));
  return m;
}

ExactModel::Rows ExactModel::rows(std::span<const int32_t> tokens) {
  Rows out{.logits = exact_->logits(tokens), .rms = {}};
  const auto V = static_cast<size_t>(vocab_size());
  std::vector<double> sum(tokens.size()), squares(tokens.size());
  for (const auto& h : noisy_) {
    const std::vector<float> logits = h->logits(tokens);
    for (size_t t = 0; t < tokens.size(); ++t) {
      const double d = distance(std::span(logits).subspan(t * V, V), std::span(out.logits).subspan(t * V, V));
      sum[t] += d * d;
      squares[t] += d * d * d * d;
    }
  }
  for (size_t t = 0; t < tokens.size(); ++t) {
    const double mean = sum[t] / kSeeds, variance = (squares[t] - sum[t] * mean) / (kSeeds - 1);
    out.rms.push_back(std::sqrt(mean));
    relative_variance_ += variance / (mean * mean);
    ++rows_;
  }
  return out;
}

NoiseBound ExactModel::row() const {
  DI_CHECK(rows_ > 0 && relative_variance_ > 0, "{} rows: nothing was measured", rows_);
  return {2 * static_cast<double>(rows_) / relative_variance_, kSeeds};
}

NoiseBound ExactModel::all(int64_t sequences) const {
  return {row().directions * static_cast<double>(sequences), kSeeds};
}

}  // namespace deepinfer::test
