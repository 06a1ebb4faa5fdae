// A model's own chat template, by an interpreter of the Jinja subset that templates use: no I/O, no
// reflection, and budgets for steps, depth and output, so that a template can neither leak nor hang.
#pragma once

#include <boost/json/value.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/result.h"
#include "text/tokenizer.h"

namespace deepinfer {

struct RenderedPrompt {
  std::string text;
  std::vector<TextRange>
      trusted;  // bytes that the template wrote itself: only there special tokens are recognized
};

struct TemplateInput {
  boost::json::array messages;  // as in the request: role, content, tool_calls, ...
  boost::json::array tools;
  bool add_generation_prompt = true;
  boost::json::object extra;  // chat_template_kwargs
  std::string bos_token, eos_token;
  int64_t now = 0;  // for strftime_now, seconds since 1970
};

// Immutable after parsing: any number of threads may render with one.
class ChatTemplate {
 public:
  // kModel with line and column for what the interpreter does not know or what is broken.
  static Result<ChatTemplate> parse(std::string_view source);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // kInvalidArgument with the template's own words when it calls raise_exception, or a budget is exceeded.
  Result<RenderedPrompt> render(const TemplateInput& input) const;

 private:
  struct Program;
  explicit ChatTemplate(std::unique_ptr<Program> program);
  std::unique_ptr<Program> program_;
};

}  // namespace deepinfer
