// The byte-level BPE tokenizer, put together from what a GGUF or a Hugging Face folder says.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "deepinfer/result.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"

namespace deepinfer {

struct BpeTokenizerParts {
  std::vector<std::string> spellings;                       // by id, in GPT-2's alphabet; empty: no such id
  std::vector<std::pair<std::string, std::string>> merges;  // in the same alphabet, most important first
  std::vector<AddedToken> added;                            // their content replaces the spelling of their id
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  BpeOptions bpe;
  std::vector<int32_t> end_ids;
  std::optional<int32_t> bos;
  bool add_bos = false;
};

// kModel when ids, merges or spellings contradict each other; the message does not name the file.
Result<std::unique_ptr<Tokenizer>> make_bpe_tokenizer(BpeTokenizerParts parts);

// Ids whose names are known to end a generation, among the added tokens.
std::vector<int32_t> known_end_ids(const std::vector<AddedToken>& added);

}  // namespace deepinfer
