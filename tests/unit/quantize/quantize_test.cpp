#include "quantize/quantize.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>
#include <fstream>
#include <iterator>

#include "../model/temp_folder.h"
#include "model/random_checkpoint.h"
#include "model/safetensors.h"
#include "quantize/layer_quantizer.h"
#include "quantize/output.h"
#include "random_matrix.h"
#include "text/byte_alphabet.h"

namespace deepinfer::quantize {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// A model of two layers whose tokens are bytes, and a text for it.
class QuantizeTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto checkpoint = random_checkpoint("tiny", 5);
    ASSERT_TRUE(checkpoint);
    ASSERT_TRUE(save_checkpoint(*checkpoint, model()));
    json::object vocabulary;
    for (int byte = 0; byte < 256; ++byte)
      vocabulary[bytes_to_alphabet(std::string(1, static_cast<char>(byte)))] = byte;
    const json::object level{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
    const json::object bpe{{"type", "BPE"}, {"vocab", vocabulary}, {"merges", json::array()}};
    std::ofstream(model() / "tokenizer.json") << json::serialize(json::object{{"version", "1.0"},
                                                                              {"added_tokens", json::array()},
                                                                              {"normalizer", nullptr},
                                                                              {"pre_tokenizer", level},
                                                                              {"post_processor", nullptr},
                                                                              {"decoder", level},
                                                                              {"model", bpe}});
    std::ofstream(model() / "generation_config.json") << "{\"temperature\": 0.5}";
    std::string text;
    for (int i = 0; i < 400; ++i)
      text += "Line " + std::to_string(i * i % 977) + " of a text about nothing.\n";
    folder_.write("text.txt", text);
  }

  fs::path model() const { return folder_.path() / "model"; }
  fs::path out() const { return folder_.path() / "out"; }

  Options options(Method method) const {
    return {.model = model(),
            .out = out(),
            .method = method,
            .calibration = folder_.path() / "text.txt",
            .samples = 12,
            .sample_tokens = 64,
            .threads = 2};
  }

  // Runs to the end; the number of layers that the first call found finished.
  static int run(const Options& options) {
    const auto plan = make_plan(options);
    EXPECT_TRUE(plan) << plan.error().message;
    int first = -1;
    const auto done =
        quantize(*plan, {.progress = [&](int n, int) { first = first < 0 ? n : first; }, .stopped = {}});
    EXPECT_TRUE(done) << done.error().message;
    return first;
  }

  static std::string error_of(const Options& options) {
    const auto plan = make_plan(options);
    return plan ? "no error" : plan.error().message;
  }

  TempFolder folder_;
};

TEST_F(QuantizeTest, EachMethodWritesWhatItsReadersExpect) {
  struct Expected {
    Method method;
    std::string quant_method, suffix, dtype;
  };
  for (const Expected& e : {Expected{Method::kAwq, "awq", "qweight", "float16"},
                            Expected{Method::kGptq, "gptq", "g_idx", "float16"},
                            Expected{Method::kFp8, "compressed-tensors", "weight_scale", "bfloat16"},
                            Expected{Method::kInt4, "compressed-tensors", "weight_packed", "bfloat16"}}) {
    SCOPED_TRACE(e.suffix);
    run(options(e.method));
    EXPECT_FALSE(fs::exists(out().string() + ".partial"));
    EXPECT_EQ(read(out() / "generation_config.json"), read(model() / "generation_config.json"));
    EXPECT_EQ(read(out() / "tokenizer.json"), read(model() / "tokenizer.json"));
    const json::value config = json::parse(read(out() / "config.json"));
    EXPECT_EQ(config.at("quantization_config").at("quant_method").as_string(), e.quant_method);
    EXPECT_EQ(config.at("torch_dtype").as_string(), e.dtype);
    EXPECT_EQ(config.at("hidden_size").as_int64(), 128);
    const std::string file = read(out() / "model.safetensors");
    const auto entries = parse_safetensors(std::as_bytes(std::span(file)), "model.safetensors");
    ASSERT_TRUE(entries) << entries.error().message;
    int found = 0, embeddings = 0;
    for (const SafetensorsEntry& t : *entries) {
      found += t.name.ends_with("." + e.suffix);
      embeddings += t.name == "model.embed_tokens.weight" || t.name == "lm_head.weight";
      EXPECT_FALSE(t.name.ends_with("_proj.weight") && t.dtype_name != "F8_E4M3") << t.name;
    }
    EXPECT_EQ(found, 14);
    EXPECT_EQ(embeddings, 2);
    fs::remove_all(out());
  }
}

