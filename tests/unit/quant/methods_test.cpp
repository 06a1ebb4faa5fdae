// Matrices packed here as each format's publication says, read back as codes: every value, every cut, and
// what is said about broken ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <numeric>
#include <random>

#include "base/check.h"
#include "quant/codes.h"
#include "quant/method.h"
#include "quant/online.h"
#include "tensor/half.h"

namespace deepinfer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kLayer = "model.layers.0.mlp.up_proj";

// Tensors in memory.
struct Store {
  TensorMap tensors;
  std::deque<std::vector<std::byte>> data;

  template <class T>
  void add(const std::string& name, DType dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
    std::vector<std::byte>& bytes = data.emplace_back(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    tensors[kLayer + "." + name] = {dtype, std::move(shape), bytes.data(), bytes.size(), "file: " + name};
  }
  void erase(const std::string& name) { tensors.erase(kLayer + "." + name); }
};

std::unique_ptr<QuantReader> open(const std::string& json, std::string_view method = "") {
  const auto value = parse_json(json, "config.json");
  EXPECT_TRUE(value) << json;
  auto reader = open_quantization(JsonObject(value->get_object(), "config.json"), method);
  EXPECT_TRUE(reader) << reader.error().message;
  return reader ? std::move(*reader) : nullptr;
}

std::string open_error(const std::string& json, std::string_view method = "") {
  const auto value = parse_json(json, "config.json");
  EXPECT_TRUE(value) << json;
  const auto reader = open_quantization(JsonObject(value->get_object(), "config.json"), method);
  if (reader) return "opened";
  EXPECT_EQ(reader.error().code, ErrorCode::kModel);
  return reader.error().message;
}

std::string read_error(const QuantReader& reader, const Store& store, int64_t rows, int64_t cols) {
  const auto m = reader.read(store.tensors, {kLayer, rows, cols}, nullptr);
  return m ? "read" : m.error().message;
}

// What a matrix is made of, before a format packs it.
struct Original {
  int bits = 4;
  int64_t rows = 0, cols = 0, group = 0;
  std::vector<int> codes;         // [rows, cols]
  std::vector<int> zeros;         // [rows, groups]
  std::vector<uint16_t> scales;   // [rows, groups], F16
  std::vector<int32_t> group_of;  // [cols]
  int64_t groups() const { return (cols + group - 1) / group; }
  float value(int64_t r, int64_t c) const {
    const int64_t at = r * groups() + group_of[c];
    return static_cast<float>(codes[r * cols + c] - zeros[at]) * f16_to_float(scales[at]);
  }
};

Original make(int bits, int64_t rows, int64_t cols, int64_t group, bool symmetric, bool act_order = false) {
  std::mt19937 random(11);
  Original m{.bits = bits, .rows = rows, .cols = cols, .group = group};
  const int top = (1 << bits) - 1;
  for (int64_t i = 0; i < rows * cols; ++i) m.codes.push_back(static_cast<int>(random() % (top + 1)));
  for (int64_t i = 0; i < rows * m.groups(); ++i) {
    m.zeros.push_back(symmetric ? 1 << (bits - 1) : static_cast<int>(random() % (top + 1)));
    m.scales.push_back(float_to_f16(0.001f + static_cast<float>(random() % 1000) * 1e-5f));
  }
  for (int64_t c = 0; c < cols; ++c) m.group_of.push_back(static_cast<int32_t>(c / group));
  if (act_order) std::shuffle(m.group_of.begin(), m.group_of.end(), random);
  return m;
}

std::vector<uint16_t> transposed_scales(const Original& m) {  // [groups, rows]
  std::vector<uint16_t> out;
  for (int64_t g = 0; g < m.groups(); ++g)
    for (int64_t r = 0; r < m.rows; ++r) out.push_back(m.scales[r * m.groups() + g]);
  return out;
}

Store as_awq(const Original& m) {
  constexpr int kOrder[] = {0, 2, 4, 6, 1, 3, 5, 7};
  const auto pack = [&](int64_t count, auto at) {
    std::vector<uint32_t> words;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t w = 0; w < m.rows / 8; ++w) {
        uint32_t word = 0;
        for (int j = 0; j < 8; ++j) word |= static_cast<uint32_t>(at(i, w * 8 + kOrder[j])) << (4 * j);
        words.push_back(word);
      }
    return words;
  };
  Store s;
  s.add("qweight", DType::kI32, {m.cols, m.rows / 8},
        pack(m.cols, [&](int64_t k, int64_t n) { return m.codes[n * m.cols + k]; }));
  s.add("qzeros", DType::kI32, {m.groups(), m.rows / 8},
        pack(m.groups(), [&](int64_t g, int64_t n) { return m.zeros[n * m.groups() + g]; }));
  s.add("scales", DType::kF16, {m.groups(), m.rows}, transposed_scales(m));
  return s;
}

