#include "tune/report.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json.hpp>
#include <map>

#include "base/check.h"
#include "deepinfer/version.h"

namespace deepinfer::tune {
namespace {

namespace json = boost::json;

std::string short_key(const std::string& key) {
  return key.substr(key.find('.') + 1);
}

std::string slo_text(const Slo& slo) {
  std::vector<std::string> parts;
  if (slo.ttft > 0) parts.push_back(fmt::format("TTFT p99 {:g} s", slo.ttft));
  if (slo.itl > 0) parts.push_back(fmt::format("ITL p99 {:g} s", slo.itl));
  return parts.empty() ? "none" : fmt::format("{}", fmt::join(parts, ", "));
}

const char* slo_word(const Slo& slo, const Trial& trial) {
  if (!trial.usable()) return trial.runs.front().failure.empty() ? "stopped" : "cannot run";
  if (!slo.any()) return "-";
  return meets(slo, trial.mean()) ? "yes" : "no";
}

const char* end_text(End end) {
  switch (end) {
    case End::kConverged:
      return "nothing near it is better";
    case End::kBudget:
      return "the time was up: more --minutes may find better ones";
    default:
      return "interrupted: what was the best so far";
  }
}

std::string xml(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else
      out += c;
  }
  return out;
}

double fastest(const TuneResult& r) {
  double most = 0;
  for (const Trial& t : r.outcome.trials)
    if (t.usable()) most = std::max(most, t.mean().tokens_per_second);
  return most;
}

// The usable trials that differ from the best in one setting alone, in the order of its values; the best too.
std::vector<const Trial*> along(const TuneResult& r, size_t axis) {
  const Point& best = r.outcome.trials[*r.outcome.best].point;
  std::map<size_t, const Trial*> found;
  for (const Trial& t : r.outcome.trials) {
    Point same = t.point;
    same[axis] = best[axis];
    if (same == best && t.usable()) found[t.point[axis]] = &t;
  }
  std::vector<const Trial*> out;
  for (const auto& [value, trial] : found) out.push_back(trial);
  return out;
}

// One setting's panel, 220 high, its top at `y`.
std::string panel(const TuneResult& r, const Slo& slo, size_t axis, double most, int y) {
  constexpr int kLeft = 70, kWidth = 480, kHeight = 140;
  const std::vector<const Trial*> trials = along(r, axis);
  const double step = static_cast<double>(kWidth) / static_cast<double>(std::max<size_t>(trials.size(), 1));
  std::string out = fmt::format(
      "<text x='{}' y='{}' class='t'>{}</text><line x1='{}' y1='{}' x2='{}' y2='{}' stroke='#999'/>\n", kLeft,
      y + 18, xml(r.axes[axis].key), kLeft, y + 30 + kHeight, kLeft + kWidth, y + 30 + kHeight);
  std::string line, marks;
  for (size_t i = 0; i < trials.size(); ++i) {
    const Measurement m = trials[i]->mean();
    const double x = kLeft + step * (static_cast<double>(i) + 0.5);
    const double top = y + 30 + kHeight * (1 - m.tokens_per_second / (1.15 * most));
    const bool best = trials[i] == &r.outcome.trials[*r.outcome.best];
    line += fmt::format("{:.1f},{:.1f} ", x, top);
    marks += fmt::format(
        "<circle cx='{0:.1f}' cy='{1:.1f}' r='{2}' fill='{3}'/><text x='{0:.1f}' y='{4:.1f}' "
        "class='v'>{5:.0f}</text><text x='{0:.1f}' y='{6}' class='v'>{7}</text>\n",
        x, top, best ? 7 : 4, meets(slo, m) ? "#2a7" : "#d60", top - 10, m.tokens_per_second,
        y + 46 + kHeight, xml(r.axes[axis].values[trials[i]->point[axis]]));
  }
  return out + fmt::format("<polyline points='{}' fill='none' stroke='#888'/>\n", line) + marks;
}

json::object measurement_json(const Measurement& m) {
  return {{"tokens_per_second", m.tokens_per_second},
          {"ttft_p50", m.ttft.p50},
          {"ttft_p99", m.ttft.p99},
          {"itl_p50", m.itl.p50},
          {"itl_p99", m.itl.p99},
          {"requests", m.requests},
          {"seconds", m.seconds},
          {"complete", m.complete}};
}

// "true" and numbers as such.
json::value value_json(const std::string& text) {
  boost::system::error_code error;
  json::value value = json::parse(text, error);
  return error ? json::value(text) : value;
}

}  // namespace

