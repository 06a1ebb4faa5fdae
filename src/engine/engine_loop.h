// The engine's thread: takes commands, plans, launches, waits, commits, tells.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "deepinfer/engine.h"
#include "engine/engine_metrics.h"
#include "engine/event_log.h"
#include "engine/model_runner.h"
#include "engine/scheduler.h"
#include "profile/profiler.h"

namespace deepinfer {

struct Submission {
  uint64_t request = 0;
  Clock::Time arrival;
  std::string name;
  std::vector<std::unique_ptr<Sequence>> sequences;
  OnEvent on_event;
};

struct Cancellation {
  uint64_t request = 0;
  int choice = -1;
  bool answered = false;
};

// A wish for an empty prefix cache, and for the memory behind what is unused then.
struct CacheReset {
  bool release = false;
  std::promise<std::optional<EmptiedCache>> done;  // unset: sequences run
};

// Between the threads that submit and the engine's thread. Everything is guarded by `mutex`.
struct Mailbox {
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<Submission> submissions;
  std::vector<Cancellation> cancellations;
  std::vector<CacheReset> resets;
  bool draining = false, stopping = false, stopped = false;
  bool idle = true;    // the engine's thread sleeps, or soon will
  int64_t queued = 0;  // sequences that were never scheduled, here or in the scheduler: max_queue bounds them
  int64_t submitted = 0;  // of them, here
  int64_t requests = 0;   // not ended
  uint64_t next_request = 1;
  Clock::Time heartbeat;
  EngineStats stats;  // of the last step
  std::string lost;   // why the device is gone; empty: it is there
  std::function<void(const std::string&)> on_device_lost;
};

// Owner: the engine's thread, which runs run().
class EngineLoop {
 public:
  EngineLoop(ModelRunner& runner, const EngineOptions& options, SchedulerOptions scheduling,
             const Clock& clock, Mailbox& mailbox, EngineMetrics& metrics);

  void run();  // until mailbox.stopping
  int64_t max_len() const { return max_len_; }

 private:
  enum class Choice : uint8_t { kQueued, kScheduled, kEnded };
  struct Request {
    OnEvent on_event;
    std::string name;
    RequestTimes times;
    std::vector<Choice> choices;
    int open_choices = 0;
    bool scheduled = false;
    bool scores_told = false;
    bool broken = false;  // its callback threw
  };
  struct Launched {
    uint64_t step = 0;
    int64_t when = 0;  // Profiler::now(); 0: nobody records
    Clock::Time begun;
  };
  struct Deadline {
    Clock::Time time;
    uint64_t request;
  };

  bool wait_for_work();
  void publish_stats();
  StepPlan* next_plan();
  void record_step(const StepPlan& plan, int64_t launched);
  void iterate();
  void take_commands();
  void start(Submission submission);
  void cancel(const Cancellation& cancellation);
  void reset_cache();
  void expire();
  bool launch(StepPlan& plan);
  void finish_oldest();
  void discard_launched();
  void fail_step(const StepPlan& plan, std::exception_ptr fault);
  void recover(const char* what);
  void give_up(const char* what);
  void fail_all(const Error& error);
  void shut_down();
  void end_request(uint64_t request, FinishReason reason, const Error* error);
  void report_events(const Error* error = nullptr);
  void report(const SchedulerEvent& event, const Error* error);
  void report_emissions();
  void deliver(uint64_t id, Request& request, const OutputEvent& event);
  OutputEvent event_of(const Sequence& s) const;
  void record_end(Request& request, const Sequence& s);

  ModelRunner& runner_;
  const EngineOptions& options_;
  SchedulerOptions scheduling_;
  const Clock& clock_;
  Mailbox& mailbox_;
  EngineMetrics& metrics_;
  Profiler* const profiler_;  // null: none
  EventLog event_log_;
  std::unique_ptr<Scheduler> scheduler_;
  int64_t max_len_ = 0;

  std::unordered_map<uint64_t, Request> requests_;
  std::deque<Deadline> queue_deadlines_, deadlines_;  // ascending
  std::deque<Launched> launched_;                     // steps to wait for
  std::vector<uint64_t> broken_;
  std::vector<Emission> emissions_;
  std::vector<Submission> submissions_;  // taken from the mailbox
  std::vector<Cancellation> cancellations_;
  std::vector<CacheReset> resets_;
  EngineStats stats_;
  int64_t left_queue_ = 0, ended_ = 0;  // since the mailbox was told
};

}  // namespace deepinfer