Store as_gptq(const Original& m, bool v2) {
  const int64_t per = 32 / m.bits;
  const int mask = (1 << m.bits) - 1;
  std::vector<uint32_t> codes(m.cols / per * m.rows), zeros(m.groups() * m.rows / per);
  for (int64_t k = 0; k < m.cols; ++k)
    for (int64_t n = 0; n < m.rows; ++n)
      codes[k / per * m.rows + n] |= static_cast<uint32_t>(m.codes[n * m.cols + k]) << (k % per * m.bits);
  for (int64_t g = 0; g < m.groups(); ++g)
    for (int64_t n = 0; n < m.rows; ++n)
      zeros[(g * m.rows + n) / per] |=
          static_cast<uint32_t>((m.zeros[n * m.groups() + g] - (v2 ? 0 : 1)) & mask) << (n % per * m.bits);
  Store s;
  s.add("qweight", DType::kI32, {m.cols / per, m.rows}, codes);
  s.add("qzeros", DType::kI32, {m.groups(), m.rows / per}, zeros);
  s.add("scales", DType::kF16, {m.groups(), m.rows}, transposed_scales(m));
  s.add("g_idx", DType::kI32, {m.cols}, m.group_of);
  return s;
}

Store as_packed(const Original& m, bool symmetric, bool order) {
  const int64_t per = 32 / m.bits, words = (m.cols + per - 1) / per, zero_words = (m.rows + per - 1) / per;
  std::vector<uint32_t> codes(m.rows * words), zeros(zero_words * m.groups());
  for (int64_t n = 0; n < m.rows; ++n)
    for (int64_t k = 0; k < m.cols; ++k)
      codes[n * words + k / per] |= static_cast<uint32_t>(m.codes[n * m.cols + k]) << (k % per * m.bits);
  for (int64_t n = 0; n < m.rows; ++n)
    for (int64_t g = 0; g < m.groups(); ++g)
      zeros[n / per * m.groups() + g] |= static_cast<uint32_t>(m.zeros[n * m.groups() + g])
                                         << (n % per * m.bits);
  Store s;
  s.add("weight_packed", DType::kI32, {m.rows, words}, codes);
  s.add("weight_scale", DType::kF16, {m.rows, m.groups()}, m.scales);
  if (!symmetric) s.add("weight_zero_point", DType::kI32, {zero_words, m.groups()}, zeros);
  if (order) s.add("weight_g_idx", DType::kI32, {m.cols}, m.group_of);
  return s;
}

void expect_values(const QuantReader& reader, const Store& store, const Original& m,
                   std::optional<Cut> part = {}) {
  ThreadPool pool(2);
  const auto read = reader.read(store.tensors, {kLayer, m.rows, m.cols, part}, &pool);
  ASSERT_TRUE(read) << read.error().message;
  ASSERT_TRUE(read->has_value());
  const Cut cut = part.value_or(Cut{0, m.rows, 0, m.cols});
  const LinearSource source = (*read)->source();
  ASSERT_TRUE(check_codes(source)) << check_codes(source).error().message;
  ASSERT_EQ(source.parts[0].rows, cut.rows);
  ASSERT_EQ(source.cols, cut.cols);
  std::vector<float> row(cut.cols);
  for (int64_t r = 0; r < cut.rows; ++r) {
    dequantize_codes(source, source.parts[0], r, row.data());
    for (int64_t c = 0; c < cut.cols; ++c)
      ASSERT_EQ(row[c], m.value(cut.first_row + r, cut.first_col + c)) << r << ", " << c;
  }
}

