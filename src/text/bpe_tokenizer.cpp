#include "text/bpe_tokenizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <deque>
#include <unordered_set>

#include "base/check.h"
#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace deepinfer {
namespace {

// Pieces of this call that were encoded before, by their hash: most words of a long text come again. An entry
// points at the ids in the output.
class PieceCache {
 public:
  explicit PieceCache(size_t text_bytes)
      : entries_(std::bit_ceil(std::clamp<size_t>(text_bytes / 16, 16, 16384))) {}

  struct Entry {
    std::string_view piece;
    size_t begin = 0, end = 0;
  };

  Entry& of(std::string_view piece) { return entries_[hash_bytes(piece) & (entries_.size() - 1)]; }

 private:
  std::vector<Entry> entries_;
};

class BpeTokenizer final : public Tokenizer {
  auto bytes_of() const {
    return [this](int32_t id) -> std::string_view { return bytes_[static_cast<size_t>(id)]; };
  }

 public:
  BpeTokenizer(BpeTokenizerParts parts, Bpe bpe) : bpe_(std::move(bpe)) {
    normalizer_ = std::move(parts.normalizer);
    pre_tokenizer_ = std::move(parts.pre_tokenizer);
    end_ids_ = std::move(parts.end_ids);
    bos_ = parts.bos;
    add_bos_ = parts.add_bos;
    special_.resize(parts.spellings.size());
    bytes_ = std::move(parts.spellings);
    std::vector<AddedToken> raw, normalized;
    for (AddedToken& token : parts.added) {
      special_[static_cast<size_t>(token.id)] = token.special;
      // A special token keeps to its own spelling: what becomes it only by normalization is ordinary text.
      const bool in_normalized = token.normalized && !token.special;
      if (in_normalized) token.content = normalizer_.apply(token.content);
      (in_normalized ? normalized : raw).push_back(std::move(token));
    }
    raw_tokens_ = AddedTokenMatcher(std::move(raw));
    normalized_tokens_ = AddedTokenMatcher(std::move(normalized));
    names_ = BytesIndex(bytes_.size());
    for (size_t id = 0; id < bytes_.size(); ++id)
      if (!bytes_[id].empty()) names_.put(bytes_[id], static_cast<int32_t>(id), bytes_of());
  }

  std::vector<int32_t> encode(std::string_view text, std::span<const TextRange> special) const override {
    Call call(text.size());
    const std::vector<TextRange> ranges = tidy_ranges(special, text.size());
    for (const auto& segment : raw_tokens_.split(text, ranges)) {
      if (segment.token >= 0) {
        call.ids.push_back(segment.token);
      } else {
        encode_normalized(text.substr(segment.begin, segment.end - segment.begin), call);
      }
    }
    return std::move(call.ids);
  }

  std::string_view bytes(int32_t token) const override {
    return token >= 0 && token < vocab_size() ? bytes_[static_cast<size_t>(token)] : std::string_view();
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(bytes_.size()); }
  bool is_special(int32_t token) const override {
    return token >= 0 && token < vocab_size() && special_[static_cast<size_t>(token)];
  }
  std::optional<int32_t> find(std::string_view token) const override {
    const int32_t id = names_.find(token, bytes_of());
    return id < 0 ? std::nullopt : std::optional(id);
  }
  const std::vector<int32_t>& end_ids() const override { return end_ids_; }
  std::optional<int32_t> bos() const override { return bos_; }
  bool add_bos() const override { return add_bos_; }

 private:
  struct Call {
    explicit Call(size_t text_bytes) : cache(text_bytes) { ids.reserve(text_bytes / 4 + 4); }
    std::vector<int32_t> ids;
    std::vector<std::string_view> pieces;
    std::deque<std::string> storage;  // texts that pieces in the cache point into
    Bpe::Scratch scratch;
    PieceCache cache;
  };

  void encode_normalized(std::string_view text, Call& call) const {
    if (!is_valid_utf8(text)) text = call.storage.emplace_back(sanitize_utf8(text));
    if (!normalizer_.empty()) text = call.storage.emplace_back(normalizer_.apply(text));
    if (normalized_tokens_.empty()) return encode_plain(text, call);
    for (const auto& segment : normalized_tokens_.split(text, {})) {
      if (segment.token >= 0) {
        call.ids.push_back(segment.token);
      } else {
        encode_plain(text.substr(segment.begin, segment.end - segment.begin), call);
      }
    }
  }

  void encode_plain(std::string_view text, Call& call) const {
    pre_tokenizer_.split(text, call.pieces, call.storage);
    for (const std::string_view piece : call.pieces) {
      PieceCache::Entry& entry = call.cache.of(piece);
      const size_t begin = call.ids.size();
      if (entry.piece == piece) {
        for (size_t i = entry.begin; i < entry.end; ++i) call.ids.push_back(call.ids[i]);
      } else {
        bpe_.encode(piece, call.ids, call.scratch);
        entry = {piece, begin, call.ids.size()};
      }
    }
  }

