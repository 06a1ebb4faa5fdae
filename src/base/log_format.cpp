#include "base/log_format.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <ctime>
#include <iterator>

namespace deepinfer {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

struct Character {
  size_t bytes = 1;
  char32_t code = 0xfffd;
  bool valid = false;
};

// The first character of `text`, which is not empty. Refuses overlong forms, surrogates and what lies above
// U+10FFFF.
Character first_character(std::string_view text) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return {1, lead, true};
  const size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < bytes) return {};
  char32_t code = lead & (0x7fu >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((at(i) & 0xc0) != 0x80) return {};
    code = (code << 6) | (at(i) & 0x3f);
  }
  constexpr char32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kLeast[bytes] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return {};
  return {bytes, code, true};
}

// C0, DEL, C1, and the separators that some readers of lines take for an end of line.
bool is_control(char32_t code) {
  return code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x2028 || code == 0x2029;
}

template <class Escape>
void append_characters(std::string& out, std::string_view value, Escape escape) {
  while (!value.empty()) {
    const Character c = first_character(value);
    if (!c.valid)
      out += kReplacement;
    else if (!escape(c.code))
      out += value.substr(0, c.bytes);
    value.remove_prefix(c.bytes);
  }
}

const char* level_name(spdlog::level::level_enum level) {
  constexpr const char* kNames[] = {"trace", "debug", "info", "warning", "error", "critical", "off"};
  return kNames[level];
}

void append(spdlog::memory_buf_t& out, std::string_view text) {
  out.append(text.data(), text.data() + text.size());
}

}  // namespace

void append_json_string(std::string& out, std::string_view value) {
  out += '"';
  append_characters(out, value, [&](char32_t code) {
    if (code == '"' || code == '\\')
      (out += '\\') += static_cast<char>(code);
    else if (is_control(code))
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<uint32_t>(code));
    else
      return false;
    return true;
  });
  out += '"';
}

void append_escaped(std::string& out, std::string_view value) {
  append_characters(out, value, [&](char32_t code) {
    if (!is_control(code)) return false;
    if (code == '\n')
      out += "\\n";
    else if (code == '\r')
      out += "\\r";
    else if (code == '\t')
      out += "\\t";
    else if (code < 0x80)
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<uint32_t>(code));
    else
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<uint32_t>(code));
    return true;
  });
}

LogFields& LogFields::add(std::string_view name, std::string_view value) {
  fmt::format_to(std::back_inserter(json_), ",\"{}\":", name);
  append_json_string(json_, value);
  fmt::format_to(std::back_inserter(text_), " {}=", name);
  const bool plain = !value.empty() && value.find_first_of(" \"=\\") == std::string_view::npos;
  if (plain)
    append_escaped(text_, value);
  else
    append_json_string(text_, value);
  return *this;
}

LogFields& LogFields::add(std::string_view name, int64_t value) {
  fmt::format_to(std::back_inserter(json_), ",\"{}\":{}", name, value);
  fmt::format_to(std::back_inserter(text_), " {}={}", name, value);
  return *this;
}

LogFields& LogFields::add(std::string_view name, double value) {
  const std::string text = std::isfinite(value) ? fmt::format("{:.6f}", value) : "null";
  fmt::format_to(std::back_inserter(json_), ",\"{}\":{}", name, text);
  fmt::format_to(std::back_inserter(text_), " {}={}", name, text);
  return *this;
}

LogFields& LogFields::add(const LogFields& others) {
  text_ += others.text_;
  json_ += others.json_;
  return *this;
}

void LineFormatter::format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) {
  using std::chrono::milliseconds;
  const auto since = message.time.time_since_epoch();
  const auto ms = std::chrono::duration_cast<milliseconds>(since).count() % 1000;
  const std::time_t time = spdlog::log_clock::to_time_t(message.time);
  const std::string_view payload(message.payload.data(), message.payload.size());
  std::string text;
  if (format_ == LogFormat::kJson) {
    append_json_string(text, payload);
    fmt::format_to(std::back_inserter(out),
                   R"({{"time":"{:%Y-%m-%dT%H:%M:%S}.{:03}Z","level":"{}","message":)", fmt::gmtime(time), ms,
                   level_name(message.level));
    append(out, text);
    if (message.source.filename != nullptr) append(out, message.source.filename);
    append(out, "}\n");
    return;
  }
  append_escaped(text, payload);
  fmt::format_to(std::back_inserter(out), "{:%Y-%m-%d %H:%M:%S}.{:03} ", fmt::localtime(time), ms);
  message.color_range_start = out.size();
  append(out, level_name(message.level));
  message.color_range_end = out.size();
  append(out, " ");
  append(out, text);
  if (message.source.funcname != nullptr) append(out, message.source.funcname);
  append(out, "\n");
}

std::unique_ptr<spdlog::formatter> LineFormatter::clone() const {
  return std::make_unique<LineFormatter>(format_);
}

}  // namespace deepinfer
