// How far a model's distributions are from those of its reference: perplexity, mean KL divergence, top-1
// agreement.
//
//   kld MODEL BASE [options]                 BASE is the file that llama.cpp's `llama-perplexity
//                                            --kl-divergence-base` writes for the reference
//   kld MODEL REFERENCE --text FILE [...]    the reference is a model too; both read the text
//
// In the first form both programs are measured on the same tokens against the same reference, with the same
// sums (tools/perplexity/perplexity.cpp of llama.cpp); in the second a model is measured against the one that
// it was made of. Chunks of 512 tokens; the positions of their second half count.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "model/quantization.h"
#include "support/model_harness.h"

namespace {

using deepinfer::DType;
using deepinfer::ModelHarness;

struct Options {
  std::string model, reference, text, quantization, kv = "f16";
  int threads = 2, chunk = 512, chunks = 24;
};

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(2);
}

DType kv_dtype(const std::string& name) {
  if (name == "f32") return DType::kF32;
  if (name == "fp8") return DType::kF8E4M3;
  return name == "int8" ? DType::kI8 : DType::kF16;
}

std::unique_ptr<ModelHarness> open(const std::string& path, const std::string& quantization, const Options& o,
                                   int max_tokens, DType kv) {
  auto checkpoint = deepinfer::open_weights(path);
  if (!checkpoint) fail(checkpoint.error().message);
  if (const auto set = deepinfer::set_quantization(*checkpoint, quantization); !set)
    fail(set.error().message);
  auto model = ModelHarness::open(std::move(*checkpoint),
                                  {.threads = o.threads, .max_tokens = max_tokens, .kv_dtype = kv});
  if (!model) fail(model.error().message);
  return std::move(*model);
}

// What the distributions are compared with: tokens in chunks, and log-probabilities of a chunk's second half.
class Reference {
 public:
  virtual ~Reference() = default;
  // Log-probabilities [n_ctx / 2 - 1, n_vocab] of the next chunk's positions n_ctx / 2 to n_ctx - 2.
  virtual std::vector<float> next(std::span<const int32_t> chunk) = 0;

  int n_ctx = 0, n_vocab = 0, n_chunk = 0;
  std::vector<int32_t> tokens;  // [n_chunk, n_ctx]
};

// "_logits_", n_ctx, n_vocab, n_chunk (i32), tokens (i32), then for each position: scale and minimum (F32),
// and log-probabilities as u16.
class BaseFile final : public Reference {
 public:
  explicit BaseFile(const std::string& path) : path_(path), in_(path, std::ios::binary) {
    char magic[8];
    in_.read(magic, 8);
    for (int* n : {&n_ctx, &n_vocab, &n_chunk}) in_.read(reinterpret_cast<char*>(n), 4);
    if (!in_ || std::memcmp(magic, "_logits_", 8) != 0)
      fail(path + ": not a file of llama-perplexity --kl-divergence-base; a reference model needs --text");
    tokens.resize(int64_t{n_chunk} * n_ctx);
    in_.read(reinterpret_cast<char*>(tokens.data()), static_cast<std::streamsize>(tokens.size() * 4));
  }

  std::vector<float> next(std::span<const int32_t>) override {
    std::vector<uint16_t> stored(2 * ((n_vocab + 1) / 2) + 4);
    std::vector<float> out;
    for (int i = n_ctx / 2; i < n_ctx - 1; ++i) {
      in_.read(reinterpret_cast<char*>(stored.data()), static_cast<std::streamsize>(stored.size() * 2));
      if (!in_) fail(path_ + ": ends too early");
      float scale, minimum;
      std::memcpy(&scale, stored.data(), 4);
      std::memcpy(&minimum, stored.data() + 2, 4);
      for (int v = 0; v < n_vocab; ++v) out.push_back(scale * stored[4 + v] + minimum);
    }
    return out;
  }

 private:
  std::string path_;
  std::ifstream in_;
};

double log_sum_exp(const float* logits, int n) {
  const float most = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += std::exp(static_cast<double>(logits[i]) - most);
  return most + std::log(sum);
}

