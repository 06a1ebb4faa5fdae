#include "tune/load_run.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/queue.h"

namespace deepinfer::tune {
namespace {

using Clock = std::chrono::steady_clock;

struct News {
  size_t request = 0;
  size_t tokens = 0;
  Clock::time_point when;
  bool finished = false;
  std::string error;
};

struct Request {
  Clock::time_point sent, last;
  bool began = false;
};

double between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

class Run {
 public:
  Run(Engine& engine, const Workload& workload, const RunLimits& limits)
      : engine_(engine), workload_(workload), limits_(limits) {}

  Result<Measurement> go(const std::function<bool()>& interrupted) {
    Result<Measurement> out = loop(interrupted);
    if (waiting_ > 0) engine_.stop();  // events of what was submitted need the queue
    return out;
  }

 private:
  Result<Measurement> loop(const std::function<bool()>& interrupted) {
    start_ = end_ = Clock::now();
    for (int i = 0; i < workload_.concurrency() && more(); ++i) DI_TRY(send());
    while (waiting_ > 0) {
      const std::optional<News> news = queue_.pop_for(std::chrono::milliseconds(20));
      if (interrupted()) return make_error(ErrorCode::kCancelled, "stopped");
      if (between(start_, Clock::now()) > limits_.seconds) return measured(false);
      if (!news) continue;
      DI_TRY(take(*news));
    }
    return measured(true);
  }

  bool more() const {
    if (limits_.requests) return sent_.size() < static_cast<size_t>(*limits_.requests);
    return sent_.size() < static_cast<size_t>(workload_.concurrency()) ||
           between(start_, Clock::now()) < limits_.send_seconds;
  }

  Result<void> send() {
    const size_t index = sent_.size();
    const Clock::time_point now = Clock::now();
    sent_.push_back({now, now});
    auto on_event = [this, index](const OutputEvent& e) {
      queue_.push({index, e.tokens.size(), Clock::now(), e.finish != FinishReason::kNone,
                   e.error != nullptr ? e.error->message : ""});
    };
    ++waiting_;
    auto id = engine_.submit(workload_.request(index), on_event);
    if (id) return {};
    --waiting_;
    return std::move(id).error();
  }

  Result<void> take(const News& news) {
    if (!news.error.empty()) return make_error(ErrorCode::kMemory, "a request failed: {}", news.error);
    Request& request = sent_[news.request];
    if (news.tokens > 0) {
      // The first requests came all at once, as they would not in daily life.
      const bool counts = !workload_.steady() || news.request >= static_cast<size_t>(workload_.concurrency());
      const auto count = static_cast<double>(news.tokens);
      auto& latencies = counts ? latencies_ : first_latencies_;
      if (request.began)
        latencies.itl.insert(latencies.itl.end(), news.tokens, between(request.last, news.when) / count);
      else
        latencies.ttft.push_back(between(request.sent, news.when));
      request.began = true;
      request.last = news.when;
      tokens_ += count;
      end_ = news.when;
    }
    if (!news.finished) return {};
    --waiting_;
    ++finished_;
    return more() ? send() : Result<void>();
  }

  Measurement measured(bool complete) {
    Measurement m{.requests = finished_, .complete = complete};
    m.seconds = between(start_, complete ? end_ : Clock::now());
    m.tokens_per_second = m.seconds > 0 ? tokens_ / m.seconds : 0;
    Latencies& l = latencies_;
    // A run so short that most requests were first ones has too few others to judge by.
    if (l.ttft.size() < first_latencies_.ttft.size() / 2) {
      l.ttft.insert(l.ttft.end(), first_latencies_.ttft.begin(), first_latencies_.ttft.end());
      l.itl.insert(l.itl.end(), first_latencies_.itl.begin(), first_latencies_.itl.end());
    }
    m.ttft = percentiles(std::move(l.ttft));
    m.itl = percentiles(std::move(l.itl));
    return m;
  }

  struct Latencies {
    std::vector<double> ttft, itl;
  };

  Engine& engine_;
  const Workload& workload_;
  const RunLimits& limits_;
  Queue<News> queue_;
  Clock::time_point start_, end_;
  std::vector<Request> sent_;
  Latencies latencies_, first_latencies_;
  int waiting_ = 0, finished_ = 0;
  double tokens_ = 0;
};

}  // namespace

Percentiles percentiles(std::vector<double> values) {
  if (values.empty()) return {};
  const auto at = [&](double share) {
    const auto i = static_cast<ptrdiff_t>(share * static_cast<double>(values.size() - 1) + 0.5);
    std::nth_element(values.begin(), values.begin() + i, values.end());
    return values[static_cast<size_t>(i)];
  };
  const double p50 = at(0.5);
  return {p50, at(0.99)};
}

Result<Measurement> run_workload(Engine& engine, const Workload& workload, const RunLimits& limits,
                                 const std::function<bool()>& interrupted) {
  return Run(engine, workload, limits).go(interrupted);
}

}  // namespace deepinfer::tune
