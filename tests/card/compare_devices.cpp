// One model on a CUDA device, on the CPU, and in F32: compare_devices [flags] MODEL
//
// The device answers some texts: log-probabilities of the 20 most likely tokens after every token of them,
// and after every token of its greedy continuation. The same model in F32 (the CPU's kernels on dequantized
// weights, which tools/golden/smollm2.py checks against transformers) and the CPU backend read what the
// device wrote. Prints one JSON object; exit code 1 when the device is further from F32 than its rounding
// explains.
//
// The bounds are in no table: the F32 model runs again with noise of the size of the device's rounding in
// what it rounds (support/rounding.h), with several seeds. What that does to a position's log-probabilities
// is what the device may do to them; a ratio of mean squares of the two follows Fisher's distribution
// (support/noise_bound.h). Checked are: each position's ratio, the ratio of all, the mean divergence, and at
// each token of a continuation that it is the most likely one, or near to it by no more than the noise there
// explains.
#include <CLI/CLI.hpp>
#include <boost/json.hpp>
#include <cstdio>
#include <cstring>
#include <latch>
#include <random>
#include <thread>

#include "base/check.h"
#include "card/comparison.h"
#include "deepinfer/config.h"
#include "engine/llm.h"
#include "support/model_harness.h"
#include "support/rounding.h"

namespace {

using namespace deepinfer;
using namespace deepinfer::test;
namespace json = boost::json;

struct Flags {
  std::string model;
  std::string dtype = "bfloat16";
  std::string kv = "auto";
  int texts = 4;
  int cuts = 4;  // prompts of a text: all of it, and shorter ones
  int prompt = 0;
  int tokens = 48;
  int seeds = 8;
  int max_num_seqs = 16;
  int max_num_batched_tokens = 256;
  int64_t kv_bytes = 0;
  bool plant_fault = false;

