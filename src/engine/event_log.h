// What the engine did, one JSON line per event, so that tests and people can follow it:
//   {"t":0.012,"event":"add","request":1,"choices":1,"prompt_tokens":5,"request_id":"4f1c"}
//   {"t":0.012,"event":"schedule","request":1,"choice":0,"cached_tokens":0}
//   {"t":0.013,"event":"step","id":1,"rows":1,"tokens":5,"free_blocks":31}
//   {"t":0.020,"event":"cancel","request":1}
//   {"t":0.020,"event":"finish","request":1,"choice":0,"reason":"cancelled","tokens":1}
//   {"t":0.020,"event":"release","request":1,"choice":0,"blocks":1,"free_blocks":32}
//   {"t":0.020,"event":"preempt","request":2,"choice":0,"blocks":3,"free_blocks":3}
// t: seconds since the engine's start; request_id: of the HTTP request, where there is one. Owner: the
// engine's thread.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "engine/scheduler.h"

namespace deepinfer {

const char* finish_name(FinishReason reason);  // "stop", "length", "cancelled", "error", "none"

class EventLog {
 public:
  // Appends to the file. An empty path means no log; a file that cannot be opened is a warning and no log.
  EventLog(const std::string& path, const Clock& clock);

  void add(uint64_t request, int choices, int64_t prompt_tokens, std::string_view name);
  void cancel(uint64_t request);
  void step(const StepPlan& plan, int64_t free_blocks);
  void scheduler_event(const SchedulerEvent& event);
  void flush();  // at the end of each step

 private:
  template <class... Args>
  void line(fmt::format_string<Args...> format, Args&&... args);

  const Clock& clock_;
  Clock::Time start_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_{nullptr, std::fclose};
  fmt::memory_buffer buffer_;
};

}  // namespace deepinfer
