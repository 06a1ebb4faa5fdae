#include "model/quantization.h"

#include "base/check.h"
#include "model/hf_config.h"
#include "quant/online.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

using Reader = std::shared_ptr<const QuantReader>;

Result<Reader> open_config(const json::value& value, const std::string& name, std::string_view method) {
  DI_ASSIGN(const JsonObject config, as_object(value, name));
  DI_ASSIGN(std::unique_ptr<QuantReader> reader, open_quantization(config, method));
  return Reader(std::move(reader));
}

bool is_plain(const Checkpoint& c) {
  return c.config.dtype == "bfloat16" || c.config.dtype == "float16" || c.config.dtype == "float32";
}

std::string found_text(const Checkpoint& c) {
  if (c.weights.quant != nullptr)
    return fmt::format("{} (model.quantization {})", c.weights.quant->text(), c.weights.quant->kind());
  return fmt::format("{} weights, not quantized by {}", c.config.dtype,
                     is_plain(c) ? "anything" : "these methods");
}

std::string remedy_text(const Checkpoint& c, const std::string& wanted) {
  if (c.weights.quant != nullptr)
    return fmt::format(
        "leave the setting out, or name another checkpoint: one of {}, or an unquantized one, which fp8 and "
        "int4 "
        "quantize while loading",
        wanted);
  if (!is_plain(c))
    return "leave the setting out, or name an unquantized checkpoint (bfloat16, float16, float32)";
  return fmt::format(
      "fp8 or int4 quantize it while loading; `deepinfer quantize --model {} --method {} --out DIR` makes "
      "such a "
      "checkpoint of it",
      c.path.string(), wanted);
}

}  // namespace

Result<Reader> read_quantization(std::string_view config_json, const fs::path& folder) {
  const std::string name = (folder / "config.json").string();
  DI_ASSIGN(const json::value config, parse_json(config_json, name));
  DI_ASSIGN(const JsonObject root, as_object(config, name));
  for (const char* key : {"quantization_config", "compression_config"})
    if (const json::value* value = root.find(key))
      return open_config(*value, fmt::format("{}: {}", name, key),
                         std::string_view(key).starts_with("comp") ? "compressed-tensors" : "");
  for (const QuantMethod& method : quant_methods()) {
    const fs::path file = folder / method.file;
    std::error_code ec;
    if (method.file.empty() || !fs::exists(file, ec)) continue;
    DI_ASSIGN(const std::string text, read_file(file, kMaxConfigBytes));
    DI_ASSIGN(const json::value value, parse_json(text, file.string()));
    return open_config(value, file.string(), method.name);
  }
  return Reader();
}

Result<void> set_quantization(Checkpoint& c, const std::string& wanted, const std::string& preferred) {
  if (wanted.empty() || wanted == "none") {
    c.weights.online = wanted.empty() && c.weights.quant == nullptr && is_plain(c) ? preferred : "";
    return {};
  }
  if (c.weights.quant != nullptr && c.weights.quant->kind() == wanted) return {};
  if (c.weights.quant == nullptr && is_plain(c) && (wanted == "fp8" || wanted == "int4")) {
    c.weights.online = wanted;
    return {};
  }
  return make_error(ErrorCode::kConfig, "model.quantization: got {}, but {} has {}: {}", wanted,
                    c.path.string(), found_text(c), remedy_text(c, wanted));
}

std::string weights_text(const Checkpoint& c) {
  if (c.weights.quant != nullptr) return c.weights.quant->text();
  if (!c.weights.online.empty()) return c.weights.online + ", rounded while loading";
  return c.config.dtype;
}

size_t loaded_bytes(const Weights& w, const std::string& name, const RawTensor& t) {
  if (w.quant != nullptr || !is_quantized_online(w, name) || t.shape.size() != 2) return t.bytes;
  const auto elems = static_cast<double>(t.bytes) / info(t.dtype).block_bytes * info(t.dtype).block_elems;
  return static_cast<size_t>(elems * online_bits(w.online) / 8);
}

int64_t loaded_bytes(const Weights& weights) {
  size_t bytes = 0;
  for (const auto& [name, t] : weights.tensors) bytes += loaded_bytes(weights, name, t);
  return static_cast<int64_t>(bytes);
}

}  // namespace deepinfer
