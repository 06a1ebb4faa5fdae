// Safetensors files and shards: what is read, and every way in which they may be wrong.
#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gguf_builder.h"
#include "temp_folder.h"

namespace deepinfer {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::string file_of(const std::string& header, size_t data_bytes) {
  std::string out;
  put<uint64_t>(out, header.size());
  out += header;
  for (size_t i = 0; i < data_bytes; ++i) out += static_cast<char>(1 + i % 100);
  return out;
}

const char* const kHeader =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},)"
    R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

Result<std::vector<SafetensorsEntry>> parse(std::string_view bytes, std::vector<std::byte>& keep) {
  const auto* p = reinterpret_cast<const std::byte*>(bytes.data());
  keep.assign(p, p + bytes.size());
  keep.shrink_to_fit();
  return parse_safetensors(keep, "t.safetensors");
}

Result<std::vector<SafetensorsEntry>> parse(std::string_view bytes) {
  std::vector<std::byte> keep;
  return parse(bytes, keep);
}

TEST(Safetensors, ReadsEntries) {
  const auto e = parse(file_of(kHeader, 20));
  ASSERT_TRUE(e) << e.error().message;
  ASSERT_EQ(e->size(), 2u);
  const SafetensorsEntry& b = (*e)[0];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, DType::kBF16);
  EXPECT_THAT(b.shape, ElementsAre(2, 3));
  EXPECT_EQ(b.offset, 8 + std::string(kHeader).size() + 8);
  EXPECT_EQ(b.bytes, 12u);
}

TEST(Safetensors, TakesEmptyTensorsScalarsAndPadding) {
  const auto e = parse(
      file_of(R"({"s":{"dtype":"F16","shape":[],"data_offsets":[0,2]},"z":{"dtype":"F32","shape":[0,9],)"
              R"("data_offsets":[2,2]}}    )",
              2));
  ASSERT_TRUE(e) << e.error().message;
  EXPECT_EQ(e->size(), 2u);
}

TEST(Safetensors, EveryTruncationIsAnError) {
  const std::string whole = file_of(kHeader, 20);
  for (size_t n = 0; n < whole.size(); ++n) {
    const auto e = parse(std::string_view(whole).substr(0, n));
    ASSERT_FALSE(e) << "cut to " << n;
    EXPECT_EQ(e.error().code, ErrorCode::kModel);
    EXPECT_THAT(e.error().message, HasSubstr("t.safetensors: "));
  }
}

TEST(Safetensors, NoFlippedByteLeadsOutside) {
  const std::string whole = file_of(kHeader, 20);
  int refused = 0;
  for (size_t i = 0; i < whole.size() - 20; ++i) {
    for (const int mask : {0x01, 0x02, 0x10, 0x80, 0xff}) {
      std::string bad = whole;
      bad[i] = static_cast<char>(bad[i] ^ mask);
      std::vector<std::byte> keep;
      const auto e = parse(bad, keep);
      refused += e ? 0 : 1;
      if (!e) continue;
      for (const SafetensorsEntry& each : *e)
        ASSERT_LE(each.offset + each.bytes, keep.size()) << "byte " << i << " mask " << mask;
    }
  }
  EXPECT_GT(refused, 400);
}

struct BadCase {
  const char* name;
  std::string header;
  size_t data;
  const char* message;
};

void PrintTo(const BadCase& c, std::ostream* out) {
  *out << c.name;
}

class BadSafetensors : public testing::TestWithParam<BadCase> {};

TEST_P(BadSafetensors, IsRefusedWithWords) {
  const auto e = parse(file_of(GetParam().header, GetParam().data));
  ASSERT_FALSE(e);
  EXPECT_EQ(e.error().code, ErrorCode::kModel);
  EXPECT_THAT(e.error().message, HasSubstr(GetParam().message));
}

std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

