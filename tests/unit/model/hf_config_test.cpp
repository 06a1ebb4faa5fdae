// config.json, generation_config.json and chat templates in the forms that transformers 4 and 5 write.
#include "model/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json_file.h"
#include "temp_folder.h"

namespace deepinfer {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// A small config with more keys; a later key wins over an earlier one of its name.
std::string config(const std::string& more) {
  return R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2,
  "intermediate_size": 96, "num_attention_heads": 4)" +
         (more.empty() ? "" : ", " + more) + "}";
}

std::string refusal(const std::string& more) {
  const auto c = parse_hf_config(config(more), "m/config.json");
  EXPECT_FALSE(c) << more;
  if (c) return {};
  EXPECT_EQ(c.error().code, ErrorCode::kModel);
  EXPECT_THAT(c.error().message, HasSubstr("m/config.json"));
  return c.error().message;
}

TEST(HfConfig, AbsentAndNullKeysMeanTheDefaultsOfTransformers) {
  for (const char* more : {"", R"("num_key_value_heads": null, "head_dim": null, "rope_scaling": null,
       "eos_token_id": null, "tie_word_embeddings": null, "rms_norm_eps": null, "quantization_config": null)"}) {
    const auto c = parse_hf_config(config(more), "config.json");
    ASSERT_TRUE(c) << c.error().message;
    EXPECT_EQ(c->arch, "LlamaForCausalLM");
    EXPECT_EQ(c->vocab_size, 100);
    EXPECT_EQ(c->kv_heads, 4);
    EXPECT_EQ(c->head_dim, 16);
    EXPECT_EQ(c->max_position, 2048);
    EXPECT_FLOAT_EQ(c->norm_eps, 1e-6f);
    EXPECT_EQ(c->rope_theta, 10000.0f);
    EXPECT_EQ(c->rope_scaling.kind, RopeScaling::Kind::kNone);
    EXPECT_FALSE(c->rope_interleaved);
    EXPECT_FALSE(c->tied_head);
    EXPECT_TRUE(c->eos.empty());
  }
}

TEST(HfConfig, ReadsEveryKey) {
  const auto c = parse_hf_config(
      config(
          R"("num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 8192.0, "rms_norm_eps": 1e-5,
      "rope_theta": 500000.0, "tie_word_embeddings": true, "attention_bias": true, "mlp_bias": true,
      "bos_token_id": 1, "eos_token_id": [2, 3, 2], "torch_dtype": "bfloat16", "hidden_act": "silu")"),
      "config.json");
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->kv_heads, 2);
  EXPECT_EQ(c->head_dim, 32);
  EXPECT_EQ(c->max_position, 8192);
  EXPECT_FLOAT_EQ(c->norm_eps, 1e-5f);
  EXPECT_EQ(c->rope_theta, 500000.0f);
  EXPECT_TRUE(c->tied_head);
  EXPECT_TRUE(c->attention_bias);
  EXPECT_TRUE(c->mlp_bias);
  EXPECT_THAT(c->bos, ElementsAre(1));
  EXPECT_THAT(c->eos, ElementsAre(2, 3));
  EXPECT_EQ(c->dtype, "bfloat16");
}

TEST(HfConfig, Llama3ScalingInBothForms) {
  const std::string values =
      R"("rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192)";
  for (const std::string& more : {R"("rope_theta": 500000.0, "rope_scaling": {)" + values + "}",
                                  R"("rope_parameters": {"rope_theta": 500000.0, )" + values + "}"}) {
    const auto c = parse_hf_config(config(more), "config.json");
    ASSERT_TRUE(c) << c.error().message;
    EXPECT_EQ(c->rope_theta, 500000.0f);
    EXPECT_EQ(c->rope_scaling.kind, RopeScaling::Kind::kLlama3);
    EXPECT_EQ(c->rope_scaling.factor, 32.0f);
    EXPECT_EQ(c->rope_scaling.low_freq_factor, 1.0f);
    EXPECT_EQ(c->rope_scaling.high_freq_factor, 4.0f);
    EXPECT_EQ(c->rope_scaling.original_max_position, 8192);
  }
}

TEST(HfConfig, LinearScalingInItsForms) {
  for (const char* more :
       {R"("rope_scaling": {"type": "linear", "factor": 2.0})",
        R"("rope_scaling": {"rope_type": "linear", "factor": 2})",
        R"("rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000})"}) {
    const auto c = parse_hf_config(config(more), "config.json");
    ASSERT_TRUE(c) << c.error().message;
    EXPECT_EQ(c->rope_scaling.kind, RopeScaling::Kind::kLinear);
    EXPECT_EQ(c->rope_scaling.factor, 2.0f);
  }
  const auto none =
      parse_hf_config(config(R"("rope_parameters": {"rope_type": "default", "rope_theta": 7.5})"), "c");
  ASSERT_TRUE(none) << none.error().message;
  EXPECT_EQ(none->rope_scaling.kind, RopeScaling::Kind::kNone);
  EXPECT_EQ(none->rope_theta, 7.5f);
}

