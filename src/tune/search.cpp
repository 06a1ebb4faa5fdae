#include "tune/search.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace deepinfer::tune {
namespace {

// Two runs of the same settings differ by about so much.
constexpr double kNoise = 0.02;
// A run that takes so much longer than the best one's is stopped.
constexpr double kPatience = 1.25;
constexpr size_t kRunsOfBest = 2;

class Search {
 public:
  Search(const std::vector<Axis>& axes, const Slo& slo, double budget, const SearchHooks& hooks)
      : axes_(axes), slo_(slo), budget_(budget), hooks_(hooks) {}

  Result<Outcome> run() {
    Point start;
    for (const Axis& axis : axes_) start.push_back(axis.start);
    DI_TRY(measure(start));
    if (!ended_) DI_TRY(check_start());
    for (bool changed = true; changed && !ended_;) {
      changed = false;
      for (size_t axis = 0; axis < axes_.size() && !ended_; ++axis) {
        DI_ASSIGN(const bool moved, climb(axis));
        changed |= moved;
      }
    }
    DI_TRY(confirm());
    out_.best = best();
    // What one knows is not given up for less than noise.
    if (out_.best && out_.trials.front().usable() &&
        !better(out_.trials[*out_.best].mean(), out_.trials.front().mean(), kNoise))
      out_.best = 0;
    out_.slo_met = out_.best && meets(slo_, out_.trials[*out_.best].mean());
    return std::move(out_);
  }

 private:
  Result<void> check_start() const {
    const Trial& start = out_.trials.front();
    if (start.usable()) return {};
    const std::string& failure = start.runs.front().failure;
    if (!failure.empty())
      return make_error(ErrorCode::kMemory, "tune: the settings to start from cannot run: {}", failure);
    return make_error(ErrorCode::kConfig,
                      "tune: one run of the workload takes longer than the budget of {:.0f} s: give more "
                      "--minutes, or a smaller workload",
                      budget_);
  }

  // Whether `a` is better than `b` by more than `margin`.
  bool better(const Measurement& a, const Measurement& b, double margin) const {
    if (!a.complete) return false;
    if (!b.complete) return true;
    const bool a_meets = meets(slo_, a), b_meets = meets(slo_, b);
    if (a_meets != b_meets) return a_meets;
    if (!a_meets) return excess(slo_, a) < excess(slo_, b) * (1 - margin);
    return a.tokens_per_second > b.tokens_per_second * (1 + margin);
  }

  std::optional<size_t> best() const {
    std::optional<size_t> found;
    for (size_t i = 0; i < out_.trials.size(); ++i)
      if (out_.trials[i].usable() && (!found || better(out_.trials[i].mean(), out_.trials[*found].mean(), 0)))
        found = i;
    return found;
  }

  size_t trial_of(const Point& point) {
    const auto same = [&](const Trial& t) { return t.point == point; };
    const auto it = std::find_if(out_.trials.begin(), out_.trials.end(), same);
    if (it != out_.trials.end()) return static_cast<size_t>(it - out_.trials.begin());
    out_.trials.push_back({point, {}});
    return out_.trials.size() - 1;
  }

  void end(End why) {
    ended_ = true;
    out_.end = why;
  }

  // Measures a point once more. Ends the search when there is no time for it.
  Result<void> measure(const Point& point) {
    const double left = budget_ - hooks_.elapsed();
    const std::optional<size_t> top = best();
    const Measurement known = top ? out_.trials[*top].mean() : Measurement{};
    if (left <= 0 || (top && left < known.seconds)) {
      end(End::kBudget);
      return {};
    }
    double limit = left;
    if (top && meets(slo_, known)) limit = std::min(limit, known.seconds * kPatience);
    auto m = hooks_.measure(point, limit);
    if (!m && m.error().code == ErrorCode::kCancelled) {
      end(End::kInterrupted);
      return {};
    }
    if (!m) return std::move(m).error();
    const size_t at = trial_of(point);
    out_.trials[at].runs.push_back(std::move(*m));
    if (hooks_.on_trial) hooks_.on_trial(out_.trials[at], best() == at);
    return {};
  }

  // From where the search stands along one axis. True: it moved.
  Result<bool> climb(size_t axis) {
    bool moved = false;
    for (const int direction : {+1, -1}) {
      while (!ended_ && step_from(axis, direction)) {
        const Measurement before = out_.trials[here_].mean();
        const Point next = *step_from(axis, direction);
        const size_t at = known(next);
        if (at == kNone) DI_TRY(measure(next));
        const size_t reached = known(next);
        if (reached == kNone || !better(out_.trials[reached].mean(), before, kNoise)) break;
        here_ = reached;
        moved = true;
      }
      if (moved) break;  // what lies behind was left for something better
    }
    return moved;
  }

  static constexpr size_t kNone = std::numeric_limits<size_t>::max();

  size_t known(const Point& point) const {
    for (size_t i = 0; i < out_.trials.size(); ++i)
      if (out_.trials[i].point == point && !out_.trials[i].runs.empty()) return i;
    return kNone;
  }

  std::optional<Point> step_from(size_t axis, int direction) const {
    Point next = out_.trials[here_].point;
    const size_t size = axes_[axis].values.size();
    if (direction > 0 ? next[axis] + 1 >= size : next[axis] == 0) return std::nullopt;
    next[axis] += static_cast<size_t>(direction);
    return next;
  }

  // One run may be luck: the best is what stays best when it is measured again.
  Result<void> confirm() {
    while (!ended_) {
      const std::optional<size_t> top = best();
      if (!top || out_.trials[*top].runs.size() >= kRunsOfBest) return {};
      const Point point = out_.trials[*top].point;
      const End why = out_.end;
      DI_TRY(measure(point));
      if (out_.end == End::kBudget) out_.end = why;  // the search itself was through
    }
    return {};
  }

  const std::vector<Axis>& axes_;
  const Slo& slo_;
  double budget_;
  const SearchHooks& hooks_;
  Outcome out_;
  size_t here_ = 0;
  bool ended_ = false;
};

}  // namespace

double excess(const Slo& slo, const Measurement& m) {
  double out = 0;
  if (slo.ttft > 0) out = std::max(out, m.ttft.p99 / slo.ttft);
  if (slo.itl > 0) out = std::max(out, m.itl.p99 / slo.itl);
  return out;
}

bool meets(const Slo& slo, const Measurement& m) {
  return excess(slo, m) <= 1;
}

Measurement Trial::mean() const {
  std::vector<const Measurement*> complete;
  for (const Measurement& m : runs)
    if (m.complete) complete.push_back(&m);
  if (complete.empty()) return runs.empty() ? Measurement{} : runs.front();
  Measurement out = *complete.front();
  const auto average = [&](auto part) {
    double sum = 0;
    for (const Measurement* m : complete) sum += part(*m);
    return sum / static_cast<double>(complete.size());
  };
  out.tokens_per_second = average([](const Measurement& m) { return m.tokens_per_second; });
  out.seconds = average([](const Measurement& m) { return m.seconds; });
  out.ttft = {average([](const Measurement& m) { return m.ttft.p50; }),
              average([](const Measurement& m) { return m.ttft.p99; })};
  out.itl = {average([](const Measurement& m) { return m.itl.p50; }),
             average([](const Measurement& m) { return m.itl.p99; })};
  return out;
}

Result<Outcome> search(const std::vector<Axis>& axes, const Slo& slo, double budget,
                       const SearchHooks& hooks) {
  return Search(axes, slo, budget, hooks).run();
}

}  // namespace deepinfer::tune
