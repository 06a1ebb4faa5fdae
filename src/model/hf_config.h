// config.json, generation_config.json and the chat template of a Hugging Face folder (transformers 4 and 5).
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "deepinfer/result.h"
#include "model/model_config.h"

namespace deepinfer {

// architectures[0], or kModel. `name` is the file, for messages.
Result<std::string> hf_arch(std::string_view config_json, const std::string& name);

// For architectures of llama's kind. kModel with file, key, value and range.
Result<ModelConfig> parse_hf_config(std::string_view config_json, const std::string& name);

Result<GenerationDefaults> parse_generation_config(std::string_view json, const std::string& name);

// chat_template.jinja, else chat_template of tokenizer_config.json (a string, or the one named "default");
// empty when there is none.
Result<std::string> read_chat_template(const std::filesystem::path& folder);

constexpr uint64_t kMaxConfigBytes = 16 << 20;

}  // namespace deepinfer
