// A model against the quality reference that tools/golden/smollm2.py stored (the same weights in F32, by
// transformers):
//   quality_tool MODEL GOLDEN_FOLDER [threads]
// Prints {"tokens_sha256", "perplexity", "kld", "same_top"}. The divergence is that of the reference's most
// likely tokens and of all others as one: never above the whole one.
#include <openssl/sha.h>

#include <boost/json.hpp>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "model/checkpoint.h"
#include "support/model_harness.h"

namespace {

using namespace deepinfer;
namespace json = boost::json;
namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Log of the sum of exponentials.
double log_sum(const float* logits, int n) {
  float most = logits[0];
  for (int i = 1; i < n; ++i) most = std::max(most, logits[i]);
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += std::exp(static_cast<double>(logits[i]) - most);
  return most + std::log(sum);
}

struct Reference {
  int top;
  std::string rows;
  size_t next = 0;

  size_t row_bytes() const { return 8 + static_cast<size_t>(top) * 8; }
  // The row of this chunk and position, or null when the reference has none.
  const char* find(int chunk, int position) {
    if (next + row_bytes() > rows.size()) return nullptr;
    int32_t at[2];
    std::memcpy(at, rows.data() + next, 8);
    if (at[0] != chunk || at[1] != position) return nullptr;
    next += row_bytes();
    return rows.data() + next - row_bytes() + 8;
  }
};

struct Sums {
  double nll = 0, kld = 0;
  int64_t positions = 0, compared = 0, same_top = 0;
};

void compare(const char* row, int top, const float* logits, int vocab, double log_total, Sums& sums) {
  std::vector<int32_t> ids(top);
  std::vector<float> want(top);
  std::memcpy(ids.data(), row, ids.size() * 4);
  std::memcpy(want.data(), row + ids.size() * 4, want.size() * 4);
  double p_rest = 1, q_rest = 1, kld = 0;
  for (int k = 0; k < top; ++k) {
    const double log_q = logits[ids[k]] - log_total, p = std::exp(static_cast<double>(want[k]));
    kld += p * (want[k] - log_q);
    p_rest -= p;
    q_rest -= std::exp(log_q);
  }
  if (p_rest > 1e-9 && q_rest > 1e-9) kld += p_rest * std::log(p_rest / q_rest);
  sums.kld += kld;
  ++sums.compared;
  sums.same_top += std::max_element(logits, logits + vocab) - logits == ids[0];
}

Result<json::object> measure(const fs::path& model, const fs::path& golden, int threads) {
  const json::value meta = json::parse(read_file(golden / "quality.json"));
  const int chunk = json::value_to<int>(meta.at("chunk"));
  Result<Checkpoint> checkpoint = open_checkpoint(model);
  if (!checkpoint) return std::move(checkpoint).error();
  std::string text;
  for (const json::value& name : meta.at("texts").as_array())
    text += read_file(fs::path("/usr/share/common-licenses") / json::value_to<std::string>(name));
  std::vector<int32_t> ids = checkpoint->tokenizer->encode(text);
  ids.resize(ids.size() / chunk * chunk);
  Result<std::unique_ptr<ModelHarness>> harness =
      ModelHarness::open(model, {.threads = threads, .max_tokens = chunk, .kv_dtype = DType::kF16});
  if (!harness) return std::move(harness).error();
  const int vocab = (*harness)->vocab_size();
  Reference reference{json::value_to<int>(meta.at("top")), read_file(golden / "quality.bin")};
  Sums sums;
  for (int c = 0; c < static_cast<int>(ids.size()) / chunk; ++c) {
    const std::span<const int32_t> tokens(ids.data() + int64_t{c} * chunk, chunk);
    const std::vector<float> logits = (*harness)->logits(tokens);
    for (int i = chunk / 2; i < chunk - 1; ++i) {
      const float* row = logits.data() + int64_t{i} * vocab;
      const double log_total = log_sum(row, vocab);
      sums.nll += log_total - row[tokens[i + 1]];
      ++sums.positions;
      if (const char* want = reference.find(c, i)) compare(want, reference.top, row, vocab, log_total, sums);
    }
  }
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(ids.data()), ids.size() * 4, digest);
  std::string hex;
  for (const unsigned char d : digest) hex += "0123456789abcdef"[d >> 4], hex += "0123456789abcdef"[d & 15];
  return json::object{{"tokens_sha256", hex},
                      {"positions", sums.positions},
                      {"compared", sums.compared},
                      {"perplexity", std::exp(sums.nll / static_cast<double>(sums.positions))},
                      {"kld", sums.kld / static_cast<double>(sums.compared)},
                      {"same_top", static_cast<double>(sums.same_top) / static_cast<double>(sums.compared)}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: quality_tool MODEL GOLDEN_FOLDER [threads]\n";
    return 2;
  }
  const Result<json::object> result = measure(argv[1], argv[2], argc > 3 ? std::atoi(argv[3]) : 2);
  if (!result) {
    std::cerr << result.error().message << "\n";
    return 3;
  }
  std::cout << json::serialize(*result) << "\n";
  return 0;
}
