// A tokenizer.json, a zero byte, and a text: loading ends with a tokenizer or an Error; encoding gives ids of
// the vocabulary, a special token only from the trusted half of the text, and a stream of them gives valid
// UTF-8.
#include <boost/json/parse.hpp>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/check.h"
#include "text/text_stream.h"
#include "text/tokenizer_json.h"
#include "text/utf8.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void check_stream(const deepinfer::Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  deepinfer::TextStream stream(tokenizer, {.stop = {"ab", "b\n"}});
  size_t given = 0;
  for (const int32_t id : ids) {
    const auto delta = stream.push(id);
    require(deepinfer::is_valid_utf8(delta.text));
    given += static_cast<size_t>(delta.tokens);
    if (delta.stopped) {
      require(given <= ids.size());
      return;
    }
  }
  const auto rest = stream.finish();
  require(deepinfer::is_valid_utf8(rest.text) && given + static_cast<size_t>(rest.tokens) == ids.size());
}

void check(const deepinfer::Tokenizer& tokenizer, std::optional<int32_t> unk, std::string_view text) {
  const deepinfer::TextRange half{0, text.size() / 2};
  for (const bool trusted : {false, true}) {
    const auto ids = trusted ? tokenizer.encode(text, std::span(&half, 1)) : tokenizer.encode(text);
    for (const int32_t id : ids) {
      require(id >= 0 && id < tokenizer.vocab_size());
      require(trusted || !tokenizer.is_special(id) || id == unk);
    }
    check_stream(tokenizer, ids);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  boost::json::error_code code;
  const boost::json::value document = boost::json::parse(input.substr(0, end), code);
  if (code) return 0;
  auto parts = deepinfer::read_tokenizer_json(document);
  if (!parts) return 0;
  const std::optional<int32_t> unk = parts->bpe.unk;
  const auto tokenizer = deepinfer::make_bpe_tokenizer(std::move(parts).value());
  if (!tokenizer) return 0;
  const std::string_view text = end == std::string_view::npos ? "ab <x>" : input.substr(end + 1);
  try {
    check(**tokenizer, unk, text);
  } catch (const deepinfer::InternalError& error) {
    // A hostile regular expression ran into the engine's limits: the promise is that it ends, and says so.
    require(std::string_view(error.what()).find("regular expression") != std::string_view::npos);
  }
  return 0;
}
