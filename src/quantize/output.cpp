#include "quantize/output.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <system_error>

#include "base/check.h"
#include "model/safetensors.h"
#include "quantize/decoder_layer.h"
#include "quantize/pack.h"

namespace deepinfer::quantize {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kShardBytes = uint64_t{5} << 30;
constexpr uint64_t kMaxCopied = 256 << 20;

// The tensors of finished layers, in their files.
struct Layers {
  std::vector<MappedFile> files;
  std::vector<TensorExtent> tensors;
};

Result<Layers> open_layers(const Plan& plan, const Partial& partial) {
  Layers layers;
  for (int i = 0; i < plan.checkpoint.config.layers; ++i) {
    DI_ASSIGN(MappedFile file, MappedFile::open(partial.layer_file(i)));
    DI_ASSIGN(const std::vector<SafetensorsEntry> entries,
              parse_safetensors(file.bytes(), file.path().string()));
    for (const SafetensorsEntry& e : entries)
      layers.tensors.push_back({e.name, e.dtype_name, e.shape, file.bytes().data() + e.offset, e.bytes});
    layers.files.push_back(std::move(file));
  }
  return layers;
}

// Names of the model's tensors that the layers' files replace.
std::set<std::string> replaced(const ModelConfig& c) {
  std::set<std::string> names;
  for (int i = 0; i < c.layers; ++i) {
    for (const LinearShape& s : linear_shapes(c, i)) names.insert({s.name + ".weight", s.name + ".bias"});
    const std::string p = fmt::format("model.layers.{}.", i);
    names.insert({p + "input_layernorm.weight", p + "post_attention_layernorm.weight"});
  }
  return names;
}

// A tensor that stays as it is, in the result's dtype. `converted` keeps what had to be converted.
Result<TensorExtent> kept(const Plan& plan, const std::string& name, const RawTensor& t,
                          std::vector<OutTensor>& converted) {
  if (t.dtype == plan.dtype || info(t.dtype).block_elems != 1)
    return TensorExtent{name, std::string(info(t.dtype).name), t.shape, t.data, t.bytes};
  DI_ASSIGN(const std::vector<float> values, load_values(plan.checkpoint.weights, name, t.shape));
  constexpr float kLargestF16 = 65504;
  if (plan.dtype == DType::kF16 &&
      std::any_of(values.begin(), values.end(), [](float v) { return std::abs(v) > kLargestF16; }))
    return make_error(ErrorCode::kModel,
                      "{}: holds values that F16 cannot: {} would spoil them; int4 and fp8 keep {}", t.origin,
                      method_name(plan.options.method), info(t.dtype).name);
  converted.push_back(float_tensor(name, t.shape, values, plan.dtype));
  return extent_of(converted.back());
}

bool worth_copying(const fs::path& file) {
  const std::string name = file.filename().string(), kind = file.extension().string();
  if (name == "config.json" || name.ends_with(".index.json")) return false;
  return kind == ".json" || kind == ".jinja" || kind == ".txt" || kind == ".model" || kind == ".tiktoken" ||
         name.starts_with("LICENSE") || name.starts_with("NOTICE");
}

Result<void> copy_files(const fs::path& from, const fs::path& to) {
  std::error_code ec;
  for (fs::directory_iterator it(from, ec), end; !ec && it != end; it.increment(ec)) {
    if (!worth_copying(it->path()) || !it->is_regular_file(ec) || it->file_size(ec) > kMaxCopied) continue;
    fs::copy_file(it->path(), to / it->path().filename(), ec);  // a link's target
    if (ec)
      return make_error(ErrorCode::kModel, "{}: cannot be copied to {}: {}", it->path().string(), to.string(),
                        ec.message());
  }
  if (ec) return make_error(ErrorCode::kModel, "{}: cannot be listed: {}", from.string(), ec.message());
  return {};
}

}  // namespace

Result<void> write_result(const Plan& plan, const Partial& partial) {
  DI_ASSIGN(Layers layers, open_layers(plan, partial));
  std::vector<OutTensor> converted;
  std::vector<TensorExtent> tensors;
  const std::set<std::string> in_layers = replaced(plan.checkpoint.config);
  for (const auto& [name, t] : plan.checkpoint.weights.tensors) {
    if (in_layers.contains(name)) continue;
    DI_ASSIGN(TensorExtent extent, kept(plan, name, t, converted));
    tensors.push_back(std::move(extent));
  }
  tensors.insert(tensors.end(), layers.tensors.begin(), layers.tensors.end());
  const fs::path out = partial.out_folder();
  DI_TRY(write_shards(out, tensors, kShardBytes));
  DI_ASSIGN(const std::string config, config_of_result(plan));
  DI_TRY(write_bytes(out / "config.json", config.data(), config.size()));
  return copy_files(plan.options.model, out);
}

}  // namespace deepinfer::quantize
