// What a GGUF file's metadata and tensors mean: the model's shape, its tokenizer, its weights by Hugging
// Face's names.
#pragma once

#include <string>
#include <string_view>

#include "deepinfer/result.h"
#include "model/gguf.h"
#include "model/model_config.h"
#include "model/weights.h"
#include "text/tokenizer.h"

namespace deepinfer {

// general.architecture ("llama"), or kModel.
Result<std::string> gguf_arch(const GgufFile& file, const std::string& name);

// For architectures of llama's kind (RMS norm, gated MLP). kModel with key, value and range.
Result<ModelConfig> gguf_config(const GgufFile& file, const std::string& name);

// general.sampling.*, where the file has them.
Result<GenerationDefaults> gguf_generation(const GgufFile& file, const std::string& name);

// tokenizer.ggml.*
Result<TokenizerData> gguf_tokenizer(const GgufFile& file, const std::string& name);

// tokenizer.chat_template; empty when there is none.
std::string gguf_chat_template(const GgufFile& file);

// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; an unknown name stays as it is.
std::string hf_tensor_name(std::string_view gguf_name);

// Opens and checks the file; the tensors point into it. `header` borrows from the returned weights' file.
struct GgufCheckpoint {
  GgufFile header;
  Weights weights;
};
Result<GgufCheckpoint> open_gguf(const std::filesystem::path& path);

}  // namespace deepinfer