TEST_F(QuantizeTest, AQuantizedLayerIsNearTheFloatOne) {
  for (const Method method : {Method::kAwq, Method::kGptq}) {
    SCOPED_TRACE(method_name(method));
    const auto plan = make_plan(options(method));
    ASSERT_TRUE(plan) << plan.error().message;
    ThreadPool pool(2);
    const ModelConfig& c = plan->checkpoint.config;
    std::vector<float> angles(c.head_dim / 2, 0.1f);
    const auto layer = load_layer(plan->checkpoint, 0);
    ASSERT_TRUE(layer) << layer.error().message;
    const int64_t samples = plan->samples.count(), length = plan->samples.length;
    Hidden exact{samples, length, random_values(samples * length * c.hidden, 17)}, rounded = exact;
    const std::vector<float> before = exact.values;
    const LayerForward forward(c, angles, pool);
    std::vector<float> x;
    forward.attention(exact, *layer, x);
    forward.add_projection(x, layer->o, exact);
    forward.activated(exact, *layer, x);
    forward.add_projection(x, layer->down, exact);
    LayerQuantizer quantizer(*plan, pool, angles, {});
    const auto tensors = quantizer.run(*layer, rounded);
    ASSERT_TRUE(tensors) << tensors.error().message;
    double error = 0, change = 0;
    for (size_t i = 0; i < before.size(); ++i) {
      error += std::pow(rounded.values[i] - exact.values[i], 2);
      change += std::pow(exact.values[i] - before[i], 2);
    }
    EXPECT_LT(error, 0.03 * change);  // a factor on one side only would be of the order of 1
    EXPECT_GT(error, 0);
  }
}

TEST_F(QuantizeTest, GoesOnWhereItWasWithTheSameBytes) {
  for (const Method method : {Method::kAwq, Method::kGptq, Method::kInt4}) {
    SCOPED_TRACE(method_name(method));
    run(options(method));
    const std::string whole = read(out() / "model.safetensors");
    fs::remove_all(out());
    const auto plan = make_plan(options(method));
    ASSERT_TRUE(plan);
    int finished = 0;
    const auto stopped = quantize(
        *plan, {.progress = [&](int n, int) { finished = n; }, .stopped = [&] { return finished == 1; }});
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
    EXPECT_FALSE(fs::exists(out()));
    EXPECT_EQ(run(options(method)), 1);
    EXPECT_EQ(read(out() / "model.safetensors"), whole);
    fs::remove_all(out());
  }
}

TEST_F(QuantizeTest, OtherSettingsDoNotMix) {
  const auto plan = make_plan(options(Method::kInt4));
  ASSERT_TRUE(plan);
  int finished = 0;
  ASSERT_FALSE(quantize(
      *plan, {.progress = [&](int n, int) { finished = n; }, .stopped = [&] { return finished == 1; }}));
  Options other = options(Method::kInt4);
  other.group = 32;
  const auto changed = make_plan(other);
  ASSERT_TRUE(changed);
  const auto done = quantize(*changed, {.progress = [](int, int) {}, .stopped = {}});
  ASSERT_FALSE(done);
  EXPECT_NE(done.error().message.find("was begun with other settings"), std::string::npos)
      << done.error().message;
}

TEST_F(QuantizeTest, GroupsThatDivide) {
  // 128, 320 columns: 64 is the largest that divides both.
  const auto plan = make_plan(options(Method::kGptq));
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->group, 64);
  Options o = options(Method::kGptq);
  o.group = 128;
  EXPECT_EQ(
      error_of(o),
      "quantize: --group-size: 128 does not divide 320, one of the columns 128, 320 of this model; 64 does");
  o.group = 48;
  EXPECT_EQ(error_of(o), "quantize: --group-size: got 48, expected 32, 64, 128, or -1 for a whole row");
  o.group = -1;
  EXPECT_EQ(error_of(o), "no error");
  o.method = Method::kAwq;
  EXPECT_EQ(error_of(o), "quantize: --group-size: got -1, expected 32, 64, 128");
  EXPECT_EQ(largest_group({576, 1536}), 64);
  EXPECT_EQ(largest_group({4096, 14336}), 128);
  EXPECT_EQ(largest_group({100}), 0);
}

