// The scalar oracles against what the gguf package computes (tools/golden/dequantize.py), bit for bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/sha.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "quant/formats.h"

namespace deepinfer {
namespace {

struct Golden {
  std::string input;
  std::vector<float> expected;
};

std::map<std::string, Golden> read_golden() {
  std::ifstream in(std::string(DI_SOURCE_DIR) + "/tests/golden/dequantize.bin", std::ios::binary);
  std::map<std::string, Golden> cases;
  char name[9] = {};
  while (in.read(name, 8)) {
    uint32_t sizes[2] = {};
    in.read(reinterpret_cast<char*>(sizes), sizeof sizes);
    Golden g;
    g.input.resize(sizes[0]);
    g.expected.resize(sizes[1]);
    in.read(g.input.data(), sizes[0]);
    in.read(reinterpret_cast<char*>(g.expected.data()),
            static_cast<std::streamsize>(sizes[1] * sizeof(float)));
    EXPECT_TRUE(in) << "the golden file is cut";
    cases[name] = std::move(g);
  }
  return cases;
}

class Dequantize : public testing::TestWithParam<const QuantFormat*> {};

TEST_P(Dequantize, EqualsTheGgufPackageBitForBit) {
  const QuantFormat& format = *GetParam();
  const auto cases = read_golden();
  const auto it = cases.find(std::string(format.name));
  ASSERT_NE(it, cases.end());
  const Golden& g = it->second;
  const auto elems = static_cast<int64_t>(g.expected.size());
  ASSERT_GT(elems, 0);
  ASSERT_EQ(row_bytes(format.dtype, elems), static_cast<int64_t>(g.input.size()));
  for (const size_t misalign : {0u, 1u}) {
    std::vector<std::byte> input(misalign + g.input.size());
    std::memcpy(input.data() + misalign, g.input.data(), g.input.size());
    std::vector<float> out(g.expected.size());
    format.dequantize(input.data() + misalign, elems, out.data());
    for (size_t i = 0; i < out.size(); ++i) {
      if (std::isnan(g.expected[i])) {  // payloads differ between instruction sets
        ASSERT_TRUE(std::isnan(out[i])) << i;
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(g.expected[i]))
            << i << ": " << out[i];
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Dequantize, testing::ValuesIn([] {
                           std::vector<const QuantFormat*> all;
                           for (const QuantFormat& f : quant_formats()) all.push_back(&f);
                           return all;
                         }()),
                         [](const auto& info) { return std::string(info.param->name); });

TEST(Dequantize, EveryPatternOfHalfAndBfloat) {
  std::vector<uint16_t> bits(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  const auto cases = read_golden();
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    std::vector<float> out(bits.size());
    find_format(dtype)->dequantize(reinterpret_cast<const std::byte*>(bits.data()), 65536, out.data());
    std::erase_if(out, [](float x) { return std::isnan(x); });
    std::string digest(SHA256_DIGEST_LENGTH, '\0');
    SHA256(reinterpret_cast<const unsigned char*>(out.data()), out.size() * sizeof(float),
           reinterpret_cast<unsigned char*>(digest.data()));
    EXPECT_EQ(digest, cases.at(std::string(info(dtype).name) + "ALL").input) << info(dtype).name;
  }
}

TEST(QuantFormats, TheTableCoversWhatWeightsHave) {
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ4_0, DType::kQ4_1, DType::kQ8_0}) {
    const QuantFormat* f = find_format(dtype);
    ASSERT_NE(f, nullptr);
    EXPECT_EQ(f->name, info(dtype).name);
    EXPECT_EQ(f->group, info(dtype).block_elems);
  }
  EXPECT_EQ(find_format(DType::kI32), nullptr);
}

TEST(ShardRows, CutsEveryPartAndRefusesARemainder) {
  std::vector<std::byte> q(8 * 40), k(4 * 40);  // 64 columns of Q4_1: 40 bytes a row
  const LinearSource source{.dtype = DType::kQ4_1, .cols = 64, .parts = {{q.data(), 8}, {k.data(), 4}}};
  const auto second = shard_rows(source, 1, 4);
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_EQ(second->parts[0].rows, 2);
  EXPECT_EQ(second->parts[0].data, q.data() + 2 * 40);
  EXPECT_EQ(second->parts[1].rows, 1);
  EXPECT_EQ(second->parts[1].data, k.data() + 40);
  const LinearSource random{.dtype = DType::kBF16,
                            .cols = 64,
                            .parts = {{.rows = 8, .random = RandomValues{.seed = 1, .first = 5}}}};
  const auto made = shard_rows(random, 3, 4);
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ(made->parts[0].random->first, 5 + 3 * 2 * 64);
  EXPECT_EQ(made->parts[0].data, nullptr);
  const auto third = shard_rows(source, 0, 3);
  ASSERT_FALSE(third);
  EXPECT_EQ(third.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(third.error().message, testing::HasSubstr("8 rows does not divide over 3 ranks"));
}

}  // namespace
}  // namespace deepinfer
