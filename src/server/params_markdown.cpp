#include <fmt/format.h>

#include <iterator>

#include "server/params.h"

namespace deepinfer::server {

namespace {

std::string_view form_name(Form forms) {
  if (forms == kBoth) return "both";
  return forms == kChat ? "chat" : "completions";
}

// "integer, 1 to 128"; a range that ends with what 32 bits hold has no end worth a word.
std::string range_of(const ParamRow& row) {
  constexpr double kLarge = 2147483647;
  switch (row.kind) {
    case ParamKind::kBool:
      return "boolean";
    case ParamKind::kIgnored:
      return "anything";
    case ParamKind::kOther:
      return "";
    case ParamKind::kNumber:
      return fmt::format("number, {} to {}", row.low, row.high);
    case ParamKind::kNumberAbove:
      return fmt::format("number, above {}, up to {}", row.low, row.high);
    case ParamKind::kInteger:
      break;
  }
  if (row.low <= -kLarge) return "integer of 32 bits";
  if (row.high >= kLarge) return fmt::format("integer, {} or more", row.low);
  return fmt::format("integer, {} to {}", row.low, row.high);
}

void add_row(std::string& out, const ParamRow& row) {
  const bool is_other = row.kind == ParamKind::kOther;
  const size_t colon = is_other ? row.text.find(": ") : std::string_view::npos;
  const std::string_view type = is_other ? row.text.substr(0, colon) : std::string_view();
  const std::string_view text =
      !is_other ? row.text : (colon == std::string_view::npos ? "" : row.text.substr(colon + 2));
  fmt::format_to(std::back_inserter(out), "| `{}` | {} | {} | {} | {} | {} |\n", row.name,
                 form_name(row.forms), is_other ? std::string(type) : range_of(row), row.fallback, row.origin,
                 text);
}

}  // namespace

std::string params_markdown() {
  std::string out =
      "| parameter | form | range | default | from | meaning |\n| --- | --- | --- | --- | --- | --- |\n";
  for (const ParamRow& row : param_table())
    if (row.kind != ParamKind::kIgnored) add_row(out, row);
  out += "\nAccepted without effect:\n\n| parameter | form | from | why |\n| --- | --- | --- | --- |\n";
  for (const ParamRow& row : param_table())
    if (row.kind == ParamKind::kIgnored)
      fmt::format_to(std::back_inserter(out), "| `{}` | {} | {} | {} |\n", row.name, form_name(row.forms),
                     row.origin, row.text);
  out +=
      "\nKnown and refused with 400 `unsupported_parameter`, but for values that ask for nothing:\n\n"
      "| parameter | form | from | accepted values | why |\n| --- | --- | --- | --- | --- |\n";
  for (const RefusedRow& row : refused_table()) {
    std::string neutral;
    for (const std::string_view value : row.neutral)
      if (!value.empty()) neutral += fmt::format("{}`{}`", neutral.empty() ? "" : ", ", value);
    fmt::format_to(std::back_inserter(out), "| `{}` | {} | {} | {} | {} |\n", row.name, form_name(row.forms),
                   row.origin, neutral.empty() ? "none" : neutral, row.instead);
  }
  return out + "| `best_of` | both | OpenAI | the value of `n` | answers are not ranked here |\n";
}

}  // namespace deepinfer::server
