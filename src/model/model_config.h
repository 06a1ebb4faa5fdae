// The shape of a model, from config.json or a GGUF's metadata.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace deepinfer {

struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLinear, kLlama3 } kind = Kind::kNone;
  float factor = 1.0f;
  float low_freq_factor = 1.0f, high_freq_factor = 4.0f;  // llama3
  int original_max_position = 8192;                       // llama3
};

struct ModelConfig {
  std::string arch;  // Hugging Face's class: "LlamaForCausalLM"
  int vocab_size = 0;
  int hidden = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;
  int max_position = 0;  // context length that the model was made for
  float norm_eps = 1e-5f;
  float rope_theta = 10000.0f;
  RopeScaling rope_scaling;
  bool rope_interleaved = false;  // GGUF files of the llama family permute q and k for this form
  bool tied_head = false;
  bool attention_bias = false;  // q, k, v and o
  bool mlp_bias = false;
  std::vector<int32_t> eos, bos;
  std::string dtype;  // of the weights: "bfloat16", "float16", "float32", "Q4_1", ...
  // What the checkpoint says of its KV cache: "fp8", empty, or in words what there is no cache for.
  std::string kv_cache;
};

// generation_config.json (or the same keys in GGUF metadata, where they exist).
struct GenerationDefaults {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int> top_k, max_tokens;
  std::vector<int32_t> eos;
};

}  // namespace deepinfer