// Whole, by rows, by columns on group boundaries.
void expect_cuts(const QuantReader& reader, const Store& store, const Original& m) {
  expect_values(reader, store, m);
  expect_values(reader, store, m, Cut{8, m.rows - 8, 0, m.cols});
  if (m.groups() > 1) {
    expect_values(reader, store, m, Cut{0, m.rows, m.group, m.cols - m.group});
    expect_values(reader, store, m, Cut{m.rows / 2, 3, 0, m.group});
  } else {
    expect_values(reader, store, m, Cut{0, m.rows, m.cols / 2, m.cols / 2});
  }
}

// llm-compressor writes this where it quantized the KV cache and nothing else.
TEST(CompressedTensors, ACheckpointOfWhichOnlyTheKvCacheIsQuantizedHasNoReader) {
  for (const char* groups : {"", R"("config_groups": {},)"}) {
    EXPECT_EQ(open(std::string(R"({"quant_method": "compressed-tensors", "format": "dense",)") + groups +
                   R"("kv_cache_scheme": {"num_bits": 8, "type": "float"}})"),
              nullptr);
  }
}

TEST(Awq, EveryGroupSizeAndCut) {
  for (const int64_t group : {32, 64, 128}) {
    const Original m = make(4, 40, 256, group, false);
    const auto reader =
        open(fmt::format(R"({{"quant_method": "awq", "bits": 4, "group_size": {}, "zero_point": true,
                              "version": "gemm", "modules_to_not_convert": null}})",
                         group));
    EXPECT_EQ(reader->kind(), "awq");
    EXPECT_EQ(reader->text(), fmt::format("AWQ 4-bit, groups of {}", group));
    expect_cuts(*reader, as_awq(m), m);
  }
}

TEST(Awq, OldSettingsFile) {
  const auto reader =
      open(R"({"zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "GEMM"})", "awq");
  const Original m = make(4, 8, 64, 64, false);
  expect_values(*reader, as_awq(m), m);
}

TEST(Gptq, BitsGroupsOrdersAndVersions) {
  for (const int bits : {4, 8})
    for (const int64_t group : {32, 128, -1})
      for (const bool symmetric : {true, false})
        for (const bool v2 : {false, true})
          for (const bool order : {false, true}) {
            SCOPED_TRACE(fmt::format("{} bits, {}, {} {} {}", bits, group, symmetric, v2, order));
            const Original m = make(bits, 40, 256, group < 0 ? 256 : group, symmetric, order);
            const auto reader = open(fmt::format(
                R"({{"quant_method": "gptq", "bits": {}, "group_size": {}, "desc_act": {}, "sym": {},
                     "checkpoint_format": "{}"}})",
                bits, group, order, symmetric, v2 ? "gptq_v2" : "gptq"));
            const Store store = as_gptq(m, v2);
            if (!order) {
              expect_cuts(*reader, store, m);
            } else {
              expect_values(*reader, store, m);
              expect_values(*reader, store, m, Cut{8, 16, 0, m.cols});
            }
            const auto read = reader->read(store.tensors, {kLayer, m.rows, m.cols}, nullptr);
            EXPECT_EQ((*read)->zeros.empty(), symmetric);
            EXPECT_EQ((*read)->column_order.empty(), !order || group < 0);
          }
}

TEST(Gptq, ShortLastGroup) {
  for (const bool order : {false, true}) {
    const Original m = make(4, 16, 160, 128, false, order);
    const auto reader = open(
        fmt::format(R"({{"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": {}}})", order));
    expect_values(*reader, as_gptq(m, false), m);
  }
}

TEST(Gptq, ColumnsInActOrderAreNotCut) {
  const Original m = make(4, 16, 256, 128, true, true);
  const auto reader = open(R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true})");
  const auto read = reader->read(as_gptq(m, false).tensors, {kLayer, 16, 256, Cut{0, 16, 128, 128}}, nullptr);
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message, HasSubstr("act order and cannot be split"));
}

TEST(Gptq, ExceptionsOfSomeLayers) {
  const auto reader = open(R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false,
    "dynamic": {"+:.*up_proj": {"bits": 8, "group_size": 32}, "-:.*down_proj": {}}})");
  const Original m = make(8, 16, 64, 32, true);
  expect_values(*reader, as_gptq(m, false), m);
}