TEST_F(QuantizeTest, RefusesWhatItCannotDo) {
  Options o = options(Method::kGptq);
  folder_.write("short.txt", "A few words.");
  o.calibration = folder_.path() / "short.txt";
  EXPECT_NE(error_of(o).find("has 12 tokens, expected at least 512 (8 samples of 64)"), std::string::npos)
      << error_of(o);
  o.calibration = folder_.path() / "missing.txt";
  EXPECT_NE(error_of(o).find("calibration: "), std::string::npos) << error_of(o);
  folder_.write("bad.jsonl", "{\"text\": \"fine\"}\n{\"words\": 3}\n");
  o.calibration = folder_.path() / "bad.jsonl";
  EXPECT_NE(error_of(o).find("bad.jsonl:2: expected an object with \"text\""), std::string::npos)
      << error_of(o);
  o = options(Method::kAwq);
  o.samples = 2;
  EXPECT_EQ(error_of(o), "quantize: --samples: got 2, expected 8 to 100000");
  o = options(Method::kAwq);
  o.act_order = true;
  EXPECT_EQ(error_of(o), "quantize: --act-order: got the method awq, expected gptq");
  o = options(Method::kFp8);
  fs::create_directory(out());
  std::ofstream(out() / "something") << "x";
  EXPECT_NE(error_of(o).find("exists and is not an empty folder"), std::string::npos) << error_of(o);
  o.out = folder_.path() / "other";
  o.model = folder_.write("model.gguf", "GGUF");
  EXPECT_NE(error_of(o).find("is a file, expected a Hugging Face folder"), std::string::npos) << error_of(o);
}

TEST_F(QuantizeTest, RefusesWhatIsQuantized) {
  run(options(Method::kInt4));
  Options o = options(Method::kFp8);
  o.model = out();
  o.out = folder_.path() / "again";
  EXPECT_NE(error_of(o).find("has a quantization_config (compressed-tensors)"), std::string::npos)
      << error_of(o);
}

TEST_F(QuantizeTest, RefusesWeightsThatAreNotFinite) {
  const fs::path file = model() / "model-00001-of-00001.safetensors";
  std::string bytes = read(file);
  const auto entries = parse_safetensors(std::as_bytes(std::span(bytes)), "model");
  ASSERT_TRUE(entries);
  for (const SafetensorsEntry& e : *entries)
    if (e.name == "model.layers.1.mlp.up_proj.weight") bytes.replace(e.offset + 10, 2, "\xff\x7f");  // NaN
  std::ofstream(file, std::ios::binary) << bytes;
  const auto plan = make_plan(options(Method::kInt4));
  ASSERT_TRUE(plan) << plan.error().message;
  const auto done = quantize(*plan, {.progress = [](int, int) {}, .stopped = {}});
  ASSERT_FALSE(done);
  EXPECT_NE(done.error().message.find("up_proj.weight: holds NaN or infinity"), std::string::npos)
      << done.error().message;
  EXPECT_FALSE(fs::exists(out()));
}

TEST_F(QuantizeTest, JsonLinesAreTexts) {
  std::string lines;
  for (int i = 0; i < 100; ++i)
    lines += i % 2 == 0 ? "{\"text\": \"One sentence with the number " + std::to_string(i) + ".\"}\n"
                        : "{\"messages\": [{\"role\": \"user\", \"content\": \"A question?\"}, "
                          "{\"role\": \"assistant\", \"content\": \"An answer.\"}]}\n\n";
  Options o = options(Method::kGptq);
  o.calibration = folder_.write("text.jsonl", lines);
  const auto plan = make_plan(o);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_EQ(plan->samples.count(), 12);
  EXPECT_EQ(std::ssize(plan->samples.tokens), 12 * 64);
}

}  // namespace
}  // namespace deepinfer::quantize
