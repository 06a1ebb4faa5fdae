#include "engine/event_log.h"

#include <cerrno>
#include <iterator>
#include <system_error>

#include "base/log.h"
#include "base/log_format.h"

namespace deepinfer {

const char* finish_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
    case FinishReason::kNone:
      break;
  }
  return "none";
}

EventLog::EventLog(const std::string& path, const Clock& clock) : clock_(clock), start_(clock.now()) {
  if (path.empty()) return;
  file_.reset(std::fopen(path.c_str(), "ae"));
  if (!file_) {
    log::warn("server.event_log: cannot write {}: {}; going on without", path,
              std::generic_category().message(errno));
  }
}

template <class... Args>
void EventLog::line(fmt::format_string<Args...> format, Args&&... args) {
  if (!file_) return;
  auto out = std::back_inserter(buffer_);
  fmt::format_to(out, "{{\"t\":{:.6f},", std::chrono::duration<double>(clock_.now() - start_).count());
  fmt::format_to(out, format, std::forward<Args>(args)...);
  fmt::format_to(out, "}}\n");
}

void EventLog::add(uint64_t request, int choices, int64_t prompt_tokens, std::string_view name) {
  std::string id;
  if (!name.empty()) append_json_string(id.append(R"(,"request_id":)"), name);
  line(R"("event":"add","request":{},"choices":{},"prompt_tokens":{}{})", request, choices, prompt_tokens,
       id);
}

void EventLog::cancel(uint64_t request) {
  line(R"("event":"cancel","request":{})", request);
}

void EventLog::step(const StepPlan& plan, int64_t free_blocks) {
  line(R"("event":"step","id":{},"rows":{},"tokens":{},"free_blocks":{})", plan.step.id, plan.rows.size(),
       plan.tokens, free_blocks);
}

void EventLog::scheduler_event(const SchedulerEvent& event) {
  const Sequence& s = *event.sequence;
  switch (event.kind) {
    case SchedulerEvent::Kind::kScheduled:
      line(R"("event":"schedule","request":{},"choice":{},"cached_tokens":{})", s.request, s.choice,
           event.cached_tokens);
      break;
    case SchedulerEvent::Kind::kPreempted:
      line(R"("event":"preempt","request":{},"choice":{},"blocks":{},"free_blocks":{})", s.request, s.choice,
           event.blocks, event.free_blocks);
      break;
    case SchedulerEvent::Kind::kFinished:
      line(R"("event":"finish","request":{},"choice":{},"reason":"{}","tokens":{})", s.request, s.choice,
           finish_name(s.finish), s.output_len());
      break;
    case SchedulerEvent::Kind::kReleased:
      line(R"("event":"release","request":{},"choice":{},"blocks":{},"free_blocks":{})", s.request, s.choice,
           event.blocks, event.free_blocks);
      break;
  }
}

void EventLog::flush() {
  if (buffer_.size() == 0) return;
  size_t written = std::fwrite(buffer_.data(), 1, buffer_.size(), file_.get());
  if (written != buffer_.size() || std::fflush(file_.get()) != 0) {
    log::warn("server.event_log: {}; no more events are written", std::generic_category().message(errno));
    file_.reset();
  }
  buffer_.clear();
}

}  // namespace deepinfer
