// quantization_config of any content, and matrices read as it says.
#include <vector>

#include "base/check.h"
#include "quant/codes.h"
#include "quant/method.h"

using namespace deepinfer;

namespace {

constexpr int64_t kRows = 32, kCols = 64;

// Every tensor that some method asks for, of sizes that fit some settings.
TensorMap tensors(const std::vector<std::byte>& data) {
  TensorMap out;
  const auto add = [&](const char* layer, const char* name, DType dtype, std::vector<int64_t> shape) {
    int64_t elems = 1;
    for (const int64_t n : shape) elems *= n;
    const auto bytes = static_cast<size_t>(row_bytes(dtype, elems));
    DI_CHECK(bytes <= data.size(), "{} bytes", bytes);
    out[std::string(layer) + "." + name] = {dtype, std::move(shape), data.data(), bytes, name};
  };
  add("awq", "qweight", DType::kI32, {kCols, kRows / 8});
  add("awq", "qzeros", DType::kI32, {2, kRows / 8});
  add("awq", "scales", DType::kF16, {2, kRows});
  add("gptq", "qweight", DType::kI32, {kCols / 8, kRows});
  add("gptq", "qzeros", DType::kI32, {2, kRows / 8});
  add("gptq", "scales", DType::kF16, {2, kRows});
  add("gptq", "g_idx", DType::kI32, {kCols});
  add("fp8", "weight", DType::kF8E4M3, {kRows, kCols});
  add("fp8", "weight_scale", DType::kF32, {kRows, 1});
  add("fp8", "weight_scale_inv", DType::kF32, {1, 1});
  add("int8", "weight", DType::kI8, {kRows, kCols});
  add("int8", "weight_scale", DType::kBF16, {kRows, 1});
  add("packed", "weight_packed", DType::kI32, {kRows, kCols / 8});
  add("packed", "weight_scale", DType::kF32, {kRows, 2});
  add("packed", "weight_zero_point", DType::kI32, {kRows / 8, 2});
  add("plain", "weight", DType::kBF16, {kRows, kCols});
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  const auto value = parse_json(text, "config.json");
  if (!value || !value->is_object()) return 0;
  const auto reader = open_quantization(JsonObject(value->get_object(), "config.json"), "");
  if (!reader || *reader == nullptr) return 0;
  DI_CHECK(!(*reader)->text().empty() && !(*reader)->kind().empty(), "a method without a name");
  static const std::vector<std::byte> data(kRows * kCols * 4);
  static const TensorMap all = tensors(data);
  for (const char* layer : {"awq", "gptq", "fp8", "int8", "packed", "plain", "none"})
    for (const auto& cut : {Cut{0, kRows, 0, kCols}, Cut{8, 16, 32, 32}}) {
      const auto m = (*reader)->read(all, {layer, kRows, kCols, cut}, nullptr);
      if (!m || !m->has_value()) continue;
      const LinearSource source = (*m)->source();
      DI_CHECK(check_codes(source), "{}: codes that do not fit: {}", layer,
               check_codes(source).error().message);
      std::vector<float> row(static_cast<size_t>(source.cols));
      for (int64_t r = 0; r < source.parts[0].rows; ++r)
        dequantize_codes(source, source.parts[0], r, row.data());
    }
  return 0;
}
