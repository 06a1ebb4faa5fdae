// Escapes of string literals in templates, and of strings in what repr, tojson and escape print.
#pragma once

#include <string>
#include <string_view>

#include "text/jinja_text.h"

namespace deepinfer::jinja {

// The inside of a literal, with Python's escapes. Returns what is wrong with it, or null.
const char* unescape(std::string_view literal, std::string& out);

void append_repr(TextBuilder& out, const Text& text);                     // 'it''s' as Python shows it
void append_json(TextBuilder& out, const Text& text, bool ensure_ascii);  // with the quotes
void append_html(TextBuilder& out, const Text& text);                     // & < > ' " as entities

}  // namespace deepinfer::jinja
