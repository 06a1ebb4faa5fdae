#include "text/tokenizer_json.h"

#include <algorithm>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 24;

Result<int32_t> checked_id(std::string_view what, int64_t id, size_t entries) {
  // Ids may have gaps, but a huge one in a small file is a fault, not a vocabulary.
  const int64_t limit = std::min(kMostTokens, static_cast<int64_t>(entries) * 4 + 65536);
  if (id < 0 || id >= limit)
    return make_error(ErrorCode::kModel, "{}: got id {}, expected 0 to {}", what, id, limit - 1);
  return static_cast<int32_t>(id);
}

Result<void> put_spelling(std::vector<std::string>& spellings, int32_t id, std::string_view spelling) {
  const auto index = static_cast<size_t>(id);
  if (index >= spellings.size()) spellings.resize(index + 1);
  if (!spellings[index].empty() && spellings[index] != spelling)
    return make_error(ErrorCode::kModel, "id {}: got both \"{}\" and \"{}\"", id, spellings[index], spelling);
  spellings[index] = spelling;
  return {};
}

Result<void> read_vocabulary(const JsonFields& model, std::vector<std::string>& spellings) {
  DI_ASSIGN(const auto vocab, model.object("vocab"));
  if (!vocab || vocab->raw().empty())
    return make_error(ErrorCode::kModel, "{}: missing or empty", model.path_of("vocab"));
  spellings.reserve(vocab->raw().size() + 1024);
  for (const auto& [spelling, value] : vocab->raw()) {
    if (!value.is_int64())
      return make_error(ErrorCode::kModel, "{}: got {}, expected an id", vocab->path_of(spelling),
                        json_kind(value));
    DI_ASSIGN(const int32_t id, checked_id(spelling, value.get_int64(), vocab->raw().size()));
    DI_TRY(put_spelling(spellings, id, spelling));
  }
  return {};
}

// "a b" or ["a", "b"]
std::optional<std::pair<std::string, std::string>> read_merge(const boost::json::value& value) {
  if (const auto* text = value.if_string()) {
    const std::string_view merge = *text;
    const size_t space = merge.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    return std::pair{std::string(merge.substr(0, space)), std::string(merge.substr(space + 1))};
  }
  const auto* pair = value.if_array();
  if (!pair || pair->size() != 2 || !(*pair)[0].is_string() || !(*pair)[1].is_string()) return std::nullopt;
  return std::pair{std::string((*pair)[0].get_string()), std::string((*pair)[1].get_string())};
}

Result<void> read_merges(const JsonFields& model, BpeTokenizerParts& parts) {
  DI_ASSIGN(const boost::json::array* list, model.array("merges"));
  if (!list) return make_error(ErrorCode::kModel, "{}: missing, expected a list", model.path_of("merges"));
  parts.merges.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i) {
    auto merge = read_merge((*list)[i]);
    if (!merge)
      return make_error(ErrorCode::kModel, "{}[{}]: expected \"left right\" or [\"left\", \"right\"]",
                        model.path_of("merges"), i);
    parts.merges.push_back(std::move(*merge));
  }
  return {};
}

// Settings that would change the ids and are not built must not be passed over.
Result<void> refuse_unknown_settings(const JsonFields& model) {
  const boost::json::value* dropout = model.find("dropout");
  if (dropout && !(dropout->is_double() && dropout->get_double() == 0.0))
    return make_error(ErrorCode::kModel, "{}: got {}, expected null", model.path_of("dropout"),
                      json_kind(*dropout));
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    DI_ASSIGN(const auto text, model.string(key));
    if (text && !text->empty())
      return make_error(ErrorCode::kModel, "{}: got \"{}\", expected none (byte-level BPE)",
                        model.path_of(key), *text);
  }
  DI_ASSIGN(const bool byte_fallback, model.boolean("byte_fallback", false));
  if (byte_fallback)
    return make_error(ErrorCode::kModel, "{}: got true, known is byte-level BPE only",
                      model.path_of("byte_fallback"));
  return {};
}

