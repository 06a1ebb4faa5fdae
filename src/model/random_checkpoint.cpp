#include "model/random_checkpoint.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cstring>
#include <fstream>
#include <system_error>

#include "base/check.h"
#include "model/shape.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

struct Shape {
  const char* name;
  ModelConfig config;
};

ModelConfig llama3(int hidden, int layers, int heads, int ffn, bool tied) {
  return {.arch = "LlamaForCausalLM",
          .vocab_size = 128256,
          .hidden = hidden,
          .layers = layers,
          .heads = heads,
          .kv_heads = 8,
          .head_dim = hidden / heads,
          .ffn = ffn,
          .max_position = 131072,
          .rope_theta = 500000.0f,
          .rope_scaling = {.kind = RopeScaling::Kind::kLlama3, .factor = tied ? 32.0f : 8.0f},
          .tied_head = tied,
          .eos = {128001},
          .bos = {128000}};
}

std::vector<Shape> shapes() {
  const ModelConfig tiny{.arch = "LlamaForCausalLM",
                         .vocab_size = 512,
                         .hidden = 128,
                         .layers = 2,
                         .heads = 4,
                         .kv_heads = 2,
                         .head_dim = 32,
                         .ffn = 320,
                         .max_position = 4096};
  const ModelConfig smollm{.arch = "LlamaForCausalLM",
                           .vocab_size = 49152,
                           .hidden = 576,
                           .layers = 30,
                           .heads = 9,
                           .kv_heads = 3,
                           .head_dim = 64,
                           .ffn = 1536,
                           .max_position = 8192,
                           .rope_theta = 100000.0f,
                           .tied_head = true};
  return {{"tiny", tiny},
          {"smollm2-135m", smollm},
          {"llama-3.2-1b", llama3(2048, 16, 32, 8192, true)},
          {"llama-3.1-8b", llama3(4096, 32, 32, 14336, false)}};
}

}  // namespace

std::vector<std::string> random_shapes() {
  std::vector<std::string> names;
  for (const Shape& s : shapes()) names.emplace_back(s.name);
  return names;
}

Result<Checkpoint> random_checkpoint(const std::string& shape, uint64_t seed) {
  const std::vector<Shape> all = shapes();
  const auto found = std::find_if(all.begin(), all.end(), [&](const Shape& s) { return shape == s.name; });
  if (found == all.end())
    return make_error(ErrorCode::kConfig, "random weights: got '{}', expected one of {}", shape,
                      fmt::join(random_shapes(), ", "));
  return random_checkpoint(found->config, shape, seed);
}

Result<Checkpoint> random_checkpoint(const ModelConfig& config, const std::string& name, uint64_t seed) {
  Checkpoint c;
  c.path = name;
  c.config = config;
  c.config.dtype = "bfloat16";
  DI_ASSIGN(Buffer ones, Buffer::allocate(static_cast<size_t>(c.config.hidden) * 2));
  constexpr uint16_t kOne = 0x3f80;  // in BF16
  for (int i = 0; i < c.config.hidden; ++i) std::memcpy(ones.data() + 2 * i, &kOne, 2);
  uint64_t tensors = 0;
  for (PlannedTensor& w : planned_tensors(c.config)) {
    RawTensor t{
        .dtype = DType::kBF16, .shape = std::move(w.shape), .bytes = 2, .origin = name + ": " + w.name};
    for (const int64_t n : t.shape) t.bytes *= static_cast<size_t>(n);
    if (t.shape.size() == 2)
      t.random =
          RandomValues{.seed = (seed << 48) + (++tensors << 32), .exponent = random_exponent(t.shape[1])};
    else
      t.data = ones.data();
    c.weight_bytes += static_cast<int64_t>(t.bytes);
    c.weights.tensors.emplace(std::move(w.name), std::move(t));
  }
  c.weights.copies.push_back(std::move(ones));
  return c;
}