TEST(CompressedTensors, PackedIntegers) {
  for (const int bits : {4, 8})
    for (const int64_t group : {32, 128, -1})
      for (const bool symmetric : {true, false})
        for (const bool order : {false, true}) {
          SCOPED_TRACE(fmt::format("{} bits, {}, {} {}", bits, group, symmetric, order));
          const Original m = make(bits, 42, 256, group < 0 ? 256 : group, symmetric, order);
          const auto reader = open(fmt::format(
              R"({{"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
                   "config_groups": {{"group_0": {{"targets": ["Linear"], "weights": {{"num_bits": {},
                   "type": "int", "symmetric": {}, "strategy": "{}", "group_size": {}, "actorder": {}}}}}}}}})",
              bits, symmetric, group < 0 ? "channel" : "group", group < 0 ? "null" : std::to_string(group),
              order ? R"("group")" : "null"));
          EXPECT_EQ(reader->kind(), bits == 4 ? "int4" : "int8");
          const Store store = as_packed(m, symmetric, order);
          if (order)
            expect_values(*reader, store, m);
          else
            expect_cuts(*reader, store, m);
        }
}

TEST(CompressedTensors, LayersHaveTheSchemeOfTheirOwnName) {
  const auto reader = open(R"({"quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {
      "a": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "group_size": 128}},
      "b": {"targets": ["re:.*(up|gate)_proj$"], "weights": {"num_bits": 4, "type": "int", "group_size": 64}}}})");
  const Original m = make(4, 8, 128, 64, true);
  expect_values(*reader, as_packed(m, true, false), m);
}

TEST(CompressedTensors, EightBitIntegersInBytes) {
  const auto reader = open(R"({"quant_method": "compressed-tensors", "format": "int-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"],
      "weights": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel"},
      "input_activations": {"num_bits": 8, "type": "int", "dynamic": true, "strategy": "token"}}}})");
  const Original m = make(8, 24, 96, 96, true);
  Store s;
  std::vector<int8_t> values;
  for (const int code : m.codes) values.push_back(static_cast<int8_t>(code - 128));
  s.add("weight", DType::kI8, {m.rows, m.cols}, values);
  s.add("weight_scale", DType::kF16, {m.rows, 1}, m.scales);
  expect_cuts(*reader, s, m);
}

struct Fp8Case {
  const char* name;
  const char* config;
  const char* scale_name;
  int64_t block_rows, block_cols;  // of a scale; 0: all
  std::vector<int64_t> shape;
};

