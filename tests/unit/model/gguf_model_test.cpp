// What a GGUF file's metadata means, and what is refused.
#include "model/gguf_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <memory>

#include "gguf_builder.h"
#include "temp_folder.h"

namespace deepinfer {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// A header and the bytes that it points to.
struct Parsed {
  std::string bytes;
  GgufFile file;
};

std::unique_ptr<Parsed> parsed(const GgufBuilder& b) {
  auto p = std::make_unique<Parsed>();
  p->bytes = b.build();
  auto file = parse_gguf({reinterpret_cast<const std::byte*>(p->bytes.data()), p->bytes.size()}, "t.gguf");
  if (!file) {
    ADD_FAILURE() << file.error().message;
    return nullptr;
  }
  p->file = std::move(*file);
  return p;
}

// A llama with other metadata than tiny_gguf's, key by key.
GgufBuilder llama(const std::function<void(GgufBuilder&)>& more) {
  GgufBuilder b;
  b.text("general.architecture", "llama").u32("llama.embedding_length", 48).u32("llama.block_count", 2);
  b.u32("llama.feed_forward_length", 96).u32("llama.context_length", 64);
  b.f32("llama.attention.layer_norm_rms_epsilon", 1e-6f);
  more(b);
  return b;
}

Result<ModelConfig> config_of(const GgufBuilder& b) {
  const auto p = parsed(b);
  if (p) return gguf_config(p->file, "t.gguf");
  return Error{ErrorCode::kInternal, "no file", {}};
}

void heads(GgufBuilder& b) {
  b.u32("llama.attention.head_count", 3).u32("llama.vocab_size", 7);
}

TEST(GgufModel, ReadsTheShape) {
  const auto c = config_of(tiny_gguf());
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->arch, "LlamaForCausalLM");
  EXPECT_TRUE(c->rope_interleaved);
  EXPECT_EQ(c->hidden, 32);
  EXPECT_EQ(c->layers, 1);
  EXPECT_EQ(c->ffn, 64);
  EXPECT_EQ(c->max_position, 128);
  EXPECT_EQ(c->heads, 2);
  EXPECT_EQ(c->kv_heads, 1);
  EXPECT_EQ(c->head_dim, 16);
  EXPECT_EQ(c->vocab_size, 4);
  EXPECT_FLOAT_EQ(c->norm_eps, 1e-5f);
  EXPECT_FLOAT_EQ(c->rope_theta, 5000.0f);
  EXPECT_TRUE(c->tied_head);
  EXPECT_FALSE(c->attention_bias);
  EXPECT_THAT(c->eos, ElementsAre(3));
  EXPECT_TRUE(c->bos.empty());
}

TEST(GgufModel, DefaultsAndOptionalKeys) {
  const auto c = config_of(llama([](GgufBuilder& b) {
    b.numbers<int32_t>("llama.attention.head_count", GgufType::kI32, {4, 4})
        .u32("llama.attention.key_length", 20);
    b.u32("llama.attention.value_length", 20)
        .u32("llama.rope.dimension_count", 20)
        .u32("llama.vocab_size", 7);
    b.f32("llama.rope.scaling.factor", 4.0f).text("llama.rope.scaling.type", "linear");
    b.tensor("output.weight", 0, {48, 7}, 48 * 7 * 4).tensor("blk.0.attn_q.bias", 0, {80}, 320);
    b.tensor("blk.0.ffn_gate.bias", 0, {96}, 384);
  }));
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->heads, 4) << "an array of equal numbers";
  EXPECT_EQ(c->kv_heads, 4);
  EXPECT_EQ(c->head_dim, 20);
  EXPECT_EQ(c->vocab_size, 7);
  EXPECT_EQ(c->rope_theta, 10000.0f);
  EXPECT_EQ(c->rope_scaling.kind, RopeScaling::Kind::kLinear);
  EXPECT_EQ(c->rope_scaling.factor, 4.0f);
  EXPECT_FALSE(c->tied_head);
  EXPECT_TRUE(c->attention_bias);
  EXPECT_TRUE(c->mlp_bias);
}

