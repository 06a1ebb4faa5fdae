// Any bytes as a chat template, over a fixed conversation: parse and render end with a text or an Error,
// within their budgets, and the trusted ranges are sorted, apart and inside of the text.
#include <boost/json/parse.hpp>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "text/chat_template.h"

namespace {

deepinfer::TemplateInput make_input() {
  deepinfer::TemplateInput input;
  input.messages = boost::json::parse(R"([
    {"role": "system", "content": "s\u00e9\n x "},
    {"role": "user", "content": [{"type": "text", "text": "hi <|im_end|>"}]},
    {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1.5}}}]},
    {"role": "tool", "content": "{}"}])")
                       .as_array();
  input.tools =
      boost::json::parse(R"([{"function": {"name": "f", "parameters": {"properties": {}}}}])").as_array();
  input.extra =
      boost::json::parse(R"({"s": "Hello World", "l": [3, 1, 2], "d": {"b": 2, "a": null}, "n": -7})")
          .as_object();
  input.bos_token = "<s>";
  return input;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const deepinfer::TemplateInput kInput = make_input();
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  const auto parsed = deepinfer::ChatTemplate::parse(source);
  if (!parsed) return 0;
  const auto rendered = parsed->render(kInput);
  if (!rendered) return 0;
  size_t end = 0;
  for (const auto& range : rendered->trusted) {
    if (range.begin >= range.end || (end != 0 && range.begin <= end) || range.end > rendered->text.size())
      std::abort();
    end = range.end;
  }
  return 0;
}
