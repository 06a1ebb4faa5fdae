#include "model/checkpoint.h"

#include <algorithm>
#include <map>

#include "base/check.h"
#include "base/json_file.h"
#include "model/gguf_model.h"
#include "model/hf_config.h"
#include "model/kv_scales.h"
#include "model/model.h"
#include "model/quantization.h"
#include "model/safetensors.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;

std::string dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    default:
      return std::string(info(dtype).name);
  }
}

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

// Sums the bytes on disk; the dtype of the model is the one that most of its elements have.
void measure(Checkpoint& c) {
  std::map<DType, int64_t> elems;
  for (const auto& [name, t] : c.weights.tensors) {
    const DTypeInfo& type = info(t.dtype);
    c.weight_bytes += static_cast<int64_t>(t.bytes);
    // Codes are no dtype to compute in: what stands beside them tells it.
    if (c.weights.quant != nullptr && !is_float(t.dtype)) continue;
    elems[t.dtype] += static_cast<int64_t>(t.bytes) / type.block_bytes * type.block_elems;
  }
  const auto most = std::max_element(elems.begin(), elems.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most != elems.end()) c.config.dtype = dtype_name(most->first);
}

Result<void> check_arch(const std::string& arch, const std::string& name) {
  if (find_arch(arch) != nullptr) return {};
  return make_error(ErrorCode::kModel, "{}: the architecture '{}' is not supported; supported: {}", name,
                    arch, known_archs());
}

Result<Checkpoint> read_gguf(const fs::path& path, bool with_tokenizer) {
  Checkpoint c;
  c.path = path;
  const std::string name = path.string();
  DI_ASSIGN(GgufCheckpoint gguf, open_gguf(path));
  DI_ASSIGN(const std::string arch, gguf_arch(gguf.header, name));
  DI_TRY(check_arch(arch, name));
  DI_ASSIGN(c.config, gguf_config(gguf.header, name));
  DI_ASSIGN(c.generation, gguf_generation(gguf.header, name));
  c.chat_template = gguf_chat_template(gguf.header);
  if (with_tokenizer) {
    DI_ASSIGN(TokenizerData data, gguf_tokenizer(gguf.header, name));
    DI_ASSIGN(c.tokenizer, make_tokenizer(std::move(data)));
  }
  c.weights = std::move(gguf.weights);
  measure(c);
  return c;
}

// For a folder without config.json: what is there instead.
Error no_config(const fs::path& folder) {
  std::error_code ec;
  for (fs::directory_iterator it(folder, ec), end; !ec && it != end; it.increment(ec))
    if (it->path().extension() == ".gguf")
      return make_error(ErrorCode::kModel, "{}: the folder has no config.json, but a GGUF file: pass {}",
                        folder.string(), it->path().string());
  return make_error(ErrorCode::kModel,
                    "{}: the folder has no config.json; expected a Hugging Face folder (config.json, "
                    "model.safetensors, tokenizer.json) or a GGUF file",
                    folder.string());
}

Result<Checkpoint> read_folder(const fs::path& folder, bool with_tokenizer) {
  Checkpoint c;
  c.path = folder;
  const fs::path config = folder / "config.json";
  const fs::path generation = folder / "generation_config.json";
  std::error_code ec;
  if (!fs::exists(config, ec)) return no_config(folder);
  DI_ASSIGN(const std::string text, read_file(config, kMaxConfigBytes));
  DI_ASSIGN(const std::string arch, hf_arch(text, config.string()));
  DI_TRY(check_arch(arch, config.string()));
  DI_ASSIGN(c.config, parse_hf_config(text, config.string()));
  if (fs::exists(generation, ec)) {
    DI_ASSIGN(const std::string defaults, read_file(generation, kMaxConfigBytes));
    DI_ASSIGN(c.generation, parse_generation_config(defaults, generation.string()));
  }
  DI_ASSIGN(c.chat_template, read_chat_template(folder));
  if (with_tokenizer) {
    auto tokenizer = load_tokenizer(folder);
    // A folder without its tokenizer is a broken model, not a wrong path.
    if (!tokenizer && tokenizer.error().code == ErrorCode::kNotFound)
      return make_error(ErrorCode::kModel, "{}", tokenizer.error().message);
    DI_ASSIGN(c.tokenizer, std::move(tokenizer));
  }
  DI_ASSIGN(c.weights, open_safetensors(folder));
  if (c.config.kv_cache.empty() && has_kv_scales(c.weights)) c.config.kv_cache = "fp8";
  DI_ASSIGN(c.weights.quant, read_quantization(text, folder));
  measure(c);
  return c;
}

Result<Checkpoint> open_any(const fs::path& path, bool with_tokenizer) {
  std::error_code ec;
  if (path.empty() || !fs::exists(path, ec))
    return make_error(
        ErrorCode::kNotFound,
        "model '{}': no such file or folder; expected a GGUF file, or a Hugging Face folder with "
        "config.json",
        path.string());
  if (fs::is_directory(path, ec)) return read_folder(path, with_tokenizer);
  return read_gguf(path, with_tokenizer);
}

}  // namespace

Result<Checkpoint> open_checkpoint(const fs::path& path) {
  return open_any(path, true);
}

Result<Checkpoint> open_weights(const fs::path& path) {
  return open_any(path, false);
}

}  // namespace deepinfer
