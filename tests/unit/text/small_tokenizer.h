// A vocabulary that a test can see through: the 256 bytes as ids 0 to 255, a few merges, a few special
// tokens.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/byte_alphabet.h"
#include "text/tokenizer.h"

namespace deepinfer::test {

inline constexpr int32_t kHe = 256, kLl = 257, kHell = 258, kHello = 259, kSpaceHello = 260;
inline constexpr int32_t kEnd = 261, kStart = 262, kTool = 263, kSmallVocabulary = 264;

inline TokenizerData small_data(std::string pre = "gpt2") {
  TokenizerData data;
  data.model = "gpt2";
  data.pre = std::move(pre);
  for (int byte = 0; byte < 256; ++byte)
    data.tokens.push_back(bytes_to_alphabet(std::string(1, static_cast<char>(byte))));
  for (const char* token : {"he", "ll", "hell", "hello", "Ġhello", "<|im_end|>", "<|im_start|>", "<tool>"})
    data.tokens.emplace_back(token);
  data.merges = {"h e", "l l", "he ll", "hell o", "Ġ hello"};
  data.kinds.assign(data.tokens.size(), TokenizerData::Kind::kNormal);
  data.kinds[kEnd] = data.kinds[kStart] = TokenizerData::Kind::kControl;
  data.kinds[kTool] = TokenizerData::Kind::kUserDefined;
  data.bos = kStart;
  data.eos = kEnd;
  return data;
}

inline std::unique_ptr<Tokenizer> small_tokenizer(std::string pre = "gpt2") {
  return make_tokenizer(small_data(std::move(pre))).value();
}

inline std::string text_of(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) text += tokenizer.bytes(id);
  return text;
}

}  // namespace deepinfer::test
