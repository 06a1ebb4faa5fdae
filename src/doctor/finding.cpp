#include "doctor/finding.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <iterator>
#include <string_view>
#include <utility>

namespace deepinfer::doctor {

namespace json = boost::json;

namespace {

constexpr size_t kColumns = 110;  // of a line of text

std::string_view name_of(Level level) {
  return level == Level::kOk ? "ok" : level == Level::kWarning ? "warning" : "problem";
}

// Breaks between words; what follows the first line is indented.
std::string wrapped(std::string_view text, size_t indent) {
  std::string out;
  size_t column = indent;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find_first_of(" \n", at), text.size());
    const std::string_view word = text.substr(at, end - at);
    if (column > indent && column + 1 + word.size() > kColumns) {
      out += '\n' + std::string(indent, ' ');
      column = indent;
    }
    if (column > indent) out += ' ', ++column;
    out += word;
    column += word.size();
    if (end < text.size() && text[end] == '\n') {
      out += '\n' + std::string(indent, ' ');
      column = indent;
    }
    at = end + 1;
  }
  return out;
}

}  // namespace

Finding ok(std::string topic, std::string text) {
  return {Level::kOk, std::move(topic), std::move(text), {}};
}
Finding warning(std::string topic, std::string text, std::string command) {
  return {Level::kWarning, std::move(topic), std::move(text), std::move(command)};
}
Finding problem(std::string topic, std::string text, std::string command) {
  return {Level::kProblem, std::move(topic), std::move(text), std::move(command)};
}

int count(std::span<const Finding> findings, Level level) {
  return static_cast<int>(std::count_if(findings.begin(), findings.end(),
                                        [level](const Finding& f) { return f.level == level; }));
}

std::string findings_text(std::span<const Finding> findings) {
  size_t width = 0;
  for (const Finding& f : findings) width = std::max(width, f.topic.size());
  const size_t indent = 9 + width + 2;
  std::string out;
  for (const Finding& f : findings) {
    fmt::format_to(std::back_inserter(out), "{:<7}  {:<{}}  {}\n", name_of(f.level), f.topic, width,
                   wrapped(f.text, indent));
    if (!f.command.empty()) out += std::string(indent, ' ') + "-> " + f.command + "\n";
  }
  const auto counted = [](int n, const char* what) {
    return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
  };
  return out + counted(count(findings, Level::kProblem), "problem") + ", " +
         counted(count(findings, Level::kWarning), "warning") + "\n";
}

std::string findings_json(std::span<const Finding> findings) {
  json::array all;
  for (const Finding& f : findings)
    all.push_back(
        json::object{{"level", name_of(f.level)},
                     {"topic", f.topic},
                     {"text", f.text},
                     {"command", f.command.empty() ? json::value(nullptr) : json::value(f.command)}});
  return json::serialize(json::object{{"problems", count(findings, Level::kProblem)},
                                      {"warnings", count(findings, Level::kWarning)},
                                      {"findings", std::move(all)}});
}

std::string size_text(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 1024 ? fmt::format("{:.0f} MiB", mib) : fmt::format("{:.1f} GiB", mib / 1024);
}

}  // namespace deepinfer::doctor
