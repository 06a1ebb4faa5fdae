// A Hugging Face folder: tokenizer.json, and what stands beside it.
#include <algorithm>
#include <charconv>
#include <system_error>

#include "base/check.h"
#include "text/tokenizer.h"
#include "text/tokenizer_json.h"

namespace deepinfer {
namespace {

// The file as an object; nothing when it is not there.
Result<std::optional<boost::json::value>> parse_optional(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::optional<boost::json::value>();
  DI_ASSIGN(boost::json::value value, parse_json_file(path));
  return std::optional<boost::json::value>(std::move(value));
}

// "eos_token": "</s>" or {"content": "</s>"}
Result<std::optional<std::string_view>> named_token(const JsonFields& config, std::string_view key) {
  const boost::json::value* value = config.find(key);
  if (!value || value->is_string()) return config.string(key);
  DI_ASSIGN(const JsonFields token, JsonFields::of(*value, config.path_of(key)));
  return token.string("content");
}

std::optional<int32_t> id_of(const BpeTokenizerParts& parts, std::string_view content) {
  for (const AddedToken& token : parts.added)
    if (token.content == content) return token.id;
  const auto at = std::find(parts.spellings.begin(), parts.spellings.end(), content);
  if (at == parts.spellings.end()) return std::nullopt;
  return static_cast<int32_t>(at - parts.spellings.begin());
}

// Older folders have added tokens here that tokenizer.json lacks.
Result<void> read_added_decoder(const JsonFields& config, BpeTokenizerParts& parts) {
  DI_ASSIGN(const auto decoder, config.object("added_tokens_decoder"));
  if (!decoder) return {};
  for (const auto& [key, value] : decoder->raw()) {
    const std::string path = decoder->path_of(key);
    uint32_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    const size_t limit = parts.spellings.size() + 65536;
    if (error != std::errc() || end != key.data() + key.size() || id >= limit)
      return make_error(ErrorCode::kModel, "{}: expected an id from 0 to {}", path, limit - 1);
    DI_ASSIGN(const JsonFields object, JsonFields::of(value, path));
    DI_ASSIGN(AddedToken token, read_added_token(object, id));
    const auto same = [&token](const AddedToken& known) {
      return known.id == token.id || known.content == token.content;
    };
    if (std::any_of(parts.added.begin(), parts.added.end(), same)) continue;
    if (id >= parts.spellings.size()) parts.spellings.resize(id + size_t{1});
    if (parts.spellings[id].empty()) parts.spellings[id] = token.content;
    if (parts.spellings[id] != token.content)
      return make_error(ErrorCode::kModel, "{}: got \"{}\", but tokenizer.json has \"{}\"", path,
                        token.content, parts.spellings[id]);
    parts.added.push_back(std::move(token));
  }
  return {};
}

void make_special(BpeTokenizerParts& parts, int32_t id) {
  for (AddedToken& token : parts.added) {
    if (token.id != id) continue;
    token.special = true;
    return;
  }
  AddedToken token{parts.spellings[static_cast<size_t>(id)], id};
  token.special = true;
  parts.added.push_back(std::move(token));
}

Result<void> read_config(const JsonFields& config, BpeTokenizerParts& parts) {
  DI_TRY(read_added_decoder(config, parts));
  DI_ASSIGN(const auto bos, named_token(config, "bos_token"));
  if (bos && !parts.bos) {
    parts.bos = id_of(parts, *bos);
    if (parts.bos) make_special(parts, *parts.bos);
  }
  DI_ASSIGN(const auto eos, named_token(config, "eos_token"));
  const auto eos_id = eos ? id_of(parts, *eos) : std::nullopt;
  if (eos_id) {
    make_special(parts, *eos_id);
    parts.end_ids.push_back(*eos_id);
  }
  DI_ASSIGN(parts.add_bos, config.boolean("add_bos_token", parts.add_bos));
  parts.add_bos = parts.add_bos && parts.bos;
  return {};
}

Result<BpeTokenizerParts> read_folder(const std::filesystem::path& folder) {
  const auto tokenizer_path = folder / "tokenizer.json";
  DI_ASSIGN(const boost::json::value document, parse_json_file(tokenizer_path));
  auto parts = read_tokenizer_json(document);
  if (!parts) return make_error(ErrorCode::kModel, "{}: {}", tokenizer_path.string(), parts.error().message);
  for (const std::string_view name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    DI_ASSIGN(const auto config, parse_optional(folder / name));
    if (!config) continue;
    const auto add = [&]() -> Result<void> {
      DI_ASSIGN(const JsonFields object, JsonFields::of(*config, ""));
      return read_config(object, *parts);
    };
    if (auto added = add(); !added)
      return make_error(ErrorCode::kModel, "{}: {}", (folder / name).string(), added.error().message);
  }
  return std::move(parts).value();
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> load_tokenizer(const std::filesystem::path& folder) {
  DI_ASSIGN(BpeTokenizerParts parts, read_folder(folder));
  for (const int32_t id : known_end_ids(parts.added)) parts.end_ids.push_back(id);
  std::sort(parts.end_ids.begin(), parts.end_ids.end());
  parts.end_ids.erase(std::unique(parts.end_ids.begin(), parts.end_ids.end()), parts.end_ids.end());
  auto tokenizer = make_bpe_tokenizer(std::move(parts));
  if (!tokenizer)
    return make_error(ErrorCode::kModel, "{}: {}", (folder / "tokenizer.json").string(),
                      tokenizer.error().message);
  return tokenizer;
}

}  // namespace deepinfer
