// Token ids of one choice, back into text as it grows: complete UTF-8 only, and never a part of a stop
// string. One thread owns each.
#pragma once

#include <cstdint>
#include <deque>
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
  struct Stop {
    std::string text;
    std::vector<size_t> failure;  // by matched bytes: how many still match after another byte
    size_t matched = 0;           // bytes of `text` that the text so far ends with
  };
  static constexpr uint64_t kOpen = ~uint64_t{0};
  struct Pending {
    uint64_t bytes_end = 0;     // counted from the first token
    uint64_t text_end = kOpen;  // counted from the start of the text; open: not all bytes are read
  };

  Delta read_partial(bool last);
  void settle_tokens();
  const Stop* advance(char byte);
  Delta stop_at(const Stop& stop, Delta delta);
  void give_out(Delta& delta);

  const Tokenizer* tokenizer_;
  TextStreamOptions options_;
  std::vector<Stop> stops_;
  std::string partial_;          // bytes that are no complete character yet
  std::string held_;             // complete text, not yet given out
  std::deque<Pending> pending_;  // tokens that have not given all their text
  size_t settled_ = 0;           // the first of them, whose text_end is known
  uint64_t bytes_in_ = 0, bytes_read_ = 0, text_end_ = 0;
  bool stopped_ = false;
};

}  // namespace deepinfer