TEST(GgufModel, RefusesWhatWouldGoWrongSilently) {
  const auto message = [](const std::function<void(GgufBuilder&)>& more) {
    const auto c = config_of(llama(more));
    EXPECT_FALSE(c);
    return c ? std::string() : c.error().message;
  };
  EXPECT_THAT(message([](GgufBuilder&) {}), HasSubstr("the key llama.attention.head_count is missing"));
  EXPECT_THAT(message([](GgufBuilder& b) { b.u32("llama.attention.head_count", 0); }),
              HasSubstr("llama.attention.head_count is 0, expected an integer from 1"));
  EXPECT_THAT(message([](GgufBuilder& b) { b.text("llama.attention.head_count", "9"); }),
              HasSubstr("is the text '9'"));
  EXPECT_THAT(message([](GgufBuilder& b) {
                b.numbers<int32_t>("llama.attention.head_count", GgufType::kI32, {4, 2});
              }),
              HasSubstr("is an array of 2 values"));
  EXPECT_THAT(message([](GgufBuilder& b) { b.u32("llama.attention.head_count", 5); }),
              HasSubstr("does not divide into 5 heads"));
  EXPECT_THAT(message([](GgufBuilder& b) {
                heads(b);
                b.u32("llama.attention.head_count_kv", 2);
              }),
              HasSubstr("3 attention heads do not divide into 2"));
  EXPECT_THAT(message([](GgufBuilder& b) {
                heads(b);
                b.u32("llama.rope.dimension_count", 8);
              }),
              HasSubstr("llama.rope.dimension_count is 8, expected the head size 16"));
  EXPECT_THAT(message([](GgufBuilder& b) {
                heads(b);
                b.text("llama.rope.scaling.type", "yarn");
              }),
              HasSubstr("'yarn', which is not supported; expected none or linear"));
  EXPECT_THAT(message([](GgufBuilder& b) {
                heads(b);
                b.u32("llama.expert_count", 8);
              }),
              HasSubstr("mixture of 8 experts"));
  EXPECT_THAT(message([](GgufBuilder& b) {
                heads(b);
                b.f32("llama.rope.freq_base", std::numeric_limits<float>::quiet_NaN());
              }),
              HasSubstr("llama.rope.freq_base is nan"));
  EXPECT_THAT(message([](GgufBuilder& b) { b.u32("llama.attention.head_count", 3); }),
              HasSubstr("a vocabulary of 0 tokens"));
  EXPECT_THAT(message([](GgufBuilder& b) {
                heads(b);
                b.u32("tokenizer.ggml.eos_token_id", 7);
              }),
              HasSubstr("eos_token_id is 7, expected an integer from 0 to 6"));
  EXPECT_THAT(message([](GgufBuilder& b) {
                heads(b);
                b.texts("tokenizer.ggml.tokens", {"a", "b"}).tensor("token_embd.weight", 0, {48, 1}, 192);
              }),
              HasSubstr("the tokenizer has 2 tokens, but the embedding only 1 rows"));
}

TEST(GgufModel, NamesAnUnknownOrMissingArchitecture) {
  GgufBuilder b;
  b.u32("x", 1);
  const auto none = parsed(b);
  EXPECT_THAT(gguf_arch(none->file, "t.gguf").error().message, HasSubstr("general.architecture is missing"));
  b.text("general.architecture", "mamba\x07");
  const auto other = parsed(b);
  EXPECT_EQ(*gguf_arch(other->file, "t.gguf"), "mamba\\x07");
}