namespace {

json::object config_json(const ModelConfig& c) {
  json::object o{{"architectures", {c.arch}},
                 {"model_type", "llama"},
                 {"hidden_act", "silu"},
                 {"vocab_size", c.vocab_size},
                 {"hidden_size", c.hidden},
                 {"num_hidden_layers", c.layers},
                 {"num_attention_heads", c.heads},
                 {"num_key_value_heads", c.kv_heads},
                 {"head_dim", c.head_dim},
                 {"intermediate_size", c.ffn},
                 {"max_position_embeddings", c.max_position},
                 {"rms_norm_eps", c.norm_eps},
                 {"rope_theta", c.rope_theta},
                 {"tie_word_embeddings", c.tied_head},
                 {"torch_dtype", c.dtype}};
  if (!c.eos.empty()) o["eos_token_id"] = json::value_from(c.eos);
  if (!c.bos.empty()) o["bos_token_id"] = json::value_from(c.bos);
  const RopeScaling& s = c.rope_scaling;
  if (s.kind == RopeScaling::Kind::kLlama3)
    o["rope_scaling"] = {{"rope_type", "llama3"},
                         {"factor", s.factor},
                         {"low_freq_factor", s.low_freq_factor},
                         {"high_freq_factor", s.high_freq_factor},
                         {"original_max_position_embeddings", s.original_max_position}};
  return o;
}

class OutFile {
 public:
  explicit OutFile(const fs::path& path) : path_(path), file_(path, std::ios::binary) {}

  void write(const void* data, size_t bytes) {
    file_.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
  }
  void write(const RawTensor& t) {
    if (!t.random) return write(t.data, t.bytes);
    std::vector<std::byte> piece(std::min<size_t>(t.bytes, 8 << 20));
    for (size_t at = 0; at < t.bytes && file_; at += piece.size()) {
      const size_t bytes = std::min(piece.size(), t.bytes - at);
      write_random(*t.random, static_cast<int64_t>(at / 2), static_cast<int64_t>((at + bytes) / 2),
                   piece.data());
      write(piece.data(), bytes);
    }
  }
  Result<void> close() {
    file_.close();
    if (!file_) return make_error(ErrorCode::kModel, "{}: cannot be written: is there room?", path_.string());
    return {};
  }

 private:
  fs::path path_;
  std::ofstream file_;
};

Result<void> write_text(const fs::path& path, const std::string& text) {
  OutFile file(path);
  file.write(text.data(), text.size());
  return file.close();
}

using Entry = std::pair<const std::string, RawTensor>;

Result<void> write_shard(const fs::path& path, const std::vector<const Entry*>& entries) {
  json::object header;
  size_t at = 0;
  for (const Entry* e : entries) {
    const RawTensor& t = e->second;
    header[e->first] = {{"dtype", info(t.dtype).name},
                        {"shape", json::value_from(t.shape)},
                        {"data_offsets", {at, at + t.bytes}}};
    at += t.bytes;
  }
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t size = text.size();
  OutFile file(path);
  file.write(&size, sizeof size);
  file.write(text.data(), text.size());
  for (const Entry* e : entries) file.write(e->second);
  return file.close();
}

}  // namespace

Result<void> save_checkpoint(const Checkpoint& checkpoint, const fs::path& folder) {
  constexpr size_t kShard = size_t{5} << 30;
  std::error_code ec;
  fs::create_directories(folder, ec);
  if (ec || !fs::is_empty(folder, ec) || ec)
    return make_error(ErrorCode::kModel, "{}: expected a new or empty folder{}{}", folder.string(),
                      ec ? ": " : "", ec ? ec.message() : "");
  std::vector<std::vector<const Entry*>> shards(1);
  size_t used = 0;
  for (const Entry& e : checkpoint.weights.tensors) {
    if (used > 0 && used + e.second.bytes > kShard) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().push_back(&e);
    used += e.second.bytes;
  }
  json::object map;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    for (const Entry* e : shards[i]) map[e->first] = name;
    DI_TRY(write_shard(folder / name, shards[i]));
  }
  const std::string index = json::serialize(
      json::object{{"metadata", {{"total_size", checkpoint.weight_bytes}}}, {"weight_map", std::move(map)}});
  DI_TRY(write_text(folder / "model.safetensors.index.json", index));
  const std::string config = json::serialize(config_json(checkpoint.config));
  return write_text(folder / "config.json", config);
}

}  // namespace deepinfer