INSTANTIATE_TEST_SUITE_P(
    All, BadSafetensors,
    testing::Values(
        BadCase{"json", "{\"a\": nope}", 0, "header: not valid JSON"},
        BadCase{"array", "[]", 0, "not a safetensors file"},
        BadCase{"deep", "{\"a\":" + std::string(1000, '['), 0, "not valid JSON"},
        BadCase{"no_object", "{\"a\":1}", 0, "tensor 'a': expected an object with dtype"},
        BadCase{"dtype_type", one("5", "[1]", "[0,4]"), 4, "dtype is missing or no string"},
        BadCase{"dtype", one("\"F33\"", "[1]", "[0,4]"), 4, "unknown dtype 'F33', expected F32, F16 or BF16"},
        BadCase{"shape", one("\"F32\"", "{}", "[0,4]"), 4, "shape is missing or no list"},
        BadCase{"rank", one("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "no list of at most 8 sizes"},
        BadCase{"negative", one("\"F32\"", "[-1]", "[0,4]"), 4, "no size"},
        BadCase{"fraction", one("\"F32\"", "[1.0]", "[0,4]"), 4, "no size"},
        BadCase{"overflow", one("\"F32\"", "[4611686018427387904,4]", "[0,0]"), 0,
                "more than a file can hold"},
        BadCase{"zero_hides_overflow", one("\"F32\"", "[9223372036854775807,9223372036854775807,0]", "[0,0]"),
                0, "more than a file can hold"},
        BadCase{"size", one("\"F32\"", "[2]", "[0,4]"), 4, "4 bytes of data, but F32 [2] takes 8"},
        BadCase{"one_offset", one("\"F32\"", "[1]", "[4]"), 4, "not a pair [begin, end]"},
        BadCase{"backwards", one("\"F32\"", "[1]", "[4,0]"), 4, "not a pair [begin, end]"},
        BadCase{"outside", one("\"F32\"", "[2]", "[0,8]"), 4,
                "truncated or damaged: the data ends at byte 8"},
        BadCase{"huge_end", one("\"F32\"", "[2]", "[0,18446744073709551615]"), 4, "not a pair"},
        BadCase{"start", one("\"F32\"", "[1]", "[4,8]"), 8, "there is a hole before it"},
        BadCase{"behind", one("\"F32\"", "[1]", "[0,4]"), 9, "5 bytes belong to no tensor"},
        BadCase{
            "overlap",
            R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
            6, "it overlaps the tensor before it"},
        BadCase{
            "same",
            R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
            4, "it overlaps the tensor before it"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Safetensors, OtherFilesAreNamed) {
  std::string header_too_large;
  put<uint64_t>(header_too_large, 100'000'001);
  EXPECT_THAT(parse(header_too_large + "{}").error().message, HasSubstr("not a safetensors file"));
  EXPECT_THAT(parse("version https://git-lfs.github.com/spec/v1\n").error().message,
              HasSubstr("git lfs pull"));
  EXPECT_THAT(parse(tiny_gguf().build()).error().message, HasSubstr("a GGUF file"));
  EXPECT_THAT(parse("<!DOCTYPE html>").error().message, HasSubstr("HTML page"));
}

TEST(SafetensorsFolder, OpensASingleFileAlignedWhateverItsHeader) {
  for (int pad = 0; pad < 8; ++pad) {
    const TempFolder folder;
    folder.write("model.safetensors", file_of(kHeader + std::string(pad, ' '), 20));
    const auto w = open_safetensors(folder.path());
    ASSERT_TRUE(w) << w.error().message;
    const auto a = w->get("a", {2});
    ASSERT_TRUE(a) << a.error().message;
    EXPECT_EQ(reinterpret_cast<uintptr_t>((*a)->data) % 4, 0u);
    EXPECT_EQ((*a)->data[0], std::byte{1});
    EXPECT_EQ((*w->get("b", {2, 3}))->data[0], std::byte{9});
    EXPECT_EQ((*a)->origin, "model.safetensors: a");
  }
}

TEST(SafetensorsFolder, ADtypeThatIsNotBuiltIsRefusedWhenAskedFor) {
  const TempFolder folder;
  folder.write("model.safetensors", file_of(one("\"F8_E5M2\"", "[4]", "[0,4]"), 4));
  const auto w = open_safetensors(folder.path());
  ASSERT_TRUE(w) << w.error().message;
  EXPECT_EQ(w->find("a"), nullptr);
  EXPECT_THAT(w->get("a", {4}).error().message,
              AllOf(HasSubstr("dtype F8_E5M2"), HasSubstr("expected F32, F16 or BF16")));
}

class Shards : public testing::Test {
 protected:
  void write(const std::string& index) {
    folder_.write("model.safetensors.index.json", index);
    folder_.write("one.safetensors", file_of(kHeader, 20));
    folder_.write("two.safetensors", file_of(one("\"F32\"", "[1]", "[0,4]"), 4));
  }
  std::string refusal() {
    const auto w = open_safetensors(folder_.path());
    EXPECT_FALSE(w);
    if (w) return {};
    EXPECT_EQ(w.error().code, ErrorCode::kModel);
    return w.error().message;
  }
  TempFolder folder_;
};

TEST_F(Shards, TheIndexDecides) {
  write(R"({"metadata":{"total_size":16},"weight_map":{"b":"one.safetensors","a":"two.safetensors"}})");
  const auto w = open_safetensors(folder_.path());
  ASSERT_TRUE(w) << w.error().message;
  EXPECT_EQ(w->files.size(), 2u);
  EXPECT_EQ((*w->get("a", {1}))->origin, "two.safetensors: a");
  EXPECT_TRUE(w->get("b", {2, 3}));
}

TEST_F(Shards, AMissingShardIsNamed) {
  write(R"({"weight_map":{"b":"one.safetensors","a":"two.safetensors","c":"three.safetensors"}})");
  EXPECT_THAT(refusal(),
              AllOf(HasSubstr("three.safetensors: the shard is missing"), HasSubstr("finish the download")));
}

TEST_F(Shards, AMissingTensorIsNamed) {
  write(R"({"weight_map":{"b":"two.safetensors"}})");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("two.safetensors: tensor 'b': is not in this shard")));
}

TEST_F(Shards, NamesMustNotLeadOutOfTheFolder) {
  for (const char* name :
       {"../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", "", ".hidden.safetensors",
        "one.bin", "a\\\\one.safetensors", "one\\u0000.safetensors"}) {
    write(R"({"weight_map":{"b":")" + std::string(name) + "\"}}");
    EXPECT_THAT(refusal(), HasSubstr("expected the plain name of a .safetensors file in this folder"))
        << name;
  }
  write(R"({"weight_map":{"b":5}})");
  EXPECT_THAT(refusal(), HasSubstr("expected the plain name"));
}

TEST_F(Shards, ABrokenIndexIsNamed) {
  for (const char* index : {"[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{}})"}) {
    write(index);
    EXPECT_THAT(refusal(), HasSubstr("expected an object weight_map")) << index;
  }
  write("{");
  EXPECT_THAT(refusal(), HasSubstr("not valid JSON"));
}

TEST(SafetensorsFolder, WithoutWeightsSaysWhatIsThere) {
  const TempFolder folder;
  EXPECT_THAT(open_safetensors(folder.path()).error().message,
              HasSubstr("no weights: expected model.safetensors"));
  folder.write("pytorch_model.bin", "x");
  EXPECT_THAT(open_safetensors(folder.path()).error().message, HasSubstr("pickle"));
  folder.write("model.safetensors", "");
  EXPECT_THAT(open_safetensors(folder.path()).error().message, HasSubstr("empty"));
}

}  // namespace
}  // namespace deepinfer
