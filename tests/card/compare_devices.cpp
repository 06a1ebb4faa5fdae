// One model on the CPU and on a CUDA device: compare_devices MODEL
// Next-token distributions after every prefix of some texts, and greedy continuations. Prints one JSON
// object; exit code 1 when the two differ by more than two correct backends may.
#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <latch>
#include <map>
#include <mutex>
#include <random>

#include "base/check.h"
#include "deepinfer/config.h"
#include "engine/llm.h"

namespace {

using namespace deepinfer;
namespace json = boost::json;

constexpr int kTop = 20;
constexpr int kContinue = 48;

// The CPU multiplies quantized weights by activations of 8 bits, the GPU by activations of bf16: neither is
// exact.
constexpr double kMostDivergence = 0.02;  // mean over positions, in nats
constexpr double kLeastSameTop = 0.9;     // of positions, where the choice is not close
constexpr double kCloseChoice = 0.5;  // nats between the two most likely tokens, where continuations may part

const char* const kTexts[] = {
    "The history of the steam engine begins long before the railways. In the first century, Hero of "
    "Alexandria "
    "described a ball that turned by the force of steam, but nobody put it to use. Sixteen centuries later, "
    "miners "
    "in England needed pumps that could lift water from deep shafts, and",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n\n\n"
    "def is_prime(n):\n    if n < 2:\n        return False\n    for i in range(2, int(n ** 0.5) + 1):\n",
    "Question: A train leaves at 9:40 and arrives at 13:05. How long was the journey? Answer: The train "
    "travels from "
    "9:40 to 13:05. From 9:40 to 12:40 are three hours, and",
    "Water boils at a lower temperature on high mountains because the pressure of the air is lower there. "
    "For this "
    "reason, cooking rice or potatoes takes",
};

struct Answer {
  std::vector<OutputToken> tokens;
  std::string error;
};

// All at once, so that rows of many lengths share steps.
std::vector<Answer> run(Engine& engine, const std::vector<std::vector<int32_t>>& prompts, int tokens) {
  std::vector<Answer> answers(prompts.size());
  std::latch done(static_cast<std::ptrdiff_t>(prompts.size()));
  for (size_t i = 0; i < prompts.size(); ++i) {
    const SamplingParams p{.temperature = 0, .max_tokens = tokens, .ignore_eos = true, .logprobs = kTop};
    auto id = engine.submit({.prompt = prompts[i], .sampling = p}, [&, i](const OutputEvent& e) {
      answers[i].tokens.insert(answers[i].tokens.end(), e.tokens.begin(), e.tokens.end());
      if (e.error != nullptr) answers[i].error = e.error->message;
      if (e.finish != FinishReason::kNone) done.count_down();
    });
    if (!id) {
      answers[i].error = id.error().message;
      done.count_down();
    }
  }
  done.wait();
  return answers;
}

// Of the CPU's most likely tokens and all others as one; a token that the other does not list has at most the
// probability of the last one that it lists.
double divergence(const OutputToken& cpu, const OutputToken& gpu) {
  std::map<int32_t, double> other;
  for (const TokenLogprob& t : gpu.top) other[t.token] = t.logprob;
  double sum = 0, p_rest = 1, q_rest = 1;
  for (const TokenLogprob& t : cpu.top) {
    const auto found = other.find(t.token);
    const double q = found != other.end() ? found->second : gpu.top.back().logprob;
    sum += std::exp(t.logprob) * (t.logprob - q);
    p_rest -= std::exp(t.logprob);
    q_rest -= std::exp(q);
  }
  if (p_rest > 1e-6) sum += p_rest * std::log(p_rest / std::max(q_rest, 1e-6));
  return std::max(sum, 0.0);
}

double margin(const OutputToken& t) {
  return t.top.size() < 2 ? 1e9 : t.top[0].logprob - t.top[1].logprob;
}

struct Verdict {
  double divergence = 0, worst = 0;
  int positions = 0, clear = 0, same_top = 0;
  int continued = 0, equal = 0;
  double worst_parting = 0;  // the least close choice where continuations parted
  std::string error;

