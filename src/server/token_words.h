// Strings of a request as the sequences of tokens that the sampler watches for. Runs on the text pool.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace deepinfer::server {

using TokenSequences = std::vector<std::vector<int32_t>>;

// Each word as a text begins with it, and, where a space before it makes another first token and no longer
// sequence, as it stands inside a text: vLLM's rule.
TokenSequences bad_word_sequences(const Tokenizer& tokenizer, std::span<const std::string> words);

// For each breaker: every token that holds it; and for a token that ends with its beginning, that token and
// the tokens of its rest, at most 20: llama.cpp's rule. No sequence comes twice.
TokenSequences breaker_sequences(const Tokenizer& tokenizer, std::span<const std::string> breakers);

// Newline, colon, quote, asterisk.
const std::vector<std::string>& default_breakers();

}  // namespace deepinfer::server