TEST(Fp8, EveryKindOfScale) {
  const std::string ct = R"({"quant_method": "compressed-tensors", "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float",
    "strategy": "channel"}, "input_activations": {"num_bits": 8, "type": "float", "dynamic": false}}}})";
  const int64_t rows = 160, cols = 320;
  const std::vector<Fp8Case> cases = {
      {"tensor", R"({"quant_method": "fp8", "activation_scheme": "static"})", "weight_scale", 0, 0, {}},
      {"tensor, [1]", R"({"quant_method": "fp8"})", "weight_scale", 0, 0, {1}},
      {"rows", R"({"quant_method": "fbgemm_fp8"})", "weight_scale", 1, 0, {rows, 1}},
      {"rows, [N]", R"({"quant_method": "fp8"})", "weight_scale", 1, 0, {rows}},
      {"blocks",
       R"({"quant_method": "fp8", "weight_block_size": [128, 128]})",
       "weight_scale_inv",
       128,
       128,
       {2, 3}},
      {"compressed-tensors", ct.c_str(), "weight_scale", 1, 0, {rows, 1}},
  };
  std::mt19937 random(5);
  for (const Fp8Case& c : cases) {
    SCOPED_TRACE(c.name);
    std::vector<uint8_t> codes(rows * cols);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % 2 * 128 + random() % 127);
    const int64_t tall = c.block_rows == 0 ? 1 : (rows + c.block_rows - 1) / c.block_rows;
    const int64_t wide = c.block_cols == 0 ? 1 : (cols + c.block_cols - 1) / c.block_cols;
    std::vector<float> scales;
    for (int64_t i = 0; i < tall * wide; ++i)
      scales.push_back(0.01f + static_cast<float>(random() % 99) * 0.01f);
    Store s;
    s.add("weight", DType::kF8E4M3, {rows, cols}, codes);
    s.add(c.scale_name, DType::kF32, c.shape, scales);
    s.add("input_scale", DType::kF32, {}, std::vector<float>{0.25f});
    const auto reader = open(c.config);
    EXPECT_EQ(reader->kind(), "fp8");
    for (const Cut& cut :
         {Cut{0, rows, 0, cols}, Cut{100, 50, 0, cols}, Cut{0, rows, 128, 192}, Cut{130, 30, 0, 128}}) {
      const auto read = reader->read(s.tensors, {kLayer, rows, cols, cut}, nullptr);
      ASSERT_TRUE(read) << read.error().message;
      const LinearSource source = (*read)->source();
      ASSERT_TRUE(check_codes(source));
      const bool fixed = std::string_view(c.config).find("static") != std::string_view::npos ||
                         std::string_view(c.config).find("\"dynamic\": false") != std::string_view::npos;
      EXPECT_EQ(source.x_scale, fixed ? 0.25f : 0);
      EXPECT_EQ((*read)->own_codes.size() == 0, cut.cols == cols) << "whole rows are borrowed";
      std::vector<float> row(cut.cols);
      for (int64_t r = 0; r < cut.rows; ++r) {
        dequantize_codes(source, source.parts[0], r, row.data());
        for (int64_t j = 0; j < cut.cols; ++j) {
          const int64_t R = cut.first_row + r, C = cut.first_col + j;
          const int64_t at =
              (c.block_rows == 0 ? 0 : R / c.block_rows) * wide + (c.block_cols == 0 ? 0 : C / c.block_cols);
          ASSERT_EQ(row[j], e4m3_to_float(codes[R * cols + C]) * scales[at]);
        }
      }
    }
  }
}

TEST(Methods, PlainMatricesStayPlain) {
  Store s;
  s.add("weight", DType::kBF16, {8, 32}, std::vector<uint16_t>(256));
  for (const char* config :
       {R"({"quant_method": "awq"})", R"({"quant_method": "gptq", "bits": 4})", R"({"quant_method": "fp8"})",
        R"({"quant_method": "compressed-tensors", "config_groups": {"a": {"targets": ["Linear"],
            "weights": {"num_bits": 4}}}})"}) {
    const auto read = open(config)->read(s.tensors, {kLayer, 8, 32}, nullptr);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_FALSE(read->has_value());
  }
}

// Where a file has both forms of a layer, its list of exceptions decides.
TEST(Methods, ListsOfExceptionsDecideBetweenTwoForms) {
  const Original m = make(4, 8, 128, 128, true);
  Store s = as_gptq(m, false);
  s.add("weight", DType::kF16, {8, 128}, std::vector<uint16_t>(8 * 128));
  const std::string begin =
      R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "modules_to_not_convert": [)";
  for (const auto& [list, plain] : std::vector<std::pair<std::string, bool>>{{R"("lm_head")", false},
                                                                             {R"("up_proj")", true},
                                                                             {R"("re:.*\\.mlp\\..*")", true},
                                                                             {R"("model.layers.0")", true},
                                                                             {R"("model.layers.00")", false},
                                                                             {R"("p_proj")", false},
                                                                             {R"("re:up_proj")", false}}) {
    const auto read = open(begin + list + "]}")->read(s.tensors, {kLayer, 8, 128}, nullptr);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ(!read->has_value(), plain) << list;
  }
}