  bool good() const {
    return error.empty() && positions > 0 && divergence <= kMostDivergence &&
           same_top >= kLeastSameTop * clear && worst_parting <= kCloseChoice;
  }
};

void compare_positions(const std::vector<Answer>& cpu, const std::vector<Answer>& gpu, Verdict& v) {
  for (size_t i = 0; i < cpu.size(); ++i) {
    for (const Answer* a : {&cpu[i], &gpu[i]})
      if (!a->error.empty() || a->tokens.empty()) v.error = a->error.empty() ? "no token came" : a->error;
    if (!v.error.empty()) return;
    const OutputToken &c = cpu[i].tokens[0], &g = gpu[i].tokens[0];
    const double d = divergence(c, g);
    v.divergence += d;
    v.worst = std::max(v.worst, d);
    ++v.positions;
    if (margin(c) < kCloseChoice) continue;
    ++v.clear;
    v.same_top += c.id == g.id;
  }
  v.divergence /= std::max(v.positions, 1);
}

void compare_continuations(const std::vector<Answer>& cpu, const std::vector<Answer>& gpu, Verdict& v) {
  for (size_t i = 0; i < cpu.size(); ++i) {
    for (const Answer* a : {&cpu[i], &gpu[i]})
      if (!a->error.empty() || a->tokens.size() != kContinue)
        v.error = a->error.empty() ? fmt::format("{} tokens came", a->tokens.size()) : a->error;
    if (!v.error.empty()) return;
    v.continued += kContinue;
    for (int t = 0; t < kContinue; ++t) {
      if (cpu[i].tokens[t].id != gpu[i].tokens[t].id) {
        v.worst_parting = std::max(v.worst_parting, margin(cpu[i].tokens[t]));
        break;  // from here on the texts differ
      }
      ++v.equal;
    }
  }
}

Result<std::vector<std::vector<int32_t>>> texts_of(const Llm& llm) {
  std::vector<std::vector<int32_t>> texts;
  std::mt19937 random(7);
  for (const char* text : kTexts) {
    std::vector<int32_t> ids;
    if (llm.tokenizer != nullptr)
      ids = llm.tokenizer->encode(text);
    else  // a model without text
      for (int i = 0; i < 60; ++i) ids.push_back(static_cast<int32_t>(random() % llm.model.vocab_size));
    texts.push_back(std::move(ids));
  }
  return texts;
}

Result<std::unique_ptr<Llm>> load(const std::string& model, const std::string& device) {
  Config config;
  config.model.name = model;
  config.model.max_model_len = 256;
  config.gpu.device = device;
  config.gpu.max_num_seqs = 64;
  config.server.max_queue = 4096;
  config.server.queue_timeout = 600;
  auto checkpoint = open_checkpoint(model);
  if (!checkpoint) checkpoint = open_weights(model);
  if (!checkpoint) return std::move(checkpoint).error();
  return Llm::load(config, std::move(*checkpoint));
}

Result<Verdict> compare(const std::string& model) {
  Verdict v;
  DI_ASSIGN(const std::unique_ptr<Llm> cpu, load(model, "cpu"));
  DI_ASSIGN(const std::unique_ptr<Llm> gpu, load(model, "cuda"));
  DI_ASSIGN(const auto texts, texts_of(*cpu));
  std::vector<std::vector<int32_t>> prefixes;
  for (const auto& ids : texts)
    for (size_t n = 1; n <= ids.size(); ++n)
      prefixes.emplace_back(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(n));
  compare_positions(run(*cpu->engine, prefixes, 1), run(*gpu->engine, prefixes, 1), v);
  if (v.error.empty())
    compare_continuations(run(*cpu->engine, texts, kContinue), run(*gpu->engine, texts, kContinue), v);
  return v;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: compare_devices MODEL\n");
    return 2;
  }
  const Result<Verdict> verdict = compare(argv[1]);
  if (!verdict) {
    std::fprintf(stderr, "compare_devices: %s\n", verdict.error().message.c_str());
    return 2;
  }
  const Verdict& v = *verdict;
  const json::object out{
      {"positions", v.positions}, {"mean_divergence", v.divergence},  {"worst_divergence", v.worst},
      {"clear_choices", v.clear}, {"same_choice", v.same_top},        {"continued_tokens", v.continued},
      {"equal_tokens", v.equal},  {"worst_parting", v.worst_parting}, {"error", v.error},
      {"good", v.good()}};
  std::printf("%s\n", json::serialize(out).c_str());
  return v.good() ? 0 : 1;
}