TEST(HfConfig, RefusesWithKeyValueAndRange) {
  EXPECT_THAT(refusal(R"("hidden_size": 0)"),
              HasSubstr("hidden_size is 0, expected an integer from 1 to 1048576"));
  EXPECT_THAT(refusal(R"("hidden_size": "64")"), HasSubstr("hidden_size is \"64\""));
  EXPECT_THAT(refusal(R"("hidden_size": 64.5)"), HasSubstr("hidden_size is 6.45"));
  EXPECT_THAT(refusal(R"("hidden_size": null)"), HasSubstr("hidden_size is missing"));
  EXPECT_THAT(refusal(R"("vocab_size": 99999999999999999999)"), HasSubstr("vocab_size"));
  EXPECT_THAT(refusal(R"("num_attention_heads": 5)"),
              HasSubstr("64 is no multiple of num_attention_heads 5"));
  EXPECT_THAT(refusal(R"("num_key_value_heads": 3)"), HasSubstr("4 is no multiple of num_key_value_heads 3"));
  EXPECT_THAT(refusal(R"("head_dim": 15)"), HasSubstr("head_dim is 15, expected an even number"));
  EXPECT_THAT(refusal(R"("eos_token_id": 100)"),
              HasSubstr("eos_token_id is 100, expected a token id from 0 to 99"));
  EXPECT_THAT(refusal(R"("eos_token_id": [1, "x"])"), HasSubstr("eos_token_id"));
  EXPECT_THAT(refusal(R"("hidden_act": "gelu")"), HasSubstr("hidden_act is 'gelu', expected silu"));
  EXPECT_THAT(refusal(R"("tie_word_embeddings": 1)"), HasSubstr("expected true or false"));
  EXPECT_THAT(refusal(R"("rope_scaling": {"rope_type": "yarn", "factor": 2.0})"),
              HasSubstr("rope_type is 'yarn', which is not supported; expected default, linear or llama3"));
  EXPECT_THAT(refusal(R"("rope_scaling": {"type": "linear"})"), HasSubstr("factor is missing"));
  EXPECT_THAT(refusal(R"("rope_scaling": {"rope_type": "llama3", "factor": 8})"),
              HasSubstr("low_freq_factor"));
  EXPECT_THAT(
      refusal(
          R"("rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1})"),
      HasSubstr("expected less than high_freq_factor"));
  EXPECT_THAT(refusal(R"("partial_rotary_factor": 1, "rope_parameters": {"partial_rotary_factor": 0.5})"),
              HasSubstr("partial_rotary_factor is 0.5"));
  EXPECT_THAT(refusal(R"("architectures": [])"), HasSubstr("architectures is missing"));
}

TEST(HfConfig, BrokenJsonNamesLineAndColumn) {
  const auto c = parse_hf_config("{\n  \"a\": 1,\n  oops\n}", "config.json");
  ASSERT_FALSE(c);
  EXPECT_THAT(c.error().message, HasSubstr("config.json: not valid JSON"));
  EXPECT_THAT(c.error().message, HasSubstr("at line 3, column"));
  EXPECT_THAT(parse_hf_config("[1]", "c").error().message, HasSubstr("expected a JSON object"));
  EXPECT_FALSE(parse_hf_config("", "c"));
  EXPECT_FALSE(parse_hf_config("{} {}", "c"));
  EXPECT_FALSE(parse_hf_config(std::string(100000, '['), "c")) << "depth is limited";
}

TEST(GenerationConfig, ReadsWhatIsThere) {
  const auto g = parse_generation_config(
      R"({"temperature": 0.6, "top_p": 0.9, "top_k": 50, "min_p": null, "repetition_penalty": 1.1,
          "max_new_tokens": 77, "eos_token_id": [2, 5], "do_sample": true})",
      "g.json");
  ASSERT_TRUE(g) << g.error().message;
  EXPECT_EQ(g->temperature, 0.6);
  EXPECT_EQ(g->top_p, 0.9);
  EXPECT_EQ(g->top_k, 50);
  EXPECT_FALSE(g->min_p.has_value());
  EXPECT_EQ(g->repetition_penalty, 1.1);
  EXPECT_EQ(g->max_tokens, 77);
  EXPECT_THAT(g->eos, ElementsAre(2, 5));
  EXPECT_THAT(parse_generation_config(R"({"top_p": 1.5})", "g.json").error().message,
              HasSubstr("g.json: top_p is 1.5E0, expected a number from 0 to 1"));
  EXPECT_FALSE(parse_generation_config(R"({"temperature": -1})", "g.json"));
  EXPECT_FALSE(parse_generation_config(R"({"eos_token_id": -1})", "g.json"));
}

TEST(ChatTemplateFile, OwnFileWinsThenStringThenTheDefaultOfAList) {
  const TempFolder folder;
  EXPECT_EQ(*read_chat_template(folder.path()), "");
  folder.write("tokenizer_config.json", R"({"bos_token": "x"})");
  EXPECT_EQ(*read_chat_template(folder.path()), "");
  folder.write("tokenizer_config.json", R"({"chat_template": "one"})");
  EXPECT_EQ(*read_chat_template(folder.path()), "one");
  folder.write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "a"},
                                             {"name": "default", "template": "b"}]})");
  EXPECT_EQ(*read_chat_template(folder.path()), "b");
  folder.write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "a"}]})");
  EXPECT_THAT(read_chat_template(folder.path()).error().message, HasSubstr("without one named \"default\""));
  folder.write("tokenizer_config.json", R"({"chat_template": 5})");
  EXPECT_FALSE(read_chat_template(folder.path()));
  folder.write("chat_template.jinja", "own");
  EXPECT_EQ(*read_chat_template(folder.path()), "own");
}

TEST(ReadFile, HasALimit) {
  const TempFolder folder;
  const auto path = folder.write("a", "12345");
  EXPECT_EQ(*read_file(path, 5), "12345");
  EXPECT_THAT(read_file(path, 4).error().message, HasSubstr("5 bytes, expected at most 4"));
  EXPECT_EQ(read_file(folder.path() / "b", 4).error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace deepinfer