  Bpe bpe_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  AddedTokenMatcher raw_tokens_, normalized_tokens_;
  std::vector<std::string> bytes_;  // by id
  std::vector<bool> special_;       // by id
  BytesIndex names_;                // ids by bytes
  std::vector<int32_t> end_ids_;
  std::optional<int32_t> bos_;
  bool add_bos_ = false;
};

struct Vocabulary {
  std::vector<std::string> tokens;  // raw bytes
  std::vector<int32_t> ids;
};

// Replaces spellings by raw bytes, and gathers the tokens that BPE may give: never a special one, for its
// output is the encoding of ordinary text.
Result<Vocabulary> raw_vocabulary(BpeTokenizerParts& parts) {
  std::vector<const AddedToken*> added(parts.spellings.size());
  for (const AddedToken& token : parts.added) {
    if (token.id < 0 || static_cast<size_t>(token.id) >= added.size())
      return make_error(ErrorCode::kModel, "added token \"{}\": got id {}, expected 0 to {}", token.content,
                        token.id, static_cast<int64_t>(added.size()) - 1);
    added[static_cast<size_t>(token.id)] = &token;
  }
  Vocabulary vocabulary;
  for (size_t id = 0; id < added.size(); ++id) {
    std::string& spelling = parts.spellings[id];
    std::optional<std::string> bytes = bytes_from_alphabet(spelling);
    if (bytes && !bytes->empty() && !(added[id] && added[id]->special)) {
      vocabulary.tokens.push_back(*bytes);
      vocabulary.ids.push_back(static_cast<int32_t>(id));
    }
    if (added[id]) {
      spelling = added[id]->content;
    } else if (bytes) {
      spelling = std::move(*bytes);
    }
  }
  return vocabulary;
}

Result<std::vector<BpeMerge>> raw_merges(const BpeTokenizerParts& parts) {
  std::unordered_set<std::string_view> specials;
  for (const AddedToken& token : parts.added)
    if (token.special) specials.insert(token.content);
  std::vector<BpeMerge> merges;
  merges.reserve(parts.merges.size());
  for (const auto& [left, right] : parts.merges) {
    std::optional<std::string> a = bytes_from_alphabet(left), b = bytes_from_alphabet(right);
    if (!a || !b || a->empty() || b->empty())
      return make_error(ErrorCode::kModel,
                        "merge {} (\"{} {}\"): expected two spellings in the byte alphabet of GPT-2",
                        merges.size(), left, right);
    if (specials.contains(*a) || specials.contains(*b) || specials.contains(*a + *b)) continue;
    merges.push_back({std::move(*a), std::move(*b)});
  }
  return merges;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> make_bpe_tokenizer(BpeTokenizerParts parts) {
  const auto size = static_cast<int64_t>(parts.spellings.size());
  const auto known = [size](std::optional<int32_t> id) { return !id || (*id >= 0 && *id < size); };
  if (!known(parts.bos) || !known(parts.bpe.unk) ||
      !std::all_of(parts.end_ids.begin(), parts.end_ids.end(), known))
    return make_error(ErrorCode::kModel, "bos, eos or unk id outside of the vocabulary: expected 0 to {}",
                      size - 1);
  DI_ASSIGN(std::vector<BpeMerge> merges, raw_merges(parts));
  DI_ASSIGN(Vocabulary vocabulary, raw_vocabulary(parts));
  DI_ASSIGN(Bpe bpe, Bpe::make(std::move(vocabulary.tokens), std::move(vocabulary.ids), merges, parts.bpe));
  return std::unique_ptr<Tokenizer>(std::make_unique<BpeTokenizer>(std::move(parts), std::move(bpe)));
}

std::vector<int32_t> known_end_ids(const std::vector<AddedToken>& added) {
  static constexpr std::array<std::string_view, 17> kNames = {
      "<|im_end|>",
      "<|eot_id|>",
      "<|eom_id|>",
      "<|end|>",
      "<|endoftext|>",
      "<|end_of_text|>",
      "</s>",
      "<eos>",
      "<end_of_turn>",
      "<|return|>",
      "<|call|>",
      "<|flush|>",
      "<EOT>",
      "[EOS]",
      "<end_of_utterance>",
      "<|endofgeneration|>",
      "<｜end▁of▁sentence｜>",
  };
  const auto id_of = [&added](std::string_view name) -> std::optional<int32_t> {
    for (const AddedToken& token : added)
      if (token.special && token.content == name) return token.id;
    return std::nullopt;
  };
  // With these two, <|end|> only ends one of several messages of an answer.
  const bool several_messages = id_of("<|return|>") && id_of("<|call|>");
  std::vector<int32_t> ids;
  for (const std::string_view name : kNames) {
    if (name == "<|end|>" && several_messages) continue;
    if (const auto id = id_of(name)) ids.push_back(*id);
  }
  return ids;
}

}  // namespace deepinfer
