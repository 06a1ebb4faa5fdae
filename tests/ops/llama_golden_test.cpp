// The reference of sampling, and with it the backends that are held against it, gives what llama.cpp's
// samplers give, each alone: tests/golden/llama_samplers.txt, made by tools/golden/llama_samplers.py.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

#include "fixture.h"
#include "ref/sample.h"

namespace deepinfer::test {
namespace {

struct Case {
  std::string sampler;
  std::vector<float> settings, logits;
  std::string results;  // behind the first word of the last line
};

std::vector<float> numbers(std::istream& in) {
  std::vector<float> values;
  for (float v; in >> v;) values.push_back(v);
  return values;
}

std::vector<Case> golden(const std::string& beginning) {
  std::ifstream in(std::string(DI_SOURCE_DIR) + "/tests/golden/llama_samplers.txt");
  std::vector<Case> cases;
  std::string lines[3];
  std::getline(in, lines[0]);  // the comment
  while (std::getline(in, lines[0]) && std::getline(in, lines[1]) && std::getline(in, lines[2])) {
    if (!lines[0].starts_with(beginning)) continue;
    std::istringstream head(lines[0]), logits(lines[1].substr(lines[1].find(' ')));
    Case& c = cases.emplace_back();
    head >> c.sampler;
    c.settings = numbers(head);
    c.logits = numbers(logits);
    c.results = lines[2].substr(lines[2].find(' '));
  }
  return cases;
}

int32_t drawn(Machine& machine, const Case& c, const SampleRow& row, float* surprise) {
  std::vector<float> logits = c.logits;
  int32_t token = -1;
  ops::sample(machine.context,
              {.logits = make_tensor(logits.data(), DType::kF32, {1, static_cast<int64_t>(logits.size())}),
               .rows = {&row, 1},
               .token = make_tensor(&token, DType::kI32, {1}),
               .surprise = make_tensor(surprise, DType::kF32, {1})});
  return token;
}

TEST(LlamaGolden, CutsAndTemperature) {
  Machine machine(1);
  int cases = 0;
  for (const char* sampler : {"typical", "top_n_sigma", "xtc", "dynatemp"}) {
    for (const Case& c : golden(sampler)) {
      SampleRow row;
      if (c.sampler == "typical") row.typical_p = c.settings[0];
      if (c.sampler == "top_n_sigma") row.top_n_sigma = c.settings[0];
      if (c.sampler == "xtc") row.xtc_probability = 1, row.xtc_threshold = c.settings[0];
      if (c.sampler == "dynatemp") row.dynatemp_range = c.settings[0], row.dynatemp_exponent = c.settings[1];
      std::map<int32_t, double> left;
      std::istringstream in(c.results);
      char colon;
      double p;
      for (int32_t id; in >> id >> colon >> p;) left[id] = p;
      SCOPED_TRACE(c.sampler + " " + std::to_string(c.settings[0]) + " of " +
                   std::to_string(c.logits.size()));
      ASSERT_FALSE(left.empty());
      const std::vector<double> got = ref::token_probabilities(c.logits, row);
      for (size_t i = 0; i < got.size(); ++i) {
        const auto id = static_cast<int32_t>(i);
        EXPECT_NEAR(got[i], left.contains(id) ? left[id] : 0, 1e-4) << i;
      }
      float surprise;
      for (row.position = 0; row.position < 200; ++row.position)
        EXPECT_TRUE(left.contains(drawn(machine, c, row, &surprise)));
      ++cases;
    }
  }
  EXPECT_GE(cases, 40);
}

// Twelve draws of llama.cpp: with the mu that follows from each, as many tokens are left as there.
TEST(LlamaGolden, MirostatAndWhatBecomesOfMu) {
  Machine machine(1);
  int cases = 0;
  for (const Case& c : golden("mirostat")) {
    SampleRow row{.mirostat = c.sampler == "mirostat_1" ? 1 : 2};
    const float tau = c.settings[0], eta = c.settings[1];
    row.mirostat_mu = 2 * tau;
    std::istringstream in(c.results);
    char colon;
    size_t left;
    double p;
    for (int32_t token; in >> token >> colon >> left >> colon >> p; ++row.position) {
      SCOPED_TRACE(c.sampler + " tau " + std::to_string(tau) + " draw " + std::to_string(row.position));
      const std::vector<double> got = ref::token_probabilities(c.logits, row);
      EXPECT_EQ(std::count_if(got.begin(), got.end(), [](double v) { return v > 0; }), left);
      EXPECT_NEAR(got[token], p, 1e-4);
      float surprise = -1;
      const int32_t own = drawn(machine, c, row, &surprise);
      ASSERT_GT(got[own], 0);
      EXPECT_NEAR(surprise, -std::log2(got[own]), 1e-4);
      row.mirostat_mu -= eta * (static_cast<float>(-std::log2(p)) - tau);
    }
    EXPECT_EQ(row.position, 12);
    ++cases;
  }
  EXPECT_GE(cases, 12);
}

}  // namespace
}  // namespace deepinfer::test
