// A model in F32, and how far a device that rounds may be from it, row by row.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "support/model_harness.h"
#include "support/noise_bound.h"
#include "support/rounding.h"

namespace deepinfer::test {

// |got - want| / |want|.
double distance(std::span<const float> got, std::span<const float> want);

class ExactModel {
 public:
  struct Rows {
    std::vector<float> logits;  // [tokens, V]
    std::vector<double> rms;    // [tokens]: of the relative distance, over seeds of noise
  };

  // Against a device whose activations and cache have these types; its dense weights are of the activations'.
  static Result<std::unique_ptr<ExactModel>> open(const std::filesystem::path& path, DType activation,
                                                  DType kv, int max_tokens = 256);

  Rows rows(std::span<const int32_t> tokens);

  // The law of a row's distance, over its rms: that of a vector with about half as many independent
  // directions as the hidden size, for all logits come from one hidden vector. Measured over all rows() so
  // far.
  NoiseBound row() const;
  // The same of the rms over all rows of `sequences` sequences. Rows of one sequence share its keys and
  // values: they count as one. Below its least(), a device is compared with itself, or the noise stands for
  // roundings that it does not do.
  NoiseBound all(int64_t sequences) const;

  int vocab_size() const { return exact_->vocab_size(); }

 private:
  std::unique_ptr<ModelHarness> exact_;
  std::vector<std::unique_ptr<ModelHarness>> noisy_;
  double relative_variance_ = 0;  // sum over rows
  int64_t rows_ = 0;
};

}  // namespace deepinfer::test
