// How a line of the log looks: text for people, or one JSON object for machines.
//
//   2026-11-22 18:27:01.123 info  the engine is ready request_id=4f1c
//   {"time":"2026-11-22T18:27:01.123Z","level":"info","message":"the engine is ready","request_id":"4f1c"}
//
// Whatever a client sent, a message stays on its line and cannot command a terminal: control characters are
// escaped, and bytes that are no UTF-8 become U+FFFD.
#pragma once

#include <spdlog/formatter.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace deepinfer {

enum class LogFormat : uint8_t { kText, kJson };

// What is known besides the message, in order. Values are escaped, names are not.
class LogFields {
 public:
  LogFields& add(std::string_view name, std::string_view value);
  LogFields& add(std::string_view name, int64_t value);
  LogFields& add(std::string_view name, double value);  // seconds and the like: six decimals
  LogFields& add(const LogFields& others);

  // Both forms, each with its leading separator: ` id=4f1c ms=2` and `,"id":"4f1c","ms":2`.
  const std::string& text() const { return text_; }
  const std::string& json() const { return json_; }

 private:
  std::string text_, json_;
};

// Appends `value` with its quotes.
void append_json_string(std::string& out, std::string_view value);
// Appends `value` on one line: control characters as \n, \t, \x1b, \u0085.
void append_escaped(std::string& out, std::string_view value);

// Fields travel in the source location of a message (its file: the JSON form, its function: the text form),
// which this log has no other use for: spdlog hands nothing else from the caller to the formatter.
class LineFormatter final : public spdlog::formatter {
 public:
  explicit LineFormatter(LogFormat format) : format_(format) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override;
  std::unique_ptr<spdlog::formatter> clone() const override;

 private:
  LogFormat format_;
};

}  // namespace deepinfer
