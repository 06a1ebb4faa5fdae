// Text to token ids and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/result.h"

namespace deepinfer {

// What a checkpoint says about its tokenizer, whichever file it stands in: a GGUF's metadata fills it
// directly.
struct TokenizerData {
  enum class Kind : uint8_t {
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,
    kUserDefined = 4,
    kUnused = 5,
    kByte = 6
  };  // GGUF's numbers

  std::string model;                // "gpt2": byte-level BPE
  std::string pre;                  // pre-tokenizer: gpt2, llama-bpe, smollm, qwen2, ...
  std::vector<std::string> tokens;  // by id, in the form of the file (byte-level: GPT-2's printable alphabet)
  std::vector<Kind> kinds;          // by id; empty: all normal
  std::vector<std::string> merges;  // "left right", most important first
  std::optional<int32_t> bos, eos, unk, pad;
  std::vector<int32_t> eog;     // further ids that end a generation (<|eot_id|>, ...)
  std::optional<bool> add_bos;  // absent: what the pre-tokenizer's family does (llama-bpe adds it)
  bool add_eos = false;
};

// A stretch of the text where the spelling of a special token may become one: template text, never a user's.
struct TextRange {
  size_t begin = 0, end = 0;  // bytes
};

// Immutable after loading: any number of threads may use one.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Special tokens are recognized only inside `special`. Invalid UTF-8 becomes U+FFFD as in Hugging Face's
  // tokenizers. Does not add bos or eos.
  virtual std::vector<int32_t> encode(std::string_view text,
                                      std::span<const TextRange> special = {}) const = 0;

  // The raw bytes of a token; empty for an id out of range. Control tokens give their name ("<|im_end|>").
  virtual std::string_view bytes(int32_t token) const = 0;

  virtual int32_t vocab_size() const = 0;
  virtual bool is_special(int32_t token) const = 0;  // left out of text with skip_special_tokens
  virtual std::optional<int32_t> find(
      std::string_view token) const = 0;  // a token by its exact bytes or special name

  // Ids that end a generation; what stands before every plain prompt.
  virtual const std::vector<int32_t>& end_ids() const = 0;
  virtual std::optional<int32_t> bos() const = 0;  // the id, whether or not it is added
  virtual bool add_bos() const = 0;
};

// kModel with the file, what was found and what is known, for an unknown model or pre-tokenizer and for
// broken data.
Result<std::unique_ptr<Tokenizer>> make_tokenizer(TokenizerData data);

// Reads tokenizer.json (and tokenizer_config.json, special_tokens_map.json where present) of a Hugging Face
// folder.
Result<std::unique_ptr<Tokenizer>> load_tokenizer(const std::filesystem::path& folder);

}  // namespace deepinfer
