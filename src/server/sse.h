// Server-sent events: one "data:" line and an empty one.
#pragma once

#include <string>
#include <string_view>

namespace deepinfer::server {

inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";
inline constexpr std::string_view kSsePing = ": ping\n\n";  // a comment: clients skip it

// `data` is JSON and so has no line ends.
inline std::string sse_event(std::string_view data) {
  std::string event;
  event.reserve(data.size() + 8);
  event.append("data: ").append(data).append("\n\n");
  return event;
}

}  // namespace deepinfer::server
