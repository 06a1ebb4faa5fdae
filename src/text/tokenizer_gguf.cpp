// TokenizerData, as GGUF metadata has it, to a tokenizer.
#include <algorithm>
#include <array>

#include "base/check.h"
#include "text/bpe_tokenizer.h"
#include "text/tokenizer.h"

namespace deepinfer {
namespace {

// GGUF names a pre-tokenizer by the model family it was first seen in.
struct Family {
  std::string_view names;  // separated by spaces
  std::array<ScanPattern, 2> scans;
  int scan_count;
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;  // when the file does not say
};

constexpr std::array kFamilies = {
    Family{"gpt-2 gpt2 phi-2 olmo", {ScanPattern::kGpt2}, 1},
    Family{"llama-bpe llama3 llama-v3 falcon3", {ScanPattern::kLlama3}, 1, false, true, true},
    Family{"dbrx smaug-bpe", {ScanPattern::kLlama3}, 1},
    Family{"qwen2", {ScanPattern::kQwen2}, 1, true},
    Family{"deepseek-r1-qwen", {ScanPattern::kQwen2}, 1},
    Family{"smollm starcoder refact codeshell", {ScanPattern::kDigits, ScanPattern::kGpt2}, 2},
    Family{"command-r", {ScanPattern::kDigits, ScanPattern::kGpt2}, 2, true},
};

const Family* family_of(std::string_view pre) {
  if (pre.empty() || pre.find(' ') != std::string_view::npos) return nullptr;
  for (const Family& family : kFamilies) {
    for (std::string_view names = family.names; !names.empty();) {
      const size_t end = std::min(names.find(' '), names.size());
      if (names.substr(0, end) == pre) return &family;
      names.remove_prefix(std::min(end + 1, names.size()));
    }
  }
  return nullptr;
}

std::string known_names() {
  std::string names;
  for (const Family& family : kFamilies) names.append(names.empty() ? "" : " ").append(family.names);
  return names;
}

Result<void> check_sizes(const TokenizerData& data) {
  constexpr size_t kMost = size_t{1} << 24;
  if (data.tokens.empty() || data.tokens.size() > kMost)
    return make_error(ErrorCode::kModel, "tokenizer: got {} tokens, expected 1 to {}", data.tokens.size(),
                      kMost);
  if (!data.kinds.empty() && data.kinds.size() != data.tokens.size())
    return make_error(ErrorCode::kModel, "tokenizer: got {} token types for {} tokens, expected one for each",
                      data.kinds.size(), data.tokens.size());
  for (const auto& [name, id] : {std::pair("bos", data.bos), std::pair("eos", data.eos)})
    if (id && (*id < 0 || static_cast<size_t>(*id) >= data.tokens.size()))
      return make_error(ErrorCode::kModel, "tokenizer: {} token id: got {}, expected 0 to {}", name, *id,
                        data.tokens.size() - 1);
  for (const int32_t id : data.eog)
    if (id < 0 || static_cast<size_t>(id) >= data.tokens.size())
      return make_error(ErrorCode::kModel, "tokenizer: end of generation id: got {}, expected 0 to {}", id,
                        data.tokens.size() - 1);
  return {};
}

// The ends of a generation are special even where the file calls them normal.
std::vector<AddedToken> added_tokens(const TokenizerData& data) {
  using Kind = TokenizerData::Kind;
  const auto is_end = [&data](int32_t id) {
    return data.eos == id || std::find(data.eog.begin(), data.eog.end(), id) != data.eog.end();
  };
  std::vector<AddedToken> added;
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    const Kind kind = data.kinds.empty() ? Kind::kNormal : data.kinds[i];
    AddedToken token{data.tokens[i], static_cast<int32_t>(i)};
    token.special =
        kind == Kind::kControl || kind == Kind::kUnknown || is_end(token.id) || data.bos == token.id;
    if (token.special || kind == Kind::kUserDefined) added.push_back(std::move(token));
  }
  // Some files have user-defined tokens where the model has a special one: their names tell.
  for (AddedToken& token : added) {
    AddedToken as_special = token;
    as_special.special = true;
    if (!token.special && !known_end_ids({as_special}).empty()) token.special = true;
  }
  return added;
}

Result<std::vector<std::pair<std::string, std::string>>> split_merges(
    const std::vector<std::string>& merges) {
  std::vector<std::pair<std::string, std::string>> out;
  out.reserve(merges.size());
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ');
    if (space == std::string::npos || space == 0 || space + 1 == merge.size())
      return make_error(ErrorCode::kModel,
                        "tokenizer: merge {}: got \"{}\", expected two spellings and a space", out.size(),
                        merge);
    out.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  return out;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> make_tokenizer(TokenizerData data) {
  if (data.model != "gpt2")
    return make_error(ErrorCode::kModel, "tokenizer model: got \"{}\", known is \"gpt2\" (byte-level BPE)",
                      data.model);
  const Family* family = family_of(data.pre);
  if (!family)
    return make_error(ErrorCode::kModel, "pre-tokenizer: got \"{}\", known are: {}", data.pre, known_names());
  DI_TRY(check_sizes(data));
  BpeTokenizerParts parts;
  DI_ASSIGN(parts.merges, split_merges(data.merges));
  parts.added = added_tokens(data);
  parts.end_ids = known_end_ids(parts.added);
  if (data.eos) parts.end_ids.push_back(*data.eos);
  parts.end_ids.insert(parts.end_ids.end(), data.eog.begin(), data.eog.end());
  std::sort(parts.end_ids.begin(), parts.end_ids.end());
  parts.end_ids.erase(std::unique(parts.end_ids.begin(), parts.end_ids.end()), parts.end_ids.end());
  parts.pre_tokenizer = PreTokenizer({family->scans.begin(), family->scans.begin() + family->scan_count});
  if (family->nfc) parts.normalizer = Normalizer({UnicodeForm::kNfc});
  parts.bpe.ignore_merges = family->ignore_merges;
  parts.bos = data.bos;
  parts.add_bos = data.bos && data.add_bos.value_or(family->add_bos);
  parts.spellings = std::move(data.tokens);
  return make_bpe_tokenizer(std::move(parts));
}

}  // namespace deepinfer