Result<void> read_model(const JsonFields& document, BpeTokenizerParts& parts) {
  DI_ASSIGN(const auto model, document.object("model"));
  if (!model) return make_error(ErrorCode::kModel, "model: missing, expected an object");
  DI_ASSIGN(const auto type, model->string("type"));
  if (type.value_or("BPE") != "BPE")
    return make_error(ErrorCode::kModel, "model.type: got \"{}\", known is \"BPE\" (byte-level)", *type);
  DI_TRY(refuse_unknown_settings(*model));
  DI_TRY(read_vocabulary(*model, parts.spellings));
  DI_TRY(read_merges(*model, parts));
  DI_ASSIGN(parts.bpe.ignore_merges, model->boolean("ignore_merges", false));
  DI_ASSIGN(parts.bpe.fuse_unk, model->boolean("fuse_unk", false));
  DI_ASSIGN(const auto unk, model->string("unk_token"));
  if (!unk || unk->empty()) return {};
  const auto at = std::find(parts.spellings.begin(), parts.spellings.end(), *unk);
  if (at == parts.spellings.end())
    return make_error(ErrorCode::kModel, "model.unk_token: got \"{}\", which the vocabulary lacks", *unk);
  parts.bpe.unk = static_cast<int32_t>(at - parts.spellings.begin());
  return {};
}

Result<void> read_added(const JsonFields& document, BpeTokenizerParts& parts) {
  DI_ASSIGN(const boost::json::array* list, document.array("added_tokens"));
  if (!list) return {};
  const size_t entries = parts.spellings.size() + list->size();
  for (size_t i = 0; i < list->size(); ++i) {
    DI_ASSIGN(const JsonFields object, JsonFields::of((*list)[i], fmt::format("added_tokens[{}]", i)));
    DI_ASSIGN(const auto number, object.integer("id"));
    DI_ASSIGN(const int32_t id, checked_id(object.path(), number.value_or(-1), entries));
    DI_ASSIGN(AddedToken token, read_added_token(object, id));
    DI_TRY(put_spelling(parts.spellings, id, token.content));
    parts.added.push_back(std::move(token));
  }
  return {};
}

// A post-processor that puts a special token before the text says that prompts start with it.
Result<void> read_post_processor(const JsonFields& object, BpeTokenizerParts& parts) {
  DI_ASSIGN(const std::string_view type, object.required_string("type"));
  if (type == "Sequence") {
    DI_ASSIGN(const boost::json::array* list, object.array("processors"));
    for (size_t i = 0; list && i < list->size(); ++i) {
      DI_ASSIGN(const JsonFields child,
                JsonFields::of((*list)[i], fmt::format("{}[{}]", object.path_of("processors"), i)));
      DI_TRY(read_post_processor(child, parts));
    }
  }
  if (type != "TemplateProcessing") return {};
  DI_ASSIGN(const boost::json::array* single, object.array("single"));
  if (!single || single->empty()) return {};
  DI_ASSIGN(const JsonFields first, JsonFields::of(single->front(), object.path_of("single[0]")));
  DI_ASSIGN(const auto special, first.object("SpecialToken"));
  if (!special) return {};
  DI_ASSIGN(const std::string_view name, special->required_string("id"));
  const auto token = std::find_if(parts.added.begin(), parts.added.end(),
                                  [name](const AddedToken& added) { return added.content == name; });
  if (token == parts.added.end())
    return make_error(ErrorCode::kModel, "{}: got \"{}\", which is no added token", special->path_of("id"),
                      name);
  parts.bos = token->id;
  parts.add_bos = true;
  return {};
}

}  // namespace

Result<AddedToken> read_added_token(const JsonFields& token, int64_t id) {
  AddedToken out;
  DI_ASSIGN(const std::string_view content, token.required_string("content"));
  if (content.empty())
    return make_error(ErrorCode::kModel, "{}: got an empty string", token.path_of("content"));
  out.content = content;
  out.id = static_cast<int32_t>(id);
  DI_ASSIGN(out.special, token.boolean("special", false));
  DI_ASSIGN(out.single_word, token.boolean("single_word", false));
  DI_ASSIGN(out.lstrip, token.boolean("lstrip", false));
  DI_ASSIGN(out.rstrip, token.boolean("rstrip", false));
  DI_ASSIGN(out.normalized, token.boolean("normalized", !out.special));
  return out;
}

Result<BpeTokenizerParts> read_tokenizer_json(const boost::json::value& value) {
  DI_ASSIGN(const JsonFields document, JsonFields::of(value, ""));
  BpeTokenizerParts parts;
  DI_TRY(read_model(document, parts));
  DI_TRY(read_added(document, parts));
  DI_ASSIGN(parts.normalizer, read_normalizer(document));
  DI_ASSIGN(parts.pre_tokenizer, read_pre_tokenizer(document));
  DI_ASSIGN(const auto post_processor, document.object("post_processor"));
  if (post_processor) DI_TRY(read_post_processor(*post_processor, parts));
  return parts;
}

}  // namespace deepinfer
