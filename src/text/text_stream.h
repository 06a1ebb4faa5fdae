// Token ids of one choice, back into text as it grows: complete UTF-8 only, and never a part of a stop
// string.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace deepinfer {

struct TextStreamOptions {
  std::vector<std::string> stop;  // up to 4, none empty
  bool include_stop = false;      // leave the stop string in the text
  bool skip_special_tokens = true;
};

class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, TextStreamOptions options);  // borrows the tokenizer

  struct Delta {
    std::string text;  // may be empty: held back
    int tokens =
        0;  // how many of the pushed tokens have now given all the text they will: logprobs go with them
    bool stopped = false;  // a stop string was found: push nothing more
    std::string stop;      // which one
  };

  Delta push(int32_t token);
  Delta finish();  // the rest: incomplete UTF-8 becomes U+FFFD, a half stop string is text after all

 private:
  const Tokenizer* tokenizer_;
  TextStreamOptions options_;
  std::string held_;  // bytes not yet given out
  int held_tokens_ = 0;
};

}  // namespace deepinfer