std::string point_text(const std::vector<Axis>& axes, const Point& point) {
  std::vector<std::string> parts;
  for (size_t i = 0; i < axes.size(); ++i)
    parts.push_back(fmt::format("{} {}", short_key(axes[i].key), axes[i].values[point[i]]));
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string trial_text(const Trial& trial) {
  const Measurement m = trial.mean();
  if (!m.failure.empty()) return "cannot run: " + m.failure.substr(0, m.failure.find('\n'));
  const std::string text = fmt::format("{:.1f} tok/s, TTFT {:.3f} / {:.3f} s, ITL {:.4f} / {:.4f} s",
                                       m.tokens_per_second, m.ttft.p50, m.ttft.p99, m.itl.p50, m.itl.p99);
  return m.complete ? text : "stopped after " + fmt::format("{:.1f} s: {}", m.seconds, text);
}

std::string table(const TuneResult& r, const Slo& slo) {
  std::string out;
  std::vector<size_t> widths;
  for (const Axis& axis : r.axes) {
    widths.push_back(short_key(axis.key).size());
    out += fmt::format("{:>{}}  ", short_key(axis.key), widths.back());
  }
  out += fmt::format("{:>9}  {:>17}  {:>17}  {:<10}\n", "tok/s", "TTFT p50/p99 s", "ITL p50/p99 s", "SLO");
  const double most = fastest(r);
  for (size_t i = 0; i < r.outcome.trials.size(); ++i) {
    const Trial& t = r.outcome.trials[i];
    const Measurement m = t.mean();
    for (size_t a = 0; a < r.axes.size(); ++a)
      out += fmt::format("{:>{}}  ", r.axes[a].values[t.point[a]], widths[a]);
    const double share = most > 0 && t.usable() ? m.tokens_per_second / most : 0;
    out += fmt::format("{:>9.1f}  {:>8.3f}/{:<8.3f}  {:>8.4f}/{:<8.4f}  {:<10} {}{}\n", m.tokens_per_second,
                       m.ttft.p50, m.ttft.p99, m.itl.p50, m.itl.p99, slo_word(slo, t),
                       std::string(static_cast<size_t>(20 * share + 0.5), '#'),
                       r.outcome.best == i ? " best" : "");
  }
  return out;
}

std::string yaml(const TuneResult& r, const Slo& slo, const std::string& date) {
  const Trial& best = r.outcome.trials[*r.outcome.best];
  const std::string met = !slo.any()          ? ""
                          : r.outcome.slo_met ? ": met"
                                              : ": NOT met, these settings come nearest";
  std::string out = fmt::format(
      "# Made by `deepinfer tune` {} on {} for this model on this machine; `deepinfer serve --config` takes "
      "it.\n"
      "# Model: {}\n# Device: {}\n# Workload: {}; {} requests a run.\n# SLO: {}{}.\n"
      "# Measured with these settings: {}.\n",
      version(), date, r.model, r.device, r.workload, r.requests, slo_text(slo), met, trial_text(best));
  out += fmt::format("# To start from: {}: {}.\n# The search ended because {}.\n",
                     point_text(r.axes, r.outcome.trials.front().point), trial_text(r.outcome.trials.front()),
                     end_text(r.outcome.end));
  std::string section;
  for (size_t a = 0; a < r.axes.size(); ++a) {
    const Axis& axis = r.axes[a];
    const std::string of = axis.key.substr(0, axis.key.find('.'));
    if (of != section) out += fmt::format("\n{}:\n", of);
    section = of;
    std::vector<std::string> seen;
    for (const Trial* t : along(r, a))
      seen.push_back(fmt::format("{}: {:.1f}", axis.values[t->point[a]], t->mean().tokens_per_second));
    out += fmt::format("  # tok/s with {}{}\n  {}: {}\n", fmt::join(seen, ", "),
                       seen.size() == 1 ? " (the others were slower elsewhere, or not tried)" : "",
                       short_key(axis.key), axis.values[best.point[a]]);
  }
  return out;
}

std::string svg(const TuneResult& r, const Slo& slo) {
  constexpr int kPanel = 220, kTop = 70;
  const double most = std::max(fastest(r), 1e-9);
  const int height = kTop + kPanel * static_cast<int>(r.axes.size());
  std::string out = fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' width='600' height='{}' font-family='sans-serif' "
      "font-size='12'>\n<style>.v{{text-anchor:middle}}.t{{font-weight:bold}}</style>\n"
      "<rect width='600' height='{}' fill='white'/>\n"
      "<text x='20' y='24' class='t'>{} on {}</text>\n<text x='20' y='42'>{}</text>\n"
      "<text x='20' y='60'>tok/s; the largest point is the best, orange ones miss the SLO ({})</text>\n",
      height, height, xml(r.model), xml(r.device), xml(r.workload), xml(slo_text(slo)));
  for (size_t a = 0; a < r.axes.size(); ++a)
    out += panel(r, slo, a, most, kTop + kPanel * static_cast<int>(a));
  return out + "</svg>\n";
}

json::object to_json(const TuneResult& r, const Slo& slo) {
  const auto settings = [&](const Point& point) {
    json::object out;
    for (size_t a = 0; a < r.axes.size(); ++a) out[r.axes[a].key] = value_json(r.axes[a].values[point[a]]);
    return out;
  };
  json::array trials;
  for (const Trial& t : r.outcome.trials) {
    json::object line = measurement_json(t.mean());
    line["settings"] = settings(t.point);
    line["runs"] = t.runs.size();
    line["meets_slo"] = t.usable() && meets(slo, t.mean());
    line["failure"] = t.mean().failure.empty() ? json::value(nullptr) : json::value(t.mean().failure);
    trials.push_back(std::move(line));
  }
  const char* ends[] = {"converged", "budget", "interrupted"};
  return {{"version", version()},
          {"model", r.model},
          {"device", r.device},
          {"workload", r.workload},
          {"slo", {{"ttft", slo.ttft}, {"itl", slo.itl}}},
          {"slo_met", r.outcome.slo_met},
          {"end", ends[static_cast<int>(r.outcome.end)]},
          {"seconds", r.seconds},
          {"requests", r.requests},
          {"best", settings(r.outcome.trials[*r.outcome.best].point)},
          {"trials", std::move(trials)}};
}

}  // namespace deepinfer::tune
