// Opening models, and every way in which a path may not be one.
#include "model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gguf_builder.h"
#include "temp_folder.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

fs::path golden(const std::string& name) {
  return fs::path(DI_SOURCE_DIR) / "tests/golden/tiny_llama" / name;
}

Error refusal(const fs::path& path) {
  const auto c = open_checkpoint(path);
  EXPECT_FALSE(c) << path;
  return c ? Error{} : c.error();
}

TEST(Checkpoint, AFolderAndAGgufFileOfOneModelAgree) {
  const auto folder = open_checkpoint(golden("base"));
  const auto gguf = open_checkpoint(golden("base") / "model-q4_1.gguf");
  ASSERT_TRUE(folder) << folder.error().message;
  ASSERT_TRUE(gguf) << gguf.error().message;
  EXPECT_EQ(folder->config.arch, gguf->config.arch);
  EXPECT_EQ(folder->config.vocab_size, gguf->config.vocab_size);
  EXPECT_EQ(folder->config.head_dim, gguf->config.head_dim);
  EXPECT_EQ(folder->config.dtype, "bfloat16");
  EXPECT_EQ(gguf->config.dtype, "Q4_1");
  EXPECT_GT(folder->weight_bytes, gguf->weight_bytes);
  EXPECT_EQ(folder->chat_template, gguf->chat_template);
  EXPECT_THAT(folder->generation.eos, ElementsAre(2));
  ASSERT_EQ(folder->weights.tensors.size(), gguf->weights.tensors.size());
  for (const auto& [name, tensor] : folder->weights.tensors) {
    const RawTensor* other = gguf->weights.find(name);
    ASSERT_NE(other, nullptr) << name;
    EXPECT_EQ(tensor.shape, other->shape) << name;
  }
  const std::string text = "The sea shells, 42 of them.";
  EXPECT_EQ(folder->tokenizer->encode(text), gguf->tokenizer->encode(text));
}

TEST(Checkpoint, OpensShardsAndWorksWithoutATokenizer) {
  const auto c = open_weights(golden("sharded"));
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->weights.files.size(), 2u);
  EXPECT_EQ(c->tokenizer, nullptr);
  EXPECT_EQ(c->config.dtype, "float16");
  const Error needs_one = refusal(golden("sharded"));
  EXPECT_EQ(needs_one.code, ErrorCode::kModel);
  EXPECT_THAT(needs_one.message, HasSubstr("tokenizer.json"));
}

TEST(Checkpoint, EveryFormOfRopeArrives) {
  EXPECT_EQ(open_weights(golden("llama3_rope"))->config.rope_scaling.kind, RopeScaling::Kind::kLlama3);
  EXPECT_EQ(open_weights(golden("linear_rope"))->config.rope_scaling.kind, RopeScaling::Kind::kLinear);
  const auto gguf = open_weights(golden("llama3_rope") / "model-bf16.gguf");
  ASSERT_TRUE(gguf) << gguf.error().message;
  EXPECT_TRUE(gguf->weights.get("rope_freqs.weight", {8})) << "the factors come as a tensor";
}

TEST(Checkpoint, WhatIsNoModelIsRefusedWithWords) {
  const TempFolder folder;
  const Error none = refusal(folder.path() / "nothing.gguf");
  EXPECT_EQ(none.code, ErrorCode::kNotFound);
  EXPECT_THAT(none.message, AllOf(HasSubstr("nothing.gguf"), HasSubstr("no such file or folder"),
                                  HasSubstr("expected a GGUF file")));
  EXPECT_EQ(refusal("").code, ErrorCode::kNotFound);

  EXPECT_THAT(refusal(folder.path()).message, HasSubstr("the folder has no config.json; expected"));
  folder.write("a.gguf", tiny_gguf().build());
  EXPECT_THAT(refusal(folder.path()).message, AllOf(HasSubstr("but a GGUF file: pass"), HasSubstr("a.gguf")));
  EXPECT_THAT(refusal(folder.write("b.bin", "PK\x03\x04")).message,
              HasSubstr("not a GGUF file; it looks like a zip"));
  EXPECT_THAT(refusal(folder.write("empty.gguf", "")).message, HasSubstr("the file is empty"));
  EXPECT_THAT(refusal("/dev/null").message, HasSubstr("not a regular file"));
}

TEST(Checkpoint, AnUnknownArchitectureListsTheKnownOnes) {
  const TempFolder folder;
  GgufBuilder b;
  b.text("general.architecture", "mamba");
  const Error gguf = refusal(folder.write("m.gguf", b.build()));
  EXPECT_EQ(gguf.code, ErrorCode::kModel);
  EXPECT_THAT(gguf.message,
              AllOf(HasSubstr("m.gguf"), HasSubstr("'mamba' is not supported"), HasSubstr("llama")));
  folder.write("config.json", R"({"architectures": ["MambaForCausalLM"]})");
  EXPECT_THAT(refusal(folder.path()).message,
              AllOf(HasSubstr("config.json"), HasSubstr("'MambaForCausalLM' is not supported"),
                    HasSubstr("LlamaForCausalLM")));
}

TEST(Checkpoint, AnUnknownPreTokenizerIsNamed) {
  const TempFolder folder;
  GgufBuilder b;
  b.text("general.architecture", "llama").u32("llama.embedding_length", 32).u32("llama.block_count", 1);
  b.u32("llama.feed_forward_length", 64)
      .u32("llama.context_length", 128)
      .u32("llama.attention.head_count", 2);
  b.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f).text("tokenizer.ggml.model", "gpt2");
  b.text("tokenizer.ggml.pre", "martian").texts("tokenizer.ggml.tokens", {"a"});
  EXPECT_THAT(refusal(folder.write("m.gguf", b.build())).message, HasSubstr("martian"));
}

}  // namespace
}  // namespace deepinfer
