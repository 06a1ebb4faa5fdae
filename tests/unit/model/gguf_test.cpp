// The header of GGUF files: what is read, and every way in which a file may be wrong.
#include "model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "gguf_builder.h"

namespace deepinfer {
namespace {

using testing::HasSubstr;

// On the heap with its exact size: the sanitizer sees one byte too many.
Result<GgufFile> parse(std::string_view bytes, std::vector<std::byte>& keep) {
  const auto* p = reinterpret_cast<const std::byte*>(bytes.data());
  keep.assign(p, p + bytes.size());
  keep.shrink_to_fit();
  return parse_gguf(keep, "t.gguf");
}

// Touches everything that the header points to.
uint64_t read_all(const GgufFile& file, std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (const GgufTensor& t : file.tensors)
    for (const std::byte b : bytes.subspan(t.offset, t.bytes)) sum += std::to_integer<uint64_t>(b);
  for (const auto& [key, value] : file.metadata) {
    sum += key.size();
    if (const auto* s = std::get_if<std::string_view>(&value))
      for (const char c : *s) sum += static_cast<unsigned char>(c);
    if (const auto* a = std::get_if<GgufArray>(&value)) {
      for (const std::string_view s : a->strings) sum += s.size();
      if (a->data != nullptr && a->count != 0) sum += std::to_integer<uint64_t>(a->data[a->count - 1]);
    }
  }
  return sum;
}

TEST(Gguf, ReadsEveryTypeOfValue) {
  GgufBuilder b;
  b.number<uint8_t>("u8", GgufType::kU8, 200).number<int8_t>("i8", GgufType::kI8, -100);
  b.number<uint16_t>("u16", GgufType::kU16, 60000).number<int16_t>("i16", GgufType::kI16, -30000);
  b.u32("u32", 4000000000u).number<int32_t>("i32", GgufType::kI32, -2000000000);
  b.number<uint64_t>("u64", GgufType::kU64, std::numeric_limits<uint64_t>::max());
  b.number<int64_t>("i64", GgufType::kI64, std::numeric_limits<int64_t>::min());
  b.f32("f32", 0.5f).number<double>("f64", GgufType::kF64, 0.25).number<uint8_t>("bool", GgufType::kBool, 1);
  b.text("text", "hello").texts("texts", {"x", "", "yz"});
  b.numbers<int16_t>("list", GgufType::kI16, {1, -2, 3});
  std::vector<std::byte> keep;
  const auto file = parse(b.build(), keep);
  ASSERT_TRUE(file) << file.error().message;
  const auto& m = file->metadata;
  EXPECT_EQ(std::get<uint64_t>(m.at("u8")), 200u);
  EXPECT_EQ(std::get<int64_t>(m.at("i8")), -100);
  EXPECT_EQ(std::get<uint64_t>(m.at("u16")), 60000u);
  EXPECT_EQ(std::get<int64_t>(m.at("i16")), -30000);
  EXPECT_EQ(std::get<uint64_t>(m.at("u32")), 4000000000u);
  EXPECT_EQ(std::get<int64_t>(m.at("i32")), -2000000000);
  EXPECT_EQ(std::get<uint64_t>(m.at("u64")), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(std::get<int64_t>(m.at("i64")), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(std::get<double>(m.at("f32")), 0.5);
  EXPECT_EQ(std::get<double>(m.at("f64")), 0.25);
  EXPECT_EQ(std::get<bool>(m.at("bool")), true);
  EXPECT_EQ(std::get<std::string_view>(m.at("text")), "hello");
  EXPECT_THAT(std::get<GgufArray>(m.at("texts")).strings, testing::ElementsAre("x", "", "yz"));
  EXPECT_EQ(std::get<GgufArray>(m.at("list")).count, 3u);
}

TEST(Gguf, PlacesTensors) {
  for (const uint32_t version : {2u, 3u}) {
    GgufBuilder b = tiny_gguf();
    b.version = version;
    std::vector<std::byte> keep;
    const auto file = parse(b.build(), keep);
    ASSERT_TRUE(file) << file.error().message;
    ASSERT_EQ(file->tensors.size(), 3u);
    const GgufTensor& t = file->tensors[0];
    EXPECT_EQ(t.name, "token_embd.weight");
    EXPECT_EQ(t.dtype, DType::kQ8_0);
    EXPECT_THAT(t.shape, testing::ElementsAre(4, 32)) << "outermost first";
    EXPECT_EQ(t.bytes, 4u * 34);
    for (const GgufTensor& each : file->tensors) {
      EXPECT_EQ(each.offset % 32, 0u);
      EXPECT_EQ(keep[each.offset], std::byte{1}) << each.name;
    }
    EXPECT_EQ(file->tensors.back().offset + file->tensors.back().bytes, keep.size());
  }
}

TEST(Gguf, TakesTheFilesAlignmentAndItsPadding) {
  GgufBuilder b;
  b.alignment = 128;
  b.u32("general.alignment", 128).tensor("a", 0, {3}, 12).tensor("b", 0, {1}, 4);
  std::vector<std::byte> keep;
  const auto file = parse(b.build() + std::string(124, '\0'), keep);
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->tensors[1].offset - file->tensors[0].offset, 128u);
}

TEST(Gguf, EveryTruncationIsAnError) {
  const std::string whole = tiny_gguf().build();
  for (size_t n = 0; n < whole.size(); ++n) {
    std::vector<std::byte> keep;
    const auto file = parse(std::string_view(whole).substr(0, n), keep);
    ASSERT_FALSE(file) << "cut to " << n << " of " << whole.size() << " bytes";
    EXPECT_EQ(file.error().code, ErrorCode::kModel);
    EXPECT_THAT(file.error().message, HasSubstr("t.gguf: "));
  }
}

TEST(Gguf, NoFlippedByteLeadsOutside) {
  const GgufBuilder b = tiny_gguf();
  const std::string whole = b.build();
  const size_t header = b.header().size();
  int refused = 0;
  for (size_t i = 0; i < header; ++i) {
    for (const int mask : {0x01, 0x10, 0x80, 0xff}) {
      std::string bad = whole;
      bad[i] = static_cast<char>(bad[i] ^ mask);
      std::vector<std::byte> keep;
      const auto file = parse(bad, keep);
      if (file)
        read_all(*file, keep);
      else
        ++refused;
    }
  }
  EXPECT_GT(refused, static_cast<int>(header)) << "most fields are checked";
}

struct BadCase {
  const char* name;
  std::function<std::string()> file;
  std::vector<const char*> message;
};

void PrintTo(const BadCase& c, std::ostream* out) {
  *out << c.name;
}

class BadGguf : public testing::TestWithParam<BadCase> {};

TEST_P(BadGguf, IsRefusedWithWords) {
  std::vector<std::byte> keep;
  const auto file = parse(GetParam().file(), keep);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kModel);
  for (const char* part : GetParam().message) EXPECT_THAT(file.error().message, HasSubstr(part));
}

std::string encode(std::initializer_list<uint64_t> words, uint32_t first) {
  std::string s;
  put(s, first);
  for (const uint64_t w : words) put(s, w);
  return s;
}

// A tiny file after a change of one tensor.
std::string with_entry(size_t i, const std::function<void(GgufBuilder::TensorEntry&)>& change) {
  GgufBuilder b = tiny_gguf();
  change(b.entry(i));
  return b.build();
}

std::string with_builder(const std::function<void(GgufBuilder&)>& change) {
  GgufBuilder b = tiny_gguf();
  change(b);
  return b.build();
}

constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();

INSTANTIATE_TEST_SUITE_P(
    Header, BadGguf,
    testing::Values(
        BadCase{"magic",
                [] { return std::string("PK\x03\x04 and more"); },
                {"not a GGUF", "zip archive or a PyTorch"}},
        BadCase{"version1",
                [] { return with_builder([](auto& b) { b.version = 1; }); },
                {"GGUF version 1, expected 2 or 3", "convert"}},
        BadCase{"version4",
                [] { return with_builder([](auto& b) { b.version = 4; }); },
                {"GGUF version 4, expected 2 or 3"}},
        BadCase{"big_endian",
                [] { return with_builder([](auto& b) { b.version = 0x03000000; }); },
                {"big-endian", "gguf-convert-endian"}},
        BadCase{"tensor_count",
                [] { return with_builder([](auto& b) { b.forced_tensor_count = {kHuge}; }); },
                {"number of tensors is 18446744073709551615", "at most"}},
        BadCase{"key_count",
                [] { return with_builder([](auto& b) { b.forced_key_count = {uint64_t{1} << 60}; }); },
                {"number of metadata keys is 1152921504606846976", "at most"}},
        BadCase{"one_key_too_many",
                [] { return with_builder([](auto& b) { b.forced_key_count = {17}; }); },
                {"t.gguf: "}},
        BadCase{"text_length",
                [] {
                  return with_builder(
                      [](auto& b) { b.raw("k", 8, encode({}, 0xffffffffu) + "\xff\xff\xff\xff"); });
                },
                {"truncated or damaged: a string", "18446744073709551615 bytes"}},
        BadCase{"array_length",
                [] { return with_builder([](auto& b) { b.raw("k", 9, encode({kHuge / 2}, 11)); }); },
                {"length of an array is 9223372036854775807"}},
        BadCase{"text_array_length",
                [] { return with_builder([](auto& b) { b.raw("k", 9, encode({kHuge / 8}, 8)); }); },
                {"length of an array is 2305843009213693951"}},
        BadCase{"nested_array",
                [] { return with_builder([](auto& b) { b.raw("k", 9, encode({1}, 9)); }); },
                {"key 'k'", "array of arrays"}},
        BadCase{"array_type",
                [] { return with_builder([](auto& b) { b.raw("k", 9, encode({0}, 13)); }); },
                {"key 'k'", "unknown type 13"}},
        BadCase{"value_type",
                [] { return with_builder([](auto& b) { b.raw("k\x1b", 99, ""); }); },
                {"key 'k\\x1b'", "unknown value type 99", "known are 0 to 12"}},
        BadCase{
            "bool", [] { return with_builder([](auto& b) { b.raw("k", 7, "\x02"); }); }, {"neither 0 nor 1"}},
        BadCase{"bool_array",
                [] { return with_builder([](auto& b) { b.raw("k", 9, encode({2}, 7) + "\x01\x07"); }); },
                {"neither 0 nor 1"}},
        BadCase{"empty_key",
                [] { return with_builder([](auto& b) { b.u32("", 1); }); },
                {"has 0 bytes, expected 1 to 65535"}},
        BadCase{"long_key",
                [] { return with_builder([](auto& b) { b.u32(std::string(65536, 'k'), 1); }); },
                {"has 65536 bytes, expected 1 to 65535"}},
        BadCase{"key_twice",
                [] { return with_builder([](auto& b) { b.u32("llama.block_count", 1); }); },
                {"'llama.block_count' stands in the file twice"}}),
    [](const auto& info) { return std::string(info.param.name); });

INSTANTIATE_TEST_SUITE_P(
    Tensors, BadGguf,
    testing::Values(BadCase{"alignment_12",
                            [] { return with_builder([](auto& b) { b.u32("general.alignment", 12); }); },
                            {"general.alignment is 12, expected a power of two from 8"}},
                    BadCase{"alignment_0",
                            [] { return with_builder([](auto& b) { b.u32("general.alignment", 0); }); },
                            {"general.alignment is 0"}},
                    BadCase{"alignment_text",
                            [] { return with_builder([](auto& b) { b.text("general.alignment", "32"); }); },
                            {"not an unsigned integer"}},
                    BadCase{"twice",
                            [] { return with_entry(1, [](auto& t) { t.name = "token_embd.weight"; }); },
                            {"the tensor 'token_embd.weight' stands in the file twice"}},
                    BadCase{"no_name",
                            [] { return with_entry(1, [](auto& t) { t.name = ""; }); },
                            {"has 0 bytes, expected 1 to"}},
                    BadCase{"no_dimension",
                            [] { return with_entry(1, [](auto& t) { t.dims = {}; }); },
                            {"0 dimensions, expected 1 to 4"}},
                    BadCase{"five_dimensions",
                            [] { return with_entry(1, [](auto& t) { t.dims = {1, 1, 1, 1, 1}; }); },
                            {"5 dimensions, expected 1 to 4"}},
                    BadCase{"zero_dimension",
                            [] { return with_entry(1, [](auto& t) { t.dims = {0}; }); },
                            {"dimension 0 is 0"}},
                    BadCase{"negative",
                            [] { return with_entry(1, [](auto& t) { t.dims = {kHuge}; }); },
                            {"dimension 0 is -1"}},
                    BadCase{"product",
                            [] {
                              return with_entry(
                                  1, [](auto& t) { t.dims = {uint64_t{1} << 40, uint64_t{1} << 40}; });
                            },
                            {"dimension 1 is 1099511627776"}},
                    BadCase{"bytes",
                            [] { return with_entry(1, [](auto& t) { t.dims = {uint64_t{1} << 62}; }); },
                            {"tensor 'output_norm.weight'", "more than a file can hold"}},
                    BadCase{"unknown_type",
                            [] { return with_entry(1, [](auto& t) { t.type = 4711; }); },
                            {"tensor 'output_norm.weight'", "type 4711 (an unknown number)",
                             "F32, F16, BF16, Q4_0, Q4_1 or Q8_0"}},
                    BadCase{"unbuilt_type",
                            [] { return with_entry(2, [](auto& t) { t.type = 14; }); },
                            {"tensor 'blk.0.attn_q.weight'", "type 14 (Q6_K)", "llama-quantize"}},
                    BadCase{"block",
                            [] { return with_entry(2, [](auto& t) { t.dims = {33, 32}; }); },
                            {"a row of 33 elements does not divide into blocks of 32 (Q4_1)"}},
                    BadCase{"outside",
                            [] { return with_entry(2, [](auto& t) { t.dims = {32, 33}; }); },
                            {"truncated or damaged: tensor 'blk.0.attn_q.weight' needs 660 bytes"}},
                    BadCase{"offset_overflow",
                            [] { return with_entry(2, [](auto& t) { t.offset = kHuge - 31; }); },
                            {"truncated or damaged", "at byte 18446744073709551584"}},
                    BadCase{"misaligned",
                            [] { return with_entry(1, [](auto& t) { t.offset += 4; }); },
                            {"expected 160 (there is a hole"}},
                    BadCase{"overlap",
                            [] { return with_entry(1, [](auto& t) { t.offset = 0; }); },
                            {"it overlaps the tensor before it"}},
                    BadCase{"hole",
                            [] { return with_entry(1, [](auto& t) { t.dims = {4}; }); },
                            {"tensor 'blk.0.attn_q.weight'", "there is a hole before it"}},
                    BadCase{"behind",
                            [] { return tiny_gguf().build() + std::string(100, 'x'); },
                            {"100 bytes follow the last tensor"}}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace deepinfer