TEST(GgufModel, MapsNames) {
  EXPECT_EQ(hf_tensor_name("token_embd.weight"), "model.embed_tokens.weight");
  EXPECT_EQ(hf_tensor_name("output_norm.weight"), "model.norm.weight");
  EXPECT_EQ(hf_tensor_name("output.weight"), "lm_head.weight");
  EXPECT_EQ(hf_tensor_name("blk.0.attn_q.weight"), "model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(hf_tensor_name("blk.17.attn_output.bias"), "model.layers.17.self_attn.o_proj.bias");
  EXPECT_EQ(hf_tensor_name("blk.3.ffn_norm.weight"), "model.layers.3.post_attention_layernorm.weight");
  EXPECT_EQ(hf_tensor_name("blk.3.ffn_down.weight"), "model.layers.3.mlp.down_proj.weight");
  for (const char* same :
       {"rope_freqs.weight", "blk.01.attn_q.weight", "blk..attn_q.weight", "blk.1", "blk.1.",
        "blk.x.attn_q.weight", "blk.9999999.attn_q.weight", "", ".", "blk.1.other.weight"})
    EXPECT_EQ(hf_tensor_name(same), same);
}

TEST(GgufModel, ReadsTheTokenizer) {
  GgufBuilder b = tiny_gguf();
  b.u32("tokenizer.ggml.bos_token_id", 0)
      .u32("tokenizer.ggml.eot_token_id", 2)
      .u32("tokenizer.ggml.padding_token_id", 1);
  b.text("tokenizer.chat_template", "{{ x }}")
      .f32("general.sampling.temp", 0.5f)
      .u32("general.sampling.top_k", 40);
  const auto p = parsed(b);
  const auto t = gguf_tokenizer(p->file, "t.gguf");
  ASSERT_TRUE(t) << t.error().message;
  EXPECT_EQ(t->model, "gpt2");
  EXPECT_EQ(t->pre, "gpt-2");
  EXPECT_THAT(t->tokens, ElementsAre("a", "b", "ab", "<|im_end|>"));
  EXPECT_EQ(t->kinds.at(3), TokenizerData::Kind::kControl);
  EXPECT_THAT(t->merges, ElementsAre("a b"));
  EXPECT_EQ(t->bos, 0);
  EXPECT_EQ(t->eos, 3);
  EXPECT_EQ(t->pad, 1);
  EXPECT_FALSE(t->unk.has_value());
  EXPECT_THAT(t->eog, ElementsAre(2)) << "eos itself is not repeated";
  EXPECT_EQ(t->add_bos, false);
  EXPECT_EQ(gguf_chat_template(p->file), "{{ x }}");
  const auto g = gguf_generation(p->file, "t.gguf");
  ASSERT_TRUE(g) << g.error().message;
  EXPECT_EQ(g->temperature, 0.5);
  EXPECT_EQ(g->top_k, 40);
  EXPECT_FALSE(g->top_p.has_value());
}

TEST(GgufModel, RefusesABrokenTokenizer) {
  const auto message = [](const std::function<void(GgufBuilder&)>& fill) {
    GgufBuilder b;
    fill(b);
    const auto p = parsed(b);
    const auto t = gguf_tokenizer(p->file, "t.gguf");
    EXPECT_FALSE(t);
    return t ? std::string() : t.error().message;
  };
  EXPECT_THAT(message([](GgufBuilder& b) { b.texts("tokenizer.ggml.tokens", {"a"}); }),
              HasSubstr("tokenizer.ggml.model is missing"));
  EXPECT_THAT(message([](GgufBuilder& b) { b.text("tokenizer.ggml.model", "gpt2"); }),
              HasSubstr("tokenizer.ggml.tokens is missing"));
  const auto base = [](GgufBuilder& b) -> GgufBuilder& {
    return b.text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.tokens", {"a", "b"});
  };
  EXPECT_THAT(message([&](GgufBuilder& b) {
                base(b).numbers<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, {1});
              }),
              HasSubstr("has 1 entries, expected 2"));
  EXPECT_THAT(message([&](GgufBuilder& b) {
                base(b).numbers<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, {1, 9});
              }),
              HasSubstr("token_type[1] is 9, expected 1 to 6"));
  EXPECT_THAT(message([&](GgufBuilder& b) { base(b).u32("tokenizer.ggml.bos_token_id", 2); }),
              HasSubstr("from 0 to 1"));
  EXPECT_THAT(message([&](GgufBuilder& b) { base(b).u32("tokenizer.ggml.merges", 2); }),
              HasSubstr("expected an array of texts"));
}

TEST(GgufModel, OpensWeightsByTheirNames) {
  const TempFolder folder;
  const auto opened = open_gguf(folder.write("a.gguf", tiny_gguf().build()));
  ASSERT_TRUE(opened) << opened.error().message;
  const Weights& w = opened->weights;
  EXPECT_EQ(w.tensors.size(), 3u);
  const auto t = w.get("model.embed_tokens.weight", {4, 32});
  ASSERT_TRUE(t) << t.error().message;
  EXPECT_EQ((*t)->dtype, DType::kQ8_0);
  EXPECT_EQ((*t)->origin, "a.gguf: token_embd.weight");
  EXPECT_EQ((*t)->data[0], std::byte{1});
  w.release_pages();
  EXPECT_EQ((*t)->data[1], std::byte{2}) << "read again from the file";
  EXPECT_THAT(w.get("model.embed_tokens.weight", {32, 4}).error().message,
              testing::AllOf(HasSubstr("a.gguf: token_embd.weight"),
                             HasSubstr("the shape [4, 32], expected [32, 4]")));
  EXPECT_THAT(w.get("model.layers.0.mlp.up_proj.weight", {64, 32}).error().message,
              testing::AllOf(HasSubstr("model.layers.0.mlp.up_proj.weight is missing"),
                             HasSubstr("a.gguf has 3 weights")));
}

TEST(GgufModel, RefusesSplitFilesAndTwoTensorsOfOneMeaning) {
  const TempFolder folder;
  GgufBuilder split = tiny_gguf();
  split.number<uint16_t>("split.count", GgufType::kU16, 3);
  EXPECT_THAT(open_gguf(folder.write("s.gguf", split.build())).error().message,
              testing::AllOf(HasSubstr("one of 3 parts"), HasSubstr("llama-gguf-split --merge")));
  GgufBuilder twice = tiny_gguf();
  twice.tensor("model.norm.weight", 0, {32}, 128);
  EXPECT_THAT(open_gguf(folder.write("t.gguf", twice.build())).error().message,
              HasSubstr("mean the same weight (model.norm.weight)"));
}

}  // namespace
}  // namespace deepinfer
