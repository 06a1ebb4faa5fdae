// The Llama family against logits that transformers computed in F32 (tools/golden/tiny_llama.py). A case is a
// folder, or a GGUF file in it.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cctype>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "support/model_harness.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

fs::path golden() {
  return fs::path(DI_SOURCE_DIR) / "tests/golden/tiny_llama";
}

// "base", "base/model-q4_1.gguf", ...
std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(golden()))
    if (entry.is_directory() || entry.path().extension() == ".gguf")
      names.push_back(fs::relative(entry.path(), golden()).string());
  std::sort(names.begin(), names.end());
  return names;
}

// expected.json of a folder, expected-q4_1.json of model-q4_1.gguf.
fs::path expected_file(const std::string& variant) {
  const fs::path path = golden() / variant;
  if (fs::is_directory(path)) return path / "expected.json";
  const std::string stem = path.stem().string();
  return path.parent_path() / ("expected" + stem.substr(stem.find('-')) + ".json");
}

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Golden {
  std::vector<std::vector<int32_t>> prompts;
  std::vector<float> logits;  // [prompts, V] of each prompt's last position
};

Golden read_golden(const std::string& variant) {
  Golden g;
  const fs::path file = expected_file(variant);
  const json::value expected = json::parse(read_file(file));
  for (const json::value& prompt : expected.at("prompts").as_array())
    g.prompts.push_back(json::value_to<std::vector<int32_t>>(prompt));
  const std::string bytes =
      read_file(file.parent_path() / json::value_to<std::string>(expected.at("logits_file")));
  g.logits.resize(bytes.size() / sizeof(float));
  std::memcpy(g.logits.data(), bytes.data(), bytes.size());
  return g;
}

std::unique_ptr<ModelHarness> open(const std::string& variant, int threads = 1) {
  auto h = ModelHarness::open(golden() / variant, {.threads = threads, .max_tokens = 256});
  if (!h) ADD_FAILURE() << h.error().message;
  return h ? std::move(*h) : nullptr;
}

class TinyLlama : public testing::TestWithParam<std::string> {};

TEST_P(TinyLlama, LogitsEqualTransformers) {
  const Golden g = read_golden(GetParam());
  ASSERT_FALSE(g.prompts.empty());
  const auto h = open(GetParam());
  ASSERT_TRUE(h);
  const int V = h->vocab_size();
  const double bound = GetParam().find("-q") != std::string::npos ? 0.03 : 2e-5;
  ASSERT_EQ(g.logits.size(), g.prompts.size() * V);
  for (size_t p = 0; p < g.prompts.size(); ++p) {
    const std::vector<float> logits = h->logits(g.prompts[p]);
    const float* got = logits.data() + (g.prompts[p].size() - 1) * V;
    const float* want = g.logits.data() + p * V;
    // Quantized files: activations are rounded to int8 per 32, an error of about max / (127 sqrt(12)) or 0.5%
    // of the norm of a Gaussian block each time; four times a layer and at the head, that is 0.5% sqrt(9) for
    // two layers, twice that at most. Both sides round in F32 (2^-24) at each of some tens of roundings per
    // value; sums of a few hundred terms grow that with the square root of their length. Relative to the norm
    // of the logits that stays below 2e-5.
    double difference = 0, norm = 0;
    for (int i = 0; i < V; ++i) {
      difference += std::pow(static_cast<double>(got[i]) - want[i], 2);
      norm += std::pow(static_cast<double>(want[i]), 2);
    }
    EXPECT_LT(std::sqrt(difference / norm), bound) << GetParam() << " prompt " << p;
  }
}

TEST_P(TinyLlama, ChunksAndThreadsChangeNoBit) {
  const auto one = open(GetParam(), 1), three = open(GetParam(), 3);
  ASSERT_TRUE(one && three);
  std::vector<int32_t> prompt(50);
  for (size_t i = 0; i < prompt.size(); ++i)
    prompt[i] = static_cast<int32_t>((i * 7919 + 13) % one->vocab_size());
  const std::vector<float> whole = one->logits(prompt);
  for (const int chunk : {1, 5, 33}) {
    EXPECT_EQ(std::memcmp(whole.data(), one->logits(prompt, chunk).data(), whole.size() * 4), 0) << chunk;
    EXPECT_EQ(std::memcmp(whole.data(), three->logits(prompt, chunk).data(), whole.size() * 4), 0) << chunk;
  }
}

TEST_P(TinyLlama, StagesOfLayersEqualTheWhole) {
  const std::filesystem::path path = golden() / GetParam();
  const auto whole = open(GetParam());
  ASSERT_TRUE(whole);
  const int layers = whole->config().layers, cut = layers / 2, H = whole->config().hidden,
            V = whole->vocab_size();
  auto front = ModelHarness::open(path, {.max_tokens = 64, .layers = {0, cut}});
  auto back = ModelHarness::open(path, {.max_tokens = 64, .layers = {cut, layers}});
  ASSERT_TRUE(front && back);
  const std::vector<int32_t> prompt = {5,  9,  2,  7,  7,  31, 100, 4,  1,  0,
                                       63, 12, 13, 14, 15, 16, 17,  18, 19, 20};
  const auto T = static_cast<int64_t>(prompt.size());
  std::vector<float> hidden(T * H), logits(T * V);
  const Tensor between = make_tensor(hidden.data(), DType::kF32, {T, H});
  (*front)->stage(prompt, {.hidden_out = between});
  (*back)->stage(prompt, {.hidden_in = between, .logits = make_tensor(logits.data(), DType::kF32, {T, V})});
  EXPECT_EQ(std::memcmp(logits.data(), whole->logits(prompt).data(), logits.size() * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Golden, TinyLlama, testing::ValuesIn(variants()), [](const auto& info) {
  std::string name = info.param;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
});

}  // namespace
}  // namespace deepinfer