class ReferenceModel final : public Reference {
 public:
  // What it is a reference for, a cache of 8 bits too: its own has 16, or 32 where those are asked for.
  explicit ReferenceModel(const Options& o)
      : model_(open(o.reference, "", o, o.chunk, o.kv == "f32" ? DType::kF32 : DType::kF16)) {
    std::ifstream in(o.text, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    auto checkpoint = deepinfer::open_checkpoint(o.reference);
    if (!checkpoint) fail(checkpoint.error().message);
    const auto ids = checkpoint->tokenizer->encode(text);
    n_ctx = o.chunk;
    n_vocab = model_->vocab_size();
    n_chunk = std::min(o.chunks, static_cast<int>(ids.size()) / n_ctx);
    if (n_chunk < 1) fail(o.text + ": expected at least " + std::to_string(n_ctx) + " tokens");
    tokens.assign(ids.begin(), ids.begin() + int64_t{n_chunk} * n_ctx);
  }

  std::vector<float> next(std::span<const int32_t> chunk) override {
    std::vector<float> logits = model_->logits(chunk);
    logits.erase(logits.begin(), logits.begin() + int64_t{n_ctx / 2} * n_vocab);
    logits.resize(int64_t{n_ctx - n_ctx / 2 - 1} * n_vocab);
    for (size_t at = 0; at < logits.size(); at += n_vocab) {
      const double sum = log_sum_exp(&logits[at], n_vocab);
      for (int v = 0; v < n_vocab; ++v) logits[at + v] = static_cast<float>(logits[at + v] - sum);
    }
    return logits;
  }

 private:
  std::unique_ptr<ModelHarness> model_;
};

struct Sums {
  double kld = 0, nll = 0, nll_base = 0;
  int64_t same_top = 0, count = 0;
};

// One position: logits of the model, log-probabilities of the reference, the token that followed.
void add_position(const float* logits, const float* base, int n_vocab, int next, Sums& sums) {
  const double log_sum = log_sum_exp(logits, n_vocab);
  double kld = 0;
  for (int i = 0; i < n_vocab; ++i)
    if (base[i] > -16) kld += std::exp(static_cast<double>(base[i])) * (base[i] - (logits[i] - log_sum));
  sums.kld += kld;
  sums.nll += log_sum - logits[next];
  sums.nll_base -= base[next];
  sums.same_top +=
      std::max_element(logits, logits + n_vocab) - logits == std::max_element(base, base + n_vocab) - base;
  ++sums.count;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Distance of a model's distributions from its reference's");
  app.add_option("model", o.model)->required();
  app.add_option("reference", o.reference)->required();
  app.add_option("--text", o.text, "UTF-8 file, with a reference model")->check(CLI::ExistingFile);
  app.add_option("--threads", o.threads);
  app.add_option("--chunks", o.chunks, "chunks of 512 tokens of the text, at most");
  app.add_option("--quantization", o.quantization, "of the model while it is loaded: fp8 or int4");
  app.add_option("--kv", o.kv, "type of the model's KV cache: f32, f16, int8, fp8")
      ->check(CLI::IsMember({"f32", "f16", "int8", "fp8"}));
  CLI11_PARSE(app, argc, argv);

  std::unique_ptr<Reference> reference;
  if (o.text.empty())
    reference = std::make_unique<BaseFile>(o.reference);
  else
    reference = std::make_unique<ReferenceModel>(o);
  const int n_ctx = reference->n_ctx, n_vocab = reference->n_vocab;
  const auto model = open(o.model, o.quantization, o, n_ctx, kv_dtype(o.kv));
  if (model->vocab_size() != n_vocab) fail(o.model + ": its vocabulary is not the reference's");
  Sums sums;
  for (int c = 0; c < reference->n_chunk; ++c) {
    const std::span<const int32_t> chunk(reference->tokens.data() + int64_t{c} * n_ctx, n_ctx);
    const std::vector<float> base = reference->next(chunk), logits = model->logits(chunk);
    for (int i = n_ctx / 2; i < n_ctx - 1; ++i)
      add_position(logits.data() + int64_t{i} * n_vocab, base.data() + int64_t{i - n_ctx / 2} * n_vocab,
                   n_vocab, chunk[i + 1], sums);
    std::fprintf(stderr, "\r%d/%d", c + 1, reference->n_chunk);
  }
  const auto n = static_cast<double>(sums.count);
  std::printf(
      "\n{\"positions\": %ld, \"perplexity\": %.5f, \"base_perplexity\": %.5f, \"ratio\": %.5f, "
      "\"mean_kld\": %.6f, \"same_top\": %.4f}\n",
      static_cast<long>(sums.count), std::exp(sums.nll / n), std::exp(sums.nll_base / n),
      std::exp((sums.nll - sums.nll_base) / n), sums.kld / n, static_cast<double>(sums.same_top) / n);
  return 0;
}
