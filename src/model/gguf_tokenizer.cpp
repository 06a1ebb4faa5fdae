// tokenizer.ggml.* of a GGUF file.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "model/gguf_metadata.h"
#include "model/gguf_model.h"

namespace deepinfer {
namespace {

// Control tokens of known chat formats that end an answer, for files that do not name them by id.
constexpr std::array<std::string_view, 9> kEndTokens = {"<|eot_id|>",    "<|eom_id|>",    "<|im_end|>",
                                                        "<|end|>",       "<|endoftext|>", "<|eot|>",
                                                        "<end_of_turn>", "<EOT>",         "<|end_of_text|>"};

Result<std::vector<std::string>> read_texts(const GgufMetadata& meta, std::string_view key) {
  DI_ASSIGN(const GgufArray* array, meta.array(key, GgufType::kString));
  std::vector<std::string> out;
  if (array != nullptr) out.assign(array->strings.begin(), array->strings.end());
  return out;
}

Result<void> read_kinds(const GgufMetadata& meta, const std::string& name, TokenizerData& data) {
  DI_ASSIGN(const GgufArray* kinds, meta.array("tokenizer.ggml.token_type", GgufType::kI32));
  if (kinds == nullptr) return {};
  if (kinds->count != data.tokens.size())
    return make_error(ErrorCode::kModel,
                      "{}: tokenizer.ggml.token_type has {} entries, expected {}: one a token", name,
                      kinds->count, data.tokens.size());
  data.kinds.reserve(kinds->count);
  for (uint64_t i = 0; i < kinds->count; ++i) {
    int32_t kind = 0;
    std::memcpy(&kind, kinds->data + i * sizeof kind, sizeof kind);
    if (kind < 1 || kind > 6)
      return make_error(ErrorCode::kModel, "{}: tokenizer.ggml.token_type[{}] is {}, expected 1 to 6", name,
                        i, kind);
    data.kinds.push_back(static_cast<TokenizerData::Kind>(kind));
  }
  return {};
}

Result<void> read_ids(const GgufMetadata& meta, TokenizerData& data) {
  const auto last = static_cast<int64_t>(data.tokens.size()) - 1;
  const auto read = [&](const char* key, std::optional<int32_t>& out) -> Result<void> {
    DI_ASSIGN(const auto id, meta.integer(key, 0, last));
    if (id) out = static_cast<int32_t>(*id);
    return {};
  };
  std::optional<int32_t> eot, eom;
  DI_TRY(read("tokenizer.ggml.bos_token_id", data.bos));
  DI_TRY(read("tokenizer.ggml.eos_token_id", data.eos));
  DI_TRY(read("tokenizer.ggml.unknown_token_id", data.unk));
  DI_TRY(read("tokenizer.ggml.padding_token_id", data.pad));
  DI_TRY(read("tokenizer.ggml.eot_token_id", eot));
  DI_TRY(read("tokenizer.ggml.eom_token_id", eom));
  const auto add = [&](int32_t id) {
    if (data.eos != id && std::find(data.eog.begin(), data.eog.end(), id) == data.eog.end())
      data.eog.push_back(id);
  };
  if (eot) add(*eot);
  if (eom) add(*eom);
  for (size_t i = 0; i < data.kinds.size(); ++i) {
    const bool control = data.kinds[i] == TokenizerData::Kind::kControl;
    if (control && std::find(kEndTokens.begin(), kEndTokens.end(), data.tokens[i]) != kEndTokens.end())
      add(static_cast<int32_t>(i));
  }
  return {};
}

}  // namespace

Result<TokenizerData> gguf_tokenizer(const GgufFile& file, const std::string& name) {
  const GgufMetadata meta(file, name);
  TokenizerData data;
  DI_ASSIGN(const auto model, meta.string("tokenizer.ggml.model"));
  DI_ASSIGN(const auto pre, meta.string("tokenizer.ggml.pre"));
  DI_ASSIGN(data.tokens, read_texts(meta, "tokenizer.ggml.tokens"));
  if (!model || data.tokens.empty())
    return make_error(ErrorCode::kModel,
                      "{}: the file has no tokenizer: {} is missing; get a file made with its vocabulary",
                      name, model ? "tokenizer.ggml.tokens" : "tokenizer.ggml.model");
  if (data.tokens.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    return make_error(ErrorCode::kModel, "{}: {} tokens are more than ids can number", name,
                      data.tokens.size());
  data.model = *model;
  data.pre = pre.value_or("");
  DI_ASSIGN(data.merges, read_texts(meta, "tokenizer.ggml.merges"));
  DI_TRY(read_kinds(meta, name, data));
  DI_TRY(read_ids(meta, data));
  DI_ASSIGN(data.add_bos, meta.boolean("tokenizer.ggml.add_bos_token"));
  DI_ASSIGN(const auto add_eos, meta.boolean("tokenizer.ggml.add_eos_token"));
  data.add_eos = add_eos.value_or(false);
  return data;
}

}  // namespace deepinfer
