#include "engine/engine_loop.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>

#include "base/check.h"
#include "base/log.h"

namespace deepinfer {
namespace {

Clock::Time after(Clock::Time time, double seconds) {
  // Far beyond any run, and still far from overflow.
  constexpr double kForever = 1e8;
  return time + std::chrono::duration_cast<Clock::Time::duration>(
                    std::chrono::duration<double>(std::min(seconds, kForever)));
}

std::string describe(const std::exception_ptr& fault) {
  try {
    std::rethrow_exception(fault);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
}

bool out_of_memory(const std::exception_ptr& fault) {
  try {
    std::rethrow_exception(fault);
  } catch (const std::bad_alloc&) {
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

EngineLoop::EngineLoop(ModelRunner& runner, const EngineOptions& options, SchedulerOptions scheduling,
                       const Clock& clock, Mailbox& mailbox, EngineMetrics& metrics)
    : runner_(runner),
      options_(options),
      scheduling_(std::move(scheduling)),
      clock_(clock),
      mailbox_(mailbox),
      metrics_(metrics),
      profiler_(options.profiler),
      event_log_(options.event_log, clock),
      scheduler_(std::make_unique<Scheduler>(scheduling_)),
      max_len_(scheduler_->max_len()) {
  publish_stats();
}

void EngineLoop::run() {
  while (wait_for_work()) {
    try {
      iterate();
    } catch (const DeviceLost& e) {
      give_up(e.what());
    } catch (const std::exception& e) {
      recover(e.what());
    }
    event_log_.flush();
  }
  shut_down();
}

// Sleeps while there is nothing to do. False: stop.
bool EngineLoop::wait_for_work() {
  std::unique_lock lock(mailbox_.mutex);
  publish_stats();
  auto something = [&] {
    return mailbox_.stopping || !mailbox_.submissions.empty() || !mailbox_.cancellations.empty() ||
           !mailbox_.resets.empty();
  };
  if (scheduler_->empty() && !something()) {
    mailbox_.idle = true;
    const Span span(profiler_, Phase::kIdle);
    mailbox_.wake.wait(lock, something);
  }
  mailbox_.idle = false;
  mailbox_.heartbeat = clock_.now();
  if (mailbox_.stopping) return false;
  submissions_.swap(mailbox_.submissions);
  cancellations_.swap(mailbox_.cancellations);
  resets_.swap(mailbox_.resets);
  mailbox_.submitted = 0;
  return true;
}

void EngineLoop::publish_stats() {
  stats_.running = scheduler_->running();
  stats_.waiting = scheduler_->waiting();
  stats_.total_blocks = scheduler_->pool().total_blocks();
  stats_.free_blocks = scheduler_->pool().free_blocks();
  stats_.cached_blocks = scheduler_->pool().cached_blocks();
  mailbox_.stats = stats_;
  mailbox_.queued -= std::exchange(left_queue_, 0);
  mailbox_.requests -= std::exchange(ended_, 0);
}

void EngineLoop::iterate() {
  const Span round(profiler_, Phase::kLoop);
  take_commands();
  expire();
  bool launched = true;
  while (StepPlan* plan = next_plan()) {
    report_events();
    launched = launch(*plan);
    if (!launched) break;
  }
  report_events();
  if (left_queue_ > 0) {  // room in the queue is told now, not after the step
    std::lock_guard lock(mailbox_.mutex);
    mailbox_.queued -= std::exchange(left_queue_, 0);
  }
  if (scheduler_->oldest() != nullptr) {
    finish_oldest();
  } else {
    DI_CHECK(!launched || scheduler_->empty(), "{} running and {} waiting sequences, but no step",
             scheduler_->running(), scheduler_->waiting());
  }
}

StepPlan* EngineLoop::next_plan() {
  const Span span(profiler_, Phase::kSchedule, scheduler_->running(), scheduler_->waiting());
  return scheduler_->plan();
}

void EngineLoop::take_commands() {
  if (submissions_.empty() && cancellations_.empty() && resets_.empty()) return;
  const Span span(profiler_, Phase::kRequests, static_cast<int32_t>(submissions_.size()),
                  static_cast<int32_t>(cancellations_.size()));
  for (Submission& submission : submissions_) start(std::move(submission));
  submissions_.clear();
  for (const Cancellation& cancellation : cancellations_) cancel(cancellation);
  cancellations_.clear();
  if (!resets_.empty()) reset_cache();
}

void EngineLoop::start(Submission submission) {
  Request& request = requests_[submission.request];
  request.on_event = std::move(submission.on_event);
  request.name = std::move(submission.name);
  request.times = EngineMetrics::arrived(submission.arrival, submission.sequences.size());
  request.open_choices = static_cast<int>(submission.sequences.size());
  request.choices.assign(submission.sequences.size(), Choice::kQueued);
  event_log_.add(submission.request, request.open_choices, submission.sequences.front()->prompt_len,
                 request.name);
  if (options_.queue_timeout > 0) {
    queue_deadlines_.push_back({after(submission.arrival, options_.queue_timeout), submission.request});
  }
  if (options_.timeout > 0) {
    deadlines_.push_back({after(submission.arrival, options_.timeout), submission.request});
  }
  for (auto& sequence : submission.sequences) scheduler_->add(std::move(sequence));
}

void EngineLoop::cancel(const Cancellation& cancellation) {
  if (!requests_.contains(cancellation.request)) return;
  event_log_.cancel(cancellation.request);
  if (cancellation.choice < 0) {
    end_request(cancellation.request, FinishReason::kCancelled, nullptr);
  } else if (cancellation.choice < kMaxChoices) {
    const uint64_t sequence = sequence_id(cancellation.request, cancellation.choice);
    auto& choices = requests_.at(cancellation.request).times.choices;
    if (static_cast<size_t>(cancellation.choice) < choices.size())
      choices[cancellation.choice].stopped = cancellation.answered;
    scheduler_->end_sequence(sequence, FinishReason::kCancelled);
    report_events();
  }
}

void EngineLoop::reset_cache() {
  while (scheduler_->oldest() != nullptr && requests_.empty()) finish_oldest();
  std::optional<EmptiedCache> emptied;
  if (scheduler_->empty()) {
    emptied.emplace(EmptiedCache{.blocks = scheduler_->pool().cached_blocks()});
    scheduler_->reset_prefix_cache();
    const bool release = std::any_of(resets_.begin(), resets_.end(), [](auto& r) { return r.release; });
    if (release) emptied->bytes = runner_.release_unused();
    const std::lock_guard lock(mailbox_.mutex);
    publish_stats();
  }
  for (CacheReset& reset : resets_) reset.done.set_value(emptied);
  resets_.clear();
}

// Deadlines come in the order of arrival, so only the front of each queue is looked at.
void EngineLoop::expire() {
  if (queue_deadlines_.empty() && deadlines_.empty()) return;
  const Clock::Time now = clock_.now();
  for (; !queue_deadlines_.empty(); queue_deadlines_.pop_front()) {
    auto it = requests_.find(queue_deadlines_.front().request);
    if (it == requests_.end() || it->second.scheduled) continue;
    if (queue_deadlines_.front().time > now) break;
    Error error =
        make_error(ErrorCode::kQueueTimeout,
                   "the request waited longer than server.queue_timeout ({} s) in the queue: try again "
                   "later",
                   options_.queue_timeout);
    end_request(it->first, FinishReason::kError, &error);
  }
  for (; !deadlines_.empty(); deadlines_.pop_front()) {
    auto it = requests_.find(deadlines_.front().request);
    if (it == requests_.end()) continue;
    if (deadlines_.front().time > now) break;
    Error error =
        make_error(ErrorCode::kTimeout,
                   "the request took longer than server.timeout ({} s): ask for fewer tokens, or try "
                   "again later",
                   options_.timeout);
    end_request(it->first, FinishReason::kError, &error);
  }
}

bool EngineLoop::launch(StepPlan& plan) {
  event_log_.step(plan, scheduler_->pool().free_blocks());
  std::exception_ptr fault;
  const Clock::Time begun = clock_.now();
  try {
    const auto step = static_cast<int32_t>(plan.step.id), rows = static_cast<int32_t>(plan.rows.size());
    const int64_t when = profiler_ != nullptr && profiler_->recording() ? Profiler::now() : 0;
    {
      const Span span(profiler_, Phase::kForward, step, rows, static_cast<int32_t>(plan.tokens));
      runner_.launch_forward(plan.step);
    }
    {
      const Span span(profiler_, Phase::kSampling, step, rows);
      runner_.launch_sample(plan.step);
    }
    launched_.push_back({plan.step.id, when, begun});
    return true;
  } catch (const DeviceLost&) {
    throw;
  } catch (...) {
    fault = std::current_exception();
  }
  // The steps before this one are good.
  const uint64_t id = plan.step.id;
  while (scheduler_->oldest() != nullptr && scheduler_->oldest()->step.id != id) finish_oldest();
  if (scheduler_->oldest() != nullptr) fail_step(plan, fault);
  return false;
}

void EngineLoop::finish_oldest() {
  StepPlan& plan = *scheduler_->oldest();
  StepOutput output;
  const Launched launched = launched_.front();
  launched_.pop_front();
  const auto step = static_cast<int32_t>(plan.step.id), rows = static_cast<int32_t>(plan.rows.size());
  try {
    const Span span(profiler_, Phase::kWait, step);
    output = runner_.wait(plan.step.id);
  } catch (const DeviceLost&) {
    throw;
  } catch (...) {
    fail_step(plan, std::current_exception());
    return;
  }
  metrics_.iteration_tokens.observe(static_cast<double>(plan.tokens));
  if (plan.decodes_only && launched_.empty())
    scheduler_->observe_cost(plan.tokens,
                             std::chrono::duration<double>(clock_.now() - launched.begun).count());
  {
    const Span span(profiler_, Phase::kCommit, step, rows);
    const DraftCounts before = scheduler_->drafts();
    scheduler_->commit(plan, output, emissions_);
    metrics_.drafts.add(scheduler_->drafts().drafts - before.drafts);
    metrics_.draft_tokens.add(scheduler_->drafts().tokens - before.tokens);
    metrics_.accepted_draft_tokens.add(scheduler_->drafts().accepted - before.accepted);
  }
  ++stats_.steps;
  if (launched.when != 0) record_step(plan, launched.when);
  const Span span(profiler_, Phase::kDeliver, step, static_cast<int32_t>(emissions_.size()));
  report_emissions();
  report_events();
}

// The whole of a step, and how full the engine is after it.
void EngineLoop::record_step(const StepPlan& plan, int64_t launched) {
  const int64_t now = Profiler::now();
  profiler_->record(Phase::kStep, launched, now,
                    {static_cast<int32_t>(plan.step.id), static_cast<int32_t>(plan.rows.size()),
                     static_cast<int32_t>(plan.tokens)});
  profiler_->record(
      Phase::kCounters, now, now,
      {scheduler_->running(), scheduler_->waiting(), static_cast<int32_t>(scheduler_->pool().free_blocks())});
}

// Steps that stand on a failed one are of no use.
void EngineLoop::discard_launched() {
  while (!launched_.empty()) {
    const uint64_t id = launched_.front().step;
    launched_.pop_front();
    try {
      (void)runner_.wait(id);
    } catch (const DeviceLost&) {
      launched_.clear();
      throw;
    } catch (const std::exception& e) {
      log::warn("step {} after a failed one: {}", id, e.what());
    }
  }
}

void EngineLoop::fail_step(const StepPlan& plan, std::exception_ptr fault) {
  const bool memory = out_of_memory(fault);
  log::error("step {} failed: {}", plan.step.id, describe(fault));
  const Sequence* newest = nullptr;
  std::vector<uint64_t> victims;
  for (const PlannedRow& row : plan.rows) {
    const Sequence& s = *row.sequence;
    if (s.state == Sequence::State::kFinished) continue;
    if (!memory) victims.push_back(s.id);
    if (newest == nullptr || newest->before(s)) newest = &s;
  }
  if (memory && newest != nullptr) victims.push_back(newest->id);
  discard_launched();
  scheduler_->rollback();
  Error error{
      ErrorCode::kInternal, "an internal error ended this request: the server's log has the details", {}};
  if (memory) {
    scheduler_->shrink_budget();
    error = {
        ErrorCode::kMemory, "the device ran out of memory: try again later, or with a shorter prompt", {}};
  }
  for (uint64_t id : victims) scheduler_->end_sequence(id, FinishReason::kError);
  report_events(&error);
}

// A broken invariant: nothing that the scheduler holds can be trusted. All requests fail and it starts
// afresh.
void EngineLoop::recover(const char* what) {
  log::error("the engine failed and starts afresh: {}", what);
  try {
    discard_launched();
  } catch (const DeviceLost& e) {
    return give_up(e.what());
  }
  fail_all(
      {ErrorCode::kInternal, "an internal error ended this request: the server's log has the details", {}});
}

// Nothing can run any more: all requests fail, and later ones are refused.
void EngineLoop::give_up(const char* what) {
  log::critical("the device is lost: {}", what);
  launched_.clear();
  std::function<void(const std::string&)> tell;
  {
    std::lock_guard lock(mailbox_.mutex);
    if (mailbox_.lost.empty()) tell = mailbox_.on_device_lost;
    mailbox_.lost = what;
  }
  fail_all({ErrorCode::kMemory, "the server's GPU failed: the server has to be started again", {}});
  if (tell) tell(what);
}

void EngineLoop::fail_all(const Error& error) {
  emissions_.clear();
  scheduler_ = std::make_unique<Scheduler>(scheduling_);
  queue_deadlines_.clear();
  deadlines_.clear();
  broken_.clear();
  for (auto& [id, request] : requests_) {
    for (int choice = 0; choice < static_cast<int>(request.choices.size()); ++choice) {
      if (request.choices[choice] == Choice::kEnded) continue;
      left_queue_ += request.choices[choice] == Choice::kQueued;
      if (!request.times.choices[choice].ended) metrics_.count(Ending::kError);
      OutputEvent event{.request = id, .choice = choice, .finish = FinishReason::kError, .error = &error};
      deliver(id, request, event);
    }
    ++ended_;
  }
  // Those that were taken from the mailbox, but not started.
  for (Submission& submission : submissions_) {
    Request request{.on_event = std::move(submission.on_event)};
    for (const auto& s : submission.sequences) {
      ++left_queue_;
      metrics_.count(Ending::kError);
      OutputEvent event{
          .request = s->request, .choice = s->choice, .finish = FinishReason::kError, .error = &error};
      deliver(s->request, request, event);
    }
    ended_ += submission.sequences.empty() ? 0 : 1;
  }
  submissions_.clear();
  requests_.clear();
  broken_.clear();
  for (CacheReset& reset : resets_) reset.done.set_value(std::nullopt);
  resets_.clear();
}

void EngineLoop::shut_down() {
  discard_launched();
  scheduler_->rollback();
  while (!requests_.empty()) end_request(requests_.begin()->first, FinishReason::kCancelled, nullptr);
  event_log_.flush();
  std::vector<Submission> late;
  {
    std::lock_guard lock(mailbox_.mutex);
    late.swap(mailbox_.submissions);
    resets_.swap(mailbox_.resets);
    mailbox_.stopped = true;
    mailbox_.idle = true;
    mailbox_.queued = mailbox_.submitted = 0;
    mailbox_.requests = ended_ = 0;
    left_queue_ = 0;
    publish_stats();
  }
  for (Submission& submission : late) {
    for (const auto& s : submission.sequences) {
      metrics_.count(Ending::kAbort);
      Request request{.on_event = submission.on_event};
      deliver(s->request, request,
              {.request = s->request, .choice = s->choice, .finish = FinishReason::kCancelled});
    }
  }
  for (auto& reset : resets_) reset.done.set_value(std::nullopt);
  resets_.clear();
}

void EngineLoop::end_request(uint64_t request, FinishReason reason, const Error* error) {
  scheduler_->end_request(request, reason);
  report_events(error);
}

void EngineLoop::report_events(const Error* error) {
  do {
    for (const SchedulerEvent& event : scheduler_->events()) report(event, error);
    scheduler_->clear_events();
    error = nullptr;
    // Only now: ending a request makes events.
    for (uint64_t request : broken_) scheduler_->end_request(request, FinishReason::kCancelled);
    broken_.clear();
  } while (!scheduler_->events().empty());
}

void EngineLoop::report(const SchedulerEvent& event, const Error* error) {
  event_log_.scheduler_event(event);
  const Sequence& s = *event.sequence;
  if (event.kind == SchedulerEvent::Kind::kPreempted) {
    ++stats_.preemptions;
    metrics_.preemptions.add(1);
  }
  const bool scheduled = event.kind == SchedulerEvent::Kind::kScheduled && event.first;
  const bool finished = event.kind == SchedulerEvent::Kind::kFinished;
  auto it = requests_.find(s.request);
  if ((!scheduled && !finished) || it == requests_.end()) return;
  Request& request = it->second;
  Choice& choice = request.choices[s.choice];
  OutputEvent out = event_of(s);
  if (choice == Choice::kQueued) ++left_queue_;
  if (scheduled) {
    stats_.prompt_tokens += static_cast<uint64_t>(s.prompt_len);
    stats_.cached_tokens += static_cast<uint64_t>(s.cached_tokens);
    choice = Choice::kScheduled;
    metrics_.scheduled(request.times, s, options_.enable_prefix_caching && s.params().prompt_logprobs < 0,
                       clock_.now());
    request.scheduled = true;
    out.scheduled = true;
    deliver(s.request, request, out);
    return;
  }
  choice = Choice::kEnded;
  record_end(request, s);
  if (s.finish == FinishReason::kCancelled || s.finish == FinishReason::kError) {
    // Those that ended by a token were told with it.
    out.finish = s.finish;
    out.error = error;
    deliver(s.request, request, out);
  }
  if (--request.open_choices == 0) {
    requests_.erase(it);
    ++ended_;
  }
}

void EngineLoop::report_emissions() {
  const Clock::Time now = clock_.now();
  for (const Emission& emission : emissions_) {
    const Sequence& s = *emission.sequence;
    stats_.generated_tokens += emission.tokens.size();
    auto it = requests_.find(s.request);
    if (it == requests_.end()) continue;
    metrics_.emitted(it->second.times, s, emission.tokens.size(), now);
    if (emission.finish != FinishReason::kNone) record_end(it->second, s);
    OutputEvent out = event_of(s);
    out.tokens = emission.tokens;
    out.finish = emission.finish;
    out.stop_token = s.stop_token;
    if (s.choice == 0 && s.params().prompt_logprobs >= 0 && !std::exchange(it->second.scores_told, true))
      out.prompt_logprobs = s.prompt_scores;
    deliver(s.request, it->second, out);
  }
  emissions_.clear();
}

// Before the end is told: who has the answer finds it counted.
void EngineLoop::record_end(Request& request, const Sequence& s) {
  Ending ending = Ending::kError;
  if (s.finish == FinishReason::kStop) ending = Ending::kStop;
  if (s.finish == FinishReason::kLength) ending = Ending::kLength;
  if (s.finish == FinishReason::kCancelled)
    ending = request.times.choices[s.choice].stopped ? Ending::kStop : Ending::kAbort;
  metrics_.ended(request.times, s, ending, clock_.now());
}

OutputEvent EngineLoop::event_of(const Sequence& s) const {
  return {.request = s.request,
          .choice = s.choice,
          .prompt_tokens = static_cast<int>(s.prompt_len),
          .cached_tokens = static_cast<int>(s.cached_tokens)};
}

void EngineLoop::deliver(uint64_t id, Request& request, const OutputEvent& event) {
  if (!request.on_event) return;
  try {
    request.on_event(event);
    return;
  } catch (const std::exception& e) {
    log::error("the callback of request {} {} threw, the request is cancelled: {}", id, request.name,
               e.what());
  } catch (...) {
    log::error("the callback of request {} {} threw, the request is cancelled", id, request.name);
  }
  if (!std::exchange(request.broken, true)) broken_.push_back(id);
}

}  // namespace deepinfer
