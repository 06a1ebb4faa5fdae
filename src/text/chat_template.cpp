#include "text/chat_template.h"

#include <fmt/format.h>

#include <utility>

#include "base/check.h"
#include "text/jinja_interp.h"

namespace deepinfer {

struct ChatTemplate::Program {
  std::unique_ptr<jinja::Program> jinja;
};

namespace {

using jinja::Heap;
using jinja::Kind;
using jinja::Value;

constexpr size_t kMaxSource = size_t{4} << 20;
constexpr int kMaxJsonDepth = 100;

// JSON of the request: everything in it is untrusted.
Value from_json(Heap& heap, const boost::json::value& json, int depth = 0) {
  if (depth > kMaxJsonDepth)
    jinja::fail(fmt::format("messages and tools: nested deeper than {} levels", kMaxJsonDepth));
  heap.step();
  Value out = Value::none();
  switch (json.kind()) {
    case boost::json::kind::null:
      break;
    case boost::json::kind::bool_:
      out = Value::boolean(json.get_bool());
      break;
    case boost::json::kind::int64:
      out = Value::integer(json.get_int64());
      break;
    case boost::json::kind::uint64:
      out = Value::integer(json.get_uint64());
      break;
    case boost::json::kind::double_:
      out = Value::real(json.get_double());
      break;
    case boost::json::kind::string:
      return heap.text(std::string_view(json.get_string()), true);
    case boost::json::kind::array: {
      std::vector<Value> items;
      items.reserve(json.get_array().size());
      for (const auto& item : json.get_array()) items.push_back(from_json(heap, item, depth + 1));
      out = heap.list(std::move(items));
      break;
    }
    case boost::json::kind::object: {
      auto* dict = heap.dict();
      for (const auto& [key, value] : json.get_object()) {
        dict->set(heap, heap.text(std::string_view(key), true), from_json(heap, value, depth + 1));
      }
      out = Value::of(Kind::kDict, dict);
      break;
    }
  }
  out.tainted = true;
  return out;
}

// The variables that transformers gives to a template: `tools` and `documents` are none when there are none,
// a token that the tokenizer lacks is undefined.
void define_input(jinja::Interpreter& interpreter, Heap& heap, const TemplateInput& input) {
  const auto token = [&](std::string_view name, const std::string& text) {
    if (!text.empty()) interpreter.define(name, heap.text(text, false));
  };
  token("bos_token", input.bos_token);
  token("eos_token", input.eos_token);
  interpreter.define("documents", Value::none());
  interpreter.define("add_generation_prompt", Value::boolean(input.add_generation_prompt));
  for (const auto& [name, value] : input.extra) interpreter.define(name, from_json(heap, value));
  interpreter.define("messages", from_json(heap, input.messages));
  interpreter.define("tools", input.tools.empty() ? Value::none() : from_json(heap, input.tools));
}

// What the template wrote is the rest of the text between the untrusted ranges.
RenderedPrompt finish(jinja::Text text) {
  RenderedPrompt out;
  size_t begin = 0;
  for (const TextRange& range : text.untrusted) {
    if (range.begin > begin) out.trusted.push_back({begin, range.begin});
    begin = range.end;
  }
  if (begin < text.bytes.size()) out.trusted.push_back({begin, text.bytes.size()});
  out.text = std::move(text.bytes);
  return out;
}

}  // namespace

ChatTemplate::ChatTemplate(std::unique_ptr<Program> program) : program_(std::move(program)) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

Result<ChatTemplate> ChatTemplate::parse(std::string_view source) {
  if (source.size() > kMaxSource) {
    return make_error(ErrorCode::kModel, "chat template: got {} bytes, expected at most {}", source.size(),
                      kMaxSource);
  }
  try {
    auto program = std::make_unique<Program>();
    program->jinja = jinja::parse_program(source);
    return ChatTemplate(std::move(program));
  } catch (const jinja::SyntaxFailure& failure) {
    return make_error(ErrorCode::kModel, "chat template, line {}, column {}: {}", failure.where.line,
                      failure.where.column, failure.message);
  }
}

Result<RenderedPrompt> ChatTemplate::render(const TemplateInput& input) const {
  for (const char* name : {"messages", "tools"}) {
    if (input.extra.contains(name)) {
      Error error =
          make_error(ErrorCode::kInvalidArgument,
                     "chat_template_kwargs.{0}: got a value, expected none: '{0}' is a parameter of the "
                     "request itself",
                     name);
      error.param = "chat_template_kwargs";
      return error;
    }
  }
  Heap heap{jinja::Limits()};
  jinja::Interpreter interpreter(*program_->jinja, heap, input.now);
  try {
    define_input(interpreter, heap, input);
    return finish(interpreter.run());
  } catch (const jinja::Failure& failure) {
    if (failure.raised) return Error{ErrorCode::kInvalidArgument, failure.message, "messages"};
    const jinja::Position where = interpreter.where();
    return make_error(ErrorCode::kInvalidArgument, "chat template, line {}, column {}: {}", where.line,
                      where.column, failure.message);
  }
}

}  // namespace deepinfer
