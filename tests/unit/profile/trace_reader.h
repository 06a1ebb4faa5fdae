// Reads a trace back, as a viewer does.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace deepinfer::test {

struct TraceSpan {
  std::string name;
  std::pair<int64_t, int64_t> track;  // process, thread
  double start = 0, end = 0;          // microseconds
  boost::json::object args;
};

struct Trace {
  std::vector<TraceSpan> spans;
  std::map<std::pair<int64_t, int64_t>, std::string> names;
  std::vector<boost::json::object> counters, marks;
  boost::json::object other;

  std::vector<TraceSpan> of(const std::string& name) const {
    std::vector<TraceSpan> out;
    std::copy_if(spans.begin(), spans.end(), std::back_inserter(out),
                 [&](const TraceSpan& s) { return s.name == name; });
    return out;
  }

  std::string thread_of(const TraceSpan& span) const {
    const auto found = names.find(span.track);
    return found == names.end() ? "" : found->second;
  }
};

inline Trace read_trace(const std::filesystem::path& path) {
  std::ifstream file(path);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  Trace trace;
  const boost::json::value all = boost::json::parse(text);  // throws on what is no JSON
  trace.other = all.at("otherData").as_object();
  for (const boost::json::value& value : all.at("traceEvents").as_array()) {
    const boost::json::object& event = value.as_object();
    const std::string kind(event.at("ph").as_string());
    const std::pair track(event.at("pid").to_number<int64_t>(), event.at("tid").to_number<int64_t>());
    if (kind == "M") {
      if (event.at("name").as_string() == "thread_name")
        trace.names[track] = event.at("args").at("name").as_string().c_str();
    } else if (kind == "X") {
      TraceSpan& span = trace.spans.emplace_back();
      span.name = event.at("name").as_string().c_str();
      span.track = track;
      span.start = event.at("ts").to_number<double>();
      span.end = span.start + event.at("dur").to_number<double>();
      if (event.contains("args")) span.args = event.at("args").as_object();
    } else if (kind == "C") {
      trace.counters.push_back(event);
    } else {
      EXPECT_EQ(kind, "i");
      trace.marks.push_back(event);
    }
  }
  return trace;
}

// On each track two spans are apart, or one is inside of the other. `slack`: what rounding may move.
inline void expect_nested(const Trace& trace, double slack = 0.002) {
  std::map<std::pair<int64_t, int64_t>, std::vector<TraceSpan>> tracks;
  for (const TraceSpan& s : trace.spans) tracks[s.track].push_back(s);
  for (auto& [track, spans] : tracks) {
    std::sort(spans.begin(), spans.end(), [](const TraceSpan& a, const TraceSpan& b) {
      return a.start != b.start ? a.start < b.start : a.end > b.end;
    });
    std::vector<TraceSpan> open;
    for (const TraceSpan& s : spans) {
      while (!open.empty() && open.back().end <= s.start + slack) open.pop_back();
      if (!open.empty())
        EXPECT_LE(s.end, open.back().end + slack)
            << s.name << " reaches out of " << open.back().name << " in " << trace.thread_of(s);
      open.push_back(s);
    }
  }
}

}  // namespace deepinfer::test
