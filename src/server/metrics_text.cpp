#include "server/metrics_text.h"

#include <fmt/format.h>

#include <cmath>
#include <iterator>

#include "engine/engine_metrics.h"

namespace deepinfer::server {
namespace {

void append_number(std::string& out, double value) {
  if (std::isnan(value)) {
    out += "NaN";
  } else if (std::isinf(value)) {
    out += value > 0 ? "+Inf" : "-Inf";
  } else if (value == std::trunc(value) && std::fabs(value) < 1e15) {
    fmt::format_to(std::back_inserter(out), "{:.1f}", value);
  } else {
    fmt::format_to(std::back_inserter(out), "{}", value);
  }
}

// The format knows three escapes; in help texts the quote stays.
void append_text(std::string& out, std::string_view text, bool quotes) {
  for (const char c : text) {
    if (c == '\\')
      out += "\\\\";
    else if (c == '\n')
      out += "\\n";
    else if (c == '"' && quotes)
      out += "\\\"";
    else
      out += c;
  }
}

}  // namespace

void MetricsText::family(std::string_view name, std::string_view type, std::string_view help) {
  name_ = prefix_;
  name_ += name;
  fmt::format_to(std::back_inserter(out_), "# HELP {} ", name_);
  append_text(out_, help, false);
  fmt::format_to(std::back_inserter(out_), "\n# TYPE {} {}\n", name_, type);
}

void MetricsText::line(std::string_view suffix, const Labels& labels, std::string_view le, double value) {
  out_ += name_;
  out_ += suffix;
  char before = '{';
  const auto label = [&](std::string_view name, std::string_view text) {
    out_ += std::exchange(before, ',');
    out_ += name;
    out_ += "=\"";
    append_text(out_, text, true);
    out_ += '"';
  };
  for (const auto& [name, text] : labels) label(name, text);
  if (!le.empty()) label("le", le);
  if (before == ',') out_ += '}';
  out_ += ' ';
  append_number(out_, value);
  out_ += '\n';
}

void MetricsText::sample(const Labels& labels, double value) {
  line("", labels, "", value);
}

// The count is the sum of the buckets that were read, so that it never contradicts them.
void MetricsText::histogram(const Labels& labels, const Histogram& histogram) {
  uint64_t below = 0;
  std::string le;
  const double sum = histogram.sum();
  for (size_t i = 0; i <= histogram.bounds().size(); ++i) {
    below += histogram.count(i);
    le.clear();
    append_number(le, i < histogram.bounds().size() ? histogram.bounds()[i] : HUGE_VAL);
    line("_bucket", labels, le, static_cast<double>(below));
  }
  line("_sum", labels, "", sum);
  line("_count", labels, "", static_cast<double>(below));
}

}  // namespace deepinfer::server
