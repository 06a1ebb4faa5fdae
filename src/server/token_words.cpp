#include "server/token_words.h"

#include <algorithm>
#include <string_view>

namespace deepinfer::server {

namespace {

// llama.cpp's limits: of a breaker's bytes, and of the tokens of its rest.
constexpr size_t kMaxBreaker = 40, kMaxTail = 20;

std::vector<int32_t> all_special(const Tokenizer& tokenizer, const std::string& text) {
  const TextRange all{0, text.size()};
  return tokenizer.encode(text, {&all, 1});
}

}  // namespace

TokenSequences bad_word_sequences(const Tokenizer& tokenizer, std::span<const std::string> words) {
  TokenSequences sequences;
  for (const std::string& word : words) {
    const size_t begin = word.find_first_not_of(" \t\r\n");
    const std::string bare = begin == std::string::npos ? word : word.substr(begin);
    std::vector<int32_t> first = all_special(tokenizer, bare);
    std::vector<int32_t> inside = all_special(tokenizer, " " + bare);
    if (first.empty()) continue;
    const bool other = inside.size() == first.size() && inside.front() != first.front();
    sequences.push_back(std::move(first));
    if (other) sequences.push_back(std::move(inside));
  }
  return sequences;
}

TokenSequences breaker_sequences(const Tokenizer& tokenizer, std::span<const std::string> breakers) {
  TokenSequences sequences;
  for (const std::string& whole : breakers) {
    const std::string breaker = whole.substr(0, kMaxBreaker);
    // By the number of the breaker's bytes that a token brings: the tokens of the rest.
    std::vector<std::vector<int32_t>> tails(breaker.size());
    for (size_t used = 1; used < breaker.size(); ++used) {
      tails[used] = tokenizer.encode(std::string_view(breaker).substr(used));
      if (tails[used].size() > kMaxTail) tails[used].resize(kMaxTail);
    }
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      const std::string_view bytes = tokenizer.bytes(id);
      if (bytes.find(breaker) != std::string_view::npos) {
        sequences.push_back({id});
        continue;
      }
      for (size_t used = std::min(breaker.size() - 1, bytes.size()); used > 0; --used) {
        if (!bytes.ends_with(std::string_view(breaker).substr(0, used))) continue;
        std::vector<int32_t> sequence{id};
        sequence.insert(sequence.end(), tails[used].begin(), tails[used].end());
        sequences.push_back(std::move(sequence));
      }
    }
  }
  std::sort(sequences.begin(), sequences.end());
  sequences.erase(std::unique(sequences.begin(), sequences.end()), sequences.end());
  return sequences;
}

const std::vector<std::string>& default_breakers() {
  static const std::vector<std::string> kBreakers = {"\n", ":", "\"", "*"};
  return kBreakers;
}

}  // namespace deepinfer::server