TEST(BadInput, SettingsAreRefusedByName) {
  const auto all = [](auto... words) { return AllOf(HasSubstr(words)...); };
  EXPECT_THAT(open_error(R"({"quant_method": "bitsandbytes"})"),
              all("bitsandbytes", "awq, gptq, fp8", "compressed-tensors", "int4"));
  EXPECT_THAT(open_error(R"({"bits": 4})"), all("quant_method is ''"));
  EXPECT_THAT(open_error(R"({"quant_method": 4})"), all("quant_method is 4", "a string"));
  EXPECT_THAT(open_error(R"({"quant_method": "awq", "bits": 3})"), all("3 bits", "expected 4"));
  EXPECT_THAT(open_error(R"({"quant_method": "awq", "group_size": 48})"), all("48", "32, 64, 128"));
  EXPECT_THAT(open_error(R"({"quant_method": "awq", "version": "gemv"})"), all("gemv", "GEMM"));
  EXPECT_THAT(open_error(R"({"quant_method": "gptq", "bits": 3})"), all("3 bits", "4 or 8"));
  EXPECT_THAT(open_error(R"({"quant_method": "gptq"})"), all("bits is missing"));
  EXPECT_THAT(open_error(R"({"quant_method": "gptq", "bits": 4, "group_size": 100})"),
              all("100", "multiple of 32"));
  EXPECT_THAT(open_error(R"({"quant_method": "gptq", "bits": 4, "group_size": 0})"), all("group_size is 0"));
  EXPECT_THAT(open_error(R"({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"})"),
              all("marlin"));
  EXPECT_THAT(open_error(R"({"quant_method": "gptq", "bits": 4, "dynamic": {"+:(": {}}})"),
              all("(", "compile"));
  EXPECT_THAT(open_error(R"({"quant_method": "gptq", "bits": 4, "dynamic": {"a": {"bits": 2}}})"),
              all("2 bits"));
  EXPECT_THAT(open_error(R"({"quant_method": "fp8", "activation_scheme": "none"})"),
              all("none", "dynamic or static"));
  EXPECT_THAT(open_error(R"({"quant_method": "fp8", "fmt": "e5m2"})"), all("e5m2"));
  EXPECT_THAT(open_error(R"({"quant_method": "fp8", "weight_block_size": [128]})"), all("weight_block_size"));
  EXPECT_THAT(open_error(R"({"quant_method": "fp8", "weight_block_size": [1, 24]})"),
              all("weight_block_size"));
  EXPECT_THAT(open_error(R"({"quant_method": "awq", "modules_to_not_convert": "lm_head"})"), all("no list"));
  const auto ct = [](const std::string& more) {
    return R"({"quant_method": "compressed-tensors", )" + more + "}";
  };
  EXPECT_THAT(open_error(ct(R"("format": "marlin-24")")), all("marlin-24", "pack-quantized"));
  EXPECT_THAT(open_error(ct(R"("format": "pack-quantized")")), all("config_groups is missing"));
  EXPECT_THAT(open_error(ct(R"("config_groups": {})")), all("config_groups is empty"));
  EXPECT_THAT(open_error(ct(R"("config_groups": {}, "kv_cache_scheme": null)")),
              all("config_groups is empty"));
  EXPECT_THAT(open_error(ct(R"("config_groups": {"a": {"targets": ["Linear"]}})")),
              all("weights is missing"));
  EXPECT_THAT(open_error(ct(R"("config_groups": {"a": {"weights": {"num_bits": 4, "type": "float"}}})")),
              all("float of 4 bits"));
  EXPECT_THAT(open_error(ct(R"("config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 24}}})")),
              all("24", "multiple of 32"));
  EXPECT_THAT(open_error(ct(R"("config_groups": {"a": {"weights": {"num_bits": 4}}}, "ignore": ["re:["])")),
              all("does not compile"));
  EXPECT_THAT(open_error(ct(R"("sparsity_config": {"format": "sparse-24-bitmask"})")), all("sparse"));
}

