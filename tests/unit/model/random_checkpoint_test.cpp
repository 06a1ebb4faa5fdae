#include "model/random_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "model/model.h"
#include "temp_folder.h"
#include "tensor/half.h"

namespace deepinfer {
namespace {

// The values of a tensor, as they stand in memory or would.
std::vector<std::byte> bytes_of(const RawTensor& t) {
  if (!t.random) return {t.data, t.data + t.bytes};
  std::vector<std::byte> made(t.bytes);
  write_random(*t.random, 0, static_cast<int64_t>(t.bytes / 2), made.data());
  return made;
}

TEST(RandomCheckpoint, EveryShapeIsWholeAndLoads) {
  for (const std::string& name : random_shapes()) {
    if (name == "llama-3.1-8b" || name == "llama-3.2-1b")
      continue;  // gigabytes; the next test looks at their sizes
    auto c = random_checkpoint(name, 1);
    ASSERT_TRUE(c.ok()) << c.error().message;
    ThreadPool pool(1);
    Context context{.pool = &pool};
    auto model = make_model(c->config, c->weights, context);
    ASSERT_TRUE(model.ok()) << name << ": " << model.error().message;
  }
}

TEST(RandomCheckpoint, Llama8BHasItsParameters) {
  auto c = random_checkpoint("llama-3.1-8b", 1);
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->weight_bytes, 2 * int64_t{8'030'261'248});  // as the model's card counts them
  size_t in_memory = 0;
  for (const Buffer& b : c->weights.copies) in_memory += b.size();
  EXPECT_LT(in_memory, 1u << 20);
}

TEST(RandomCheckpoint, SeedDecidesTheValues) {
  auto a = random_checkpoint("tiny", 7), b = random_checkpoint("tiny", 7),
       other = random_checkpoint("tiny", 8);
  ASSERT_TRUE(a.ok() && b.ok() && other.ok());
  const char* name = "model.layers.1.mlp.up_proj.weight";
  const RawTensor& t = *a->weights.find(name);
  const auto x = bytes_of(t), y = bytes_of(*b->weights.find(name)), z = bytes_of(*other->weights.find(name));
  EXPECT_TRUE(x == y);
  EXPECT_FALSE(x == z);
  const size_t row = t.bytes / static_cast<size_t>(t.shape[0]);
  EXPECT_NE(std::memcmp(x.data(), x.data() + row, row), 0) << "rows differ";
  const auto gate = bytes_of(*a->weights.find("model.layers.1.mlp.gate_proj.weight"));
  EXPECT_FALSE(x == gate) << "tensors differ";
}

TEST(RandomCheckpoint, NormsAreOne) {
  auto c = random_checkpoint("tiny", 7);
  ASSERT_TRUE(c.ok());
  const RawTensor& norm = *c->weights.find("model.norm.weight");
  ASSERT_EQ(norm.bytes, 256u);
  for (size_t i = 0; i < norm.bytes; i += 2) {
    uint16_t bits = 0;
    std::memcpy(&bits, norm.data + i, 2);
    EXPECT_EQ(bf16_to_float(bits), 1.0f);
  }
}

TEST(RandomCheckpoint, SavedIsReadBack) {
  const TempFolder folder;
  auto c = random_checkpoint("tiny", 7);
  ASSERT_TRUE(c.ok());
  auto saved = save_checkpoint(*c, folder.path() / "new");
  ASSERT_TRUE(saved.ok()) << saved.error().message;
  auto read = open_weights(folder.path() / "new");
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->weight_bytes, c->weight_bytes);
  EXPECT_EQ(read->config.layers, c->config.layers);
  EXPECT_EQ(read->config.rope_theta, c->config.rope_theta);
  EXPECT_EQ(read->config.tied_head, c->config.tied_head);
  ASSERT_EQ(read->weights.tensors.size(), c->weights.tensors.size());
  for (const auto& [name, t] : c->weights.tensors) {
    auto got = read->weights.get(name, t.shape);
    ASSERT_TRUE(got.ok()) << got.error().message;
    ASSERT_EQ((*got)->bytes, t.bytes) << name;
    EXPECT_TRUE(bytes_of(**got) == bytes_of(t)) << name;
  }
  auto again = save_checkpoint(*c, folder.path() / "new");
  ASSERT_FALSE(again.ok());
  EXPECT_THAT(again.error().message, testing::HasSubstr("expected a new or empty folder"));
}

TEST(RandomCheckpoint, UnknownShape) {
  auto c = random_checkpoint("llama-9", 1);
  ASSERT_FALSE(c.ok());
  EXPECT_EQ(c.error().code, ErrorCode::kConfig);
  EXPECT_THAT(c.error().message, testing::HasSubstr("llama-3.1-8b"));
}

}  // namespace
}  // namespace deepinfer