  DType activation() const { return dtype == "float16" ? DType::kF16 : DType::kBF16; }
  DType cache() const { return kv == "fp8" ? DType::kF8E4M3 : activation(); }
};

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

struct Asked {
  std::vector<int32_t> prompt;
  std::vector<OutputToken> at_prompt, continued;
  std::string error;
};

// All at once, so that rows of many lengths share steps.
void ask(Engine& engine, int tokens, std::vector<Asked>& all) {
  std::latch done(static_cast<std::ptrdiff_t>(all.size()));
  for (Asked& a : all) {
    const SamplingParams p{.temperature = 0,
                           .max_tokens = tokens,
                           .ignore_eos = true,
                           .logprobs = kTop,
                           .prompt_logprobs = kTop};
    auto id = engine.submit({.prompt = a.prompt, .sampling = p}, [&](const OutputEvent& e) {
      a.at_prompt.insert(a.at_prompt.end(), e.prompt_logprobs.begin(), e.prompt_logprobs.end());
      a.continued.insert(a.continued.end(), e.tokens.begin(), e.tokens.end());
      if (e.error != nullptr) a.error = e.error->message;
      if (e.finish != FinishReason::kNone) done.count_down();
    });
    if (!id) {
      a.error = id.error().message;
      done.count_down();
    }
  }
  done.wait();
}

std::vector<Asked> prompts_of(const Llm& llm, const Flags& f) {
  std::vector<Asked> all;
  std::mt19937 random(7);
  for (int n = 0; n < f.texts; ++n) {
    std::vector<int32_t> ids;
    if (llm.tokenizer != nullptr)
      ids = llm.tokenizer->encode(kTexts[n]);
    else  // a model without text
      for (int i = 0; i < 60; ++i) ids.push_back(static_cast<int32_t>(random() % llm.model.vocab_size));
    if (f.prompt > 0) ids.resize(std::min<size_t>(ids.size(), f.prompt));
    for (int cut = f.cuts; cut > 0; --cut) {
      const size_t length = std::max<size_t>(ids.size() * cut / f.cuts, 2);
      all.push_back({.prompt = {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(length)},
                     .at_prompt = {},
                     .continued = {},
                     .error = {}});
    }
  }
  return all;
}

// Sixteen rows of one matrix, as if one tile of it were never computed.
Result<void> plant_fault(Checkpoint& c) {
  const std::string name = fmt::format("model.layers.{}.mlp.down_proj.weight", c.config.layers / 2);
  const auto found = c.weights.tensors.find(name);
  if (found == c.weights.tensors.end()) return make_error(ErrorCode::kModel, "{} is missing", name);
  RawTensor& t = found->second;
  DI_ASSIGN(Buffer spoiled, Buffer::allocate(t.bytes));
  const size_t zeros = std::min<size_t>(16 * row_bytes(t.dtype, t.shape[1]), t.bytes);
  std::memcpy(spoiled.data() + zeros, t.data + zeros, t.bytes - zeros);
  t.data = spoiled.data();
  c.weights.copies.push_back(std::move(spoiled));
  return {};
}

Result<std::vector<Asked>> ask_device(const Flags& f) {
  Config config;
  config.model.name = f.model;
  config.model.dtype = f.dtype;
  config.model.max_model_len = 256;
  config.gpu.device = "cuda";
  config.gpu.max_num_seqs = f.max_num_seqs;
  config.gpu.max_num_batched_tokens = f.max_num_batched_tokens;
  config.gpu.kv_cache_dtype = f.kv;
  config.gpu.kv_cache_memory_bytes = f.kv_bytes;
  config.server.queue_timeout = 0;  // a device may be slow, an emulated one is
  config.server.timeout = 0;
  auto checkpoint = open_checkpoint(f.model);
  if (!checkpoint) checkpoint = open_weights(f.model);
  if (!checkpoint) return std::move(checkpoint).error();
  if (f.plant_fault) DI_TRY(plant_fault(*checkpoint));
  DI_ASSIGN(const std::unique_ptr<Llm> llm, Llm::load(config, std::move(*checkpoint)));
  std::vector<Asked> all = prompts_of(*llm, f);
  ask(*llm->engine, f.tokens, all);
  for (const Asked& a : all) {
    if (!a.error.empty()) return make_error(ErrorCode::kInternal, "{}", a.error);
    if (a.at_prompt.size() + 1 != a.prompt.size() || static_cast<int>(a.continued.size()) != f.tokens)
      return make_error(ErrorCode::kInternal, "got {} and {} tokens, expected {} and {}", a.at_prompt.size(),
                        a.continued.size(), a.prompt.size() - 1, f.tokens);
  }
  return all;
}

// Logits of every position of what the device read and wrote.
std::vector<std::vector<float>> logits_of(ModelHarness& model, const std::vector<Asked>& all) {
  std::vector<std::vector<float>> rows;
  for (const Asked& a : all) {
    std::vector<int32_t> ids = a.prompt;
    for (const OutputToken& t : a.continued) ids.push_back(t.id);
    rows.push_back(model.logits(ids));
  }
  return rows;
}

Result<void> add_model(const Flags& f, Checkpoint checkpoint, DType kv, const std::vector<Asked>& all,
                       Comparison& comparison) {
  const ModelHarness::Options options{
      .threads = static_cast<int>(std::max(std::thread::hardware_concurrency(), 1u)),
      .max_tokens = 256,
      .kv_dtype = kv};
  DI_ASSIGN(const std::unique_ptr<ModelHarness> model, ModelHarness::open(std::move(checkpoint), options));
  comparison.add(logits_of(*model, all), model->vocab_size());
  std::fprintf(stderr, "%d of %d models\n", comparison.models(), f.seeds + 2);
  return {};
}

Result<Verdict> compare(const Flags& f) {
  DI_ASSIGN(const std::vector<Asked> all, ask_device(f));
  std::vector<Position> positions;
  for (size_t i = 0; i < all.size(); ++i) {
    const Asked& a = all[i];
    for (size_t n = 0; n < a.at_prompt.size(); ++n) positions.push_back({i, n, false, a.at_prompt[n]});
    for (size_t n = 0; n < a.continued.size(); ++n)
      positions.push_back({i, a.prompt.size() - 1 + n, true, a.continued[n]});
  }
  Comparison comparison(std::move(positions));
  DI_ASSIGN(const Checkpoint read, open_weights(f.model));
  DI_ASSIGN(Checkpoint exact, to_float(read, f.activation()));
  DI_ASSIGN(Checkpoint cpu, open_weights(f.model));
  DI_ASSIGN(Checkpoint copy, to_float(read, f.activation()));
  DI_TRY(add_model(f, std::move(copy), DType::kF32, all, comparison));
  DI_TRY(add_model(f, std::move(cpu), DType::kF16, all, comparison));
  for (int seed = 1; seed <= f.seeds; ++seed) {
    DI_ASSIGN(Checkpoint noisy, with_noise(exact, Rounding::of(f.activation(), f.cache()), seed));
    DI_TRY(add_model(f, std::move(noisy), DType::kF32, all, comparison));
  }
  return comparison.verdict();
}

int run(int argc, char** argv) {
  Flags f;
  CLI::App app("One model on a CUDA device, on the CPU, and in F32.");
  app.add_option("model", f.model, "GGUF file or folder")->required();
  app.add_option("--dtype", f.dtype, "of the device's activations")
      ->check(CLI::IsMember({"bfloat16", "float16"}));
  app.add_option("--kv-cache-dtype", f.kv)->check(CLI::IsMember({"auto", "fp8"}));
  app.add_option("--texts", f.texts)->check(CLI::Range(1, static_cast<int>(std::size(kTexts))));
  app.add_option("--cuts", f.cuts, "prompts of a text: all of it, and shorter ones")
      ->check(CLI::Range(1, 16));
  app.add_option("--prompt", f.prompt, "most tokens of a prompt; 0: all")->check(CLI::Range(0, 128));
  app.add_option("--tokens", f.tokens, "of a continuation")->check(CLI::Range(1, 120));
  app.add_option("--seeds", f.seeds, "of noise")->check(CLI::Range(4, 64));
  app.add_option("--max-num-seqs", f.max_num_seqs)->check(CLI::Range(1, 256));
  app.add_option("--max-num-batched-tokens", f.max_num_batched_tokens)->check(CLI::Range(1, 8192));
  app.add_option("--kv-cache-memory-bytes", f.kv_bytes);
  app.add_flag("--plant-fault", f.plant_fault, "the device gets a spoiled weight: must not be good");
  CLI11_PARSE(app, argc, argv);
  const Result<Verdict> verdict = compare(f);
  if (!verdict) {
    std::fprintf(stderr, "compare_devices: %s\n", verdict.error().message.c_str());
    return 2;
  }
  std::printf("%s\n", json::serialize(verdict->to_json()).c_str());
  return verdict->good() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "compare_devices: %s\n", e.what());
    return 2;
  }
}
