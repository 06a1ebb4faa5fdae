// How far a model's distributions are from those of its reference: perplexity, mean KL divergence, top-1
// agreement.
//
//   kld MODEL BASE [threads] [kv dtype f32|f16]
//
// BASE is the file that llama.cpp's `llama-perplexity --kl-divergence-base` writes for the reference (the F32
// form of the same weights): "_logits_", n_ctx, n_vocab, n_chunk (i32), tokens [n_chunk, n_ctx] i32, then for
// each position of the second half of each chunk but the last: scale and minimum (F32), and log-probabilities
// as u16. So both programs are measured on the same tokens against the same reference, with the same sums
// (tools/perplexity/perplexity.cpp there).
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "support/model_harness.h"

namespace {

using deepinfer::ModelHarness;

struct Sums {
  double kld = 0, nll = 0, nll_base = 0;
  int64_t same_top = 0, count = 0;
};

// One position: logits of the model, stored log-probabilities of the reference, the token that followed.
void add_position(const float* logits, const uint16_t* stored, int n_vocab, int next, Sums& sums) {
  float scale, minimum;
  std::memcpy(&scale, stored, 4);
  std::memcpy(&minimum, stored + 2, 4);
  stored += 4;
  int top = 0, base_top = 0;
  for (int i = 1; i < n_vocab; ++i) {
    if (logits[i] > logits[top]) top = i;
    if (stored[i] > stored[base_top]) base_top = i;
  }
  double sum_exp = 0;
  for (int i = 0; i < n_vocab; ++i) sum_exp += std::exp(static_cast<double>(logits[i]) - logits[top]);
  const double log_sum = logits[top] + std::log(sum_exp);
  double kld = 0;
  for (int i = 0; i < n_vocab; ++i) {
    const double log_base = static_cast<double>(scale) * stored[i] + minimum;
    if (log_base > -16) kld += std::exp(log_base) * (log_base - (logits[i] - log_sum));
  }
  sums.kld += kld;
  sums.nll += log_sum - logits[next];
  sums.nll_base -= static_cast<double>(scale) * stored[next] + minimum;
  sums.same_top += top == base_top;
  ++sums.count;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: kld MODEL BASE [threads] [f32|f16]\n");
    return 2;
  }
  std::ifstream in(argv[2], std::ios::binary);
  char magic[8];
  int32_t n_ctx = 0, n_vocab = 0, n_chunk = 0;
  in.read(magic, 8);
  in.read(reinterpret_cast<char*>(&n_ctx), 4);
  in.read(reinterpret_cast<char*>(&n_vocab), 4);
  in.read(reinterpret_cast<char*>(&n_chunk), 4);
  if (!in || std::memcmp(magic, "_logits_", 8) != 0) {
    std::fprintf(stderr, "%s: not a file of llama-perplexity --kl-divergence-base\n", argv[2]);
    return 2;
  }
  std::vector<int32_t> tokens(int64_t{n_chunk} * n_ctx);
  in.read(reinterpret_cast<char*>(tokens.data()), static_cast<std::streamsize>(tokens.size() * 4));

  auto model = ModelHarness::open(
      argv[1], {.threads = argc > 3 ? std::atoi(argv[3]) : 2,
                .max_tokens = n_ctx,
                .kv_dtype = argc > 4 && std::string(argv[4]) == "f32" ? deepinfer::DType::kF32
                                                                      : deepinfer::DType::kF16});
  if (!model) {
    std::fprintf(stderr, "%s\n", model.error().message.c_str());
    return 3;
  }
  const int first = n_ctx / 2, stride = 2 * ((n_vocab + 1) / 2) + 4;
  std::vector<uint16_t> stored(stride);
  Sums sums;
  for (int c = 0; c < n_chunk; ++c) {
    const std::span<const int32_t> chunk(tokens.data() + int64_t{c} * n_ctx, n_ctx);
    const std::vector<float> logits = (*model)->logits(chunk);
    for (int i = first; i < n_ctx - 1; ++i) {
      in.read(reinterpret_cast<char*>(stored.data()), stride * 2);
      if (!in) {
        std::fprintf(stderr, "%s: ends in chunk %d\n", argv[2], c);
        return 2;
      }
      add_position(logits.data() + int64_t{i} * n_vocab, stored.data(), n_vocab, chunk[i + 1], sums);
    }
    std::fprintf(stderr, "\r%d/%d", c + 1, n_chunk);
  }
  const auto n = static_cast<double>(sums.count);
  std::printf(
      "\n{\"positions\": %ld, \"perplexity\": %.5f, \"base_perplexity\": %.5f, \"ratio\": %.5f, "
      "\"mean_kld\": %.6f, "
      "\"same_top\": %.4f}\n",
      static_cast<long>(sums.count), std::exp(sums.nll / n), std::exp(sums.nll_base / n),
      std::exp((sums.nll - sums.nll_base) / n), sums.kld / n, static_cast<double>(sums.same_top) / n);
  return 0;
}