TEST(BadInput, TensorsAreRefusedByName) {
  const auto awq = open(R"({"quant_method": "awq", "group_size": 64})");
  const Original m = make(4, 16, 128, 64, false);
  EXPECT_THAT(read_error(*awq, as_awq(m), 24, 128),
              AllOf(HasSubstr("qweight"), HasSubstr("got I32 [128, 2], expected I32 [128, 3]")));
  EXPECT_THAT(read_error(*awq, as_awq(m), 16, 96), HasSubstr("96 columns, expected a multiple"));
  for (const char* name : {"qweight", "qzeros", "scales"}) {
    Store s = as_awq(m);
    s.erase(name);
    EXPECT_THAT(read_error(*awq, s, 16, 128), AllOf(HasSubstr(std::string(name) + " is missing")));
  }
  for (const uint16_t bad : {0x7e00, 0x7c00, 0xfc00}) {
    Store s = as_awq(m);
    std::vector<uint16_t> scales = transposed_scales(m);
    scales[19] = bad;
    s.add("scales", DType::kF16, {2, 16}, scales);
    EXPECT_THAT(read_error(*awq, s, 16, 128),
                AllOf(HasSubstr("the scale of row 3, group 1 is"), HasSubstr("finite number")));
  }
  const auto gptq = open(R"({"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": true})");
  Store s = as_gptq(m, false);
  s.erase("g_idx");
  EXPECT_THAT(read_error(*gptq, s, 16, 128), HasSubstr("g_idx is missing"));
  std::vector<int32_t> g_idx = m.group_of;
  g_idx[7] = 2;
  s.add("g_idx", DType::kI32, {128}, g_idx);
  EXPECT_THAT(read_error(*gptq, s, 16, 128), HasSubstr("column 7 is of group 2, expected 0 to 1"));
  g_idx[7] = 1;
  s.add("g_idx", DType::kI32, {128}, g_idx);
  EXPECT_THAT(read_error(*gptq, s, 16, 128), HasSubstr("group 1 starts at column 63"));

  const auto fp8 = open(R"({"quant_method": "fp8", "activation_scheme": "static"})");
  Store f;
  f.add("weight", DType::kF8E4M3, {4, 32}, std::vector<uint8_t>(128));
  EXPECT_THAT(read_error(*fp8, f, 4, 32), HasSubstr("weight_scale is missing"));
  f.add("weight_scale", DType::kF32, {3}, std::vector<float>(3, 1.0f));
  EXPECT_THAT(read_error(*fp8, f, 4, 32), HasSubstr("got F32 [3], expected"));
  f.add("weight_scale", DType::kF32, {}, std::vector<float>{std::nanf("")});
  EXPECT_THAT(read_error(*fp8, f, 4, 32), HasSubstr("finite"));
  f.add("weight_scale", DType::kF32, {}, std::vector<float>{1});
  f.add("input_scale", DType::kF32, {}, std::vector<float>{0});
  EXPECT_THAT(read_error(*fp8, f, 4, 32), HasSubstr("above 0"));

  const auto ct = open(R"({"quant_method": "compressed-tensors", "config_groups": {"a":
    {"targets": ["down_proj"], "weights": {"num_bits": 4, "symmetric": false, "group_size": 64}}}})");
  EXPECT_THAT(read_error(*ct, as_packed(m, false, false), 16, 128), HasSubstr("no target"));
}

TEST(Online, RoundsToNearestAndRefusesWhatIsNoNumber) {
  Store s;
  std::vector<uint16_t> values(4 * 192);
  for (size_t i = 0; i < values.size(); ++i) values[i] = float_to_bf16(std::sin(static_cast<float>(i)));
  s.add("weight", DType::kBF16, {4, 192}, values);
  const RawTensor& t = s.tensors.begin()->second;
  for (const char* method : {"fp8", "int4"}) {
    const auto m = quantize_matrix(t, online_spec(method, 192), nullptr);
    ASSERT_TRUE(m);
    EXPECT_EQ(m->group, std::string_view(method) == "fp8" ? 192 : 64);
    const LinearSource source = m->source();
    ASSERT_TRUE(check_codes(source));
    std::vector<float> row(192);
    for (int r = 0; r < 4; ++r) {
      dequantize_codes(source, source.parts[0], r, row.data());
      for (int j = 0; j < 192; ++j) {
        const float x = bf16_to_float(values[r * 192 + j]);
        const float step = std::string_view(method) == "fp8" ? std::abs(x) / 16 + 1e-3f : 1 / 15.0f + 1e-3f;
        EXPECT_NEAR(row[j], x, step);
      }
    }
  }
  EXPECT_EQ(online_spec("int4", 4096).group, 128);
  EXPECT_EQ(online_spec("int4", 96).group, 32);
  values[200] = 0x7f80;
  s.add("weight", DType::kBF16, {4, 192}, values);
  const auto m = quantize_matrix(s.tensors.begin()->second, online_spec("int4", 192), nullptr);
  ASSERT_FALSE(m);
  EXPECT_THAT(m.error().message, HasSubstr("row 1"));
}

}  // namespace
}  // namespace deepinfer
