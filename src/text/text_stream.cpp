#include "text/text_stream.h"

#include <algorithm>

#include "text/utf8.h"

namespace deepinfer {

TextStream::TextStream(const Tokenizer& tokenizer, TextStreamOptions options)
    : tokenizer_(&tokenizer), options_(std::move(options)) {
  for (std::string& stop : options_.stop) {
    if (stop.empty()) continue;
    Stop state{sanitize_utf8(stop), {}, 0};
    // The failure function of Knuth, Morris and Pratt: no text is looked at twice, however stop strings
    // repeat themselves.
    state.failure.assign(state.text.size() + 1, 0);
    for (size_t i = 1, k = 0; i < state.text.size(); ++i) {
      while (k > 0 && state.text[i] != state.text[k]) k = state.failure[k];
      if (state.text[i] == state.text[k]) ++k;
      state.failure[i + 1] = k;
    }
    stops_.push_back(std::move(state));
  }
}

TextStream::Delta TextStream::push(int32_t token) {
  if (stopped_) return {};
  const bool silent = options_.skip_special_tokens && tokenizer_->is_special(token);
  const std::string_view bytes = silent ? std::string_view() : tokenizer_->bytes(token);
  partial_ += bytes;
  bytes_in_ += bytes.size();
  pending_.push_back({bytes_in_, kOpen});
  return read_partial(false);
}

TextStream::Delta TextStream::finish() {
  if (stopped_) return {};
  Delta delta = read_partial(true);
  if (delta.stopped) return delta;
  delta.text += held_;
  held_.clear();
  delta.tokens += static_cast<int>(pending_.size());
  pending_.clear();
  stopped_ = true;
  return delta;
}

TextStream::Delta TextStream::read_partial(bool last) {
  Delta delta;
  std::string_view rest = partial_;
  settle_tokens();
  while (!rest.empty()) {
    const Utf8Step step = decode_utf8(rest);
    if (step.truncated && !last) break;
    const std::string_view character = step.valid ? rest.substr(0, step.length) : kReplacementUtf8;
    rest.remove_prefix(step.length);
    bytes_read_ += step.length;
    held_ += character;
    text_end_ += character.size();
    settle_tokens();
    for (const char byte : character)
      if (const Stop* found = advance(byte)) return stop_at(*found, std::move(delta));
  }
  partial_.erase(0, partial_.size() - rest.size());
  give_out(delta);
  return delta;
}

// Tokens whose bytes have all been read end where the text now ends.
void TextStream::settle_tokens() {
  for (; settled_ < pending_.size() && pending_[settled_].bytes_end <= bytes_read_; ++settled_)
    pending_[settled_].text_end = text_end_;
}

// The longest stop string that ends with this byte. All of them advance, so that the first to be complete
// wins wherever the tokens are cut.
const TextStream::Stop* TextStream::advance(char byte) {
  const Stop* found = nullptr;
  for (Stop& stop : stops_) {
    while (stop.matched > 0 && stop.text[stop.matched] != byte) stop.matched = stop.failure[stop.matched];
    if (stop.text[stop.matched] == byte) ++stop.matched;
    if (stop.matched == stop.text.size() && (!found || stop.text.size() > found->text.size())) found = &stop;
  }
  return found;
}

TextStream::Delta TextStream::stop_at(const Stop& stop, Delta delta) {
  // A match ends at the end of a character, which is the end of the held text.
  delta.text += options_.include_stop ? held_ : held_.substr(0, held_.size() - stop.text.size());
  delta.tokens += static_cast<int>(pending_.size());
  delta.stopped = stopped_ = true;
  delta.stop = stop.text;
  held_.clear();
  partial_.clear();
  pending_.clear();
  return delta;
}

void TextStream::give_out(Delta& delta) {
  size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.matched);
  delta.text.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  while (!pending_.empty() && pending_.front().text_end <= text_end_ - keep) {
    pending_.pop_front();
    --settled_;
    ++delta.tokens;
  }
}

}  // namespace deepinfer
