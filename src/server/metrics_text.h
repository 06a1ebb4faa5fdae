// Prometheus' text format, version 0.0.4.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace deepinfer {
class Histogram;
}

namespace deepinfer::server {

inline constexpr std::string_view kMetricsContentType = "text/plain; version=0.0.4; charset=utf-8";

using Labels = std::vector<std::pair<std::string_view, std::string_view>>;

// Appends families one after the other. Numbers are written as Python's client writes them (1.0, not 1), so
// that what matches vLLM's lines matches these.
class MetricsText {
 public:
  // Names of the families that follow begin with it: "deepinfer:".
  void set_prefix(std::string_view prefix) { prefix_ = prefix; }

  // The head of a family; its samples follow. `type`: counter, gauge, histogram. A counter's name ends with
  // _total.
  void family(std::string_view name, std::string_view type, std::string_view help);
  void sample(const Labels& labels, double value);
  void histogram(const Labels& labels, const Histogram& histogram);

  std::string take() { return std::move(out_); }

 private:
  void line(std::string_view suffix, const Labels& labels, std::string_view le, double value);

  std::string out_;
  std::string prefix_;
  std::string name_;  // of the family, with its prefix
};

}  // namespace deepinfer::server
