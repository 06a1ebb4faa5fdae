#include "base/thread_pool.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/limits.h"

namespace deepinfer {
namespace {

// Longer than the gap between two phases of a step, or two steps; short enough that an idle pool is asleep
// before anybody notices.
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr int kSpinsPerLook = 64;
constexpr int kBusyLooks = 4;  // after these (a few microseconds) the core is offered to other threads

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Returns once `word` differs from `old`: spins first, then sleeps in the kernel.
void wait_for_change(const std::atomic<uint32_t>& word, uint32_t old) {
  const auto start = std::chrono::steady_clock::now();
  for (int looks = 0;; ++looks) {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      if (word.load(std::memory_order_acquire) != old) return;
      pause();
    }
    if (std::chrono::steady_clock::now() - start > kSpin) break;
    if (looks >= kBusyLooks) std::this_thread::yield();
  }
  while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
}

// Thrown by barrier() on the threads that did not fail themselves.
class PhaseAborted : public std::exception {
 public:
  const char* what() const noexcept override { return "another thread of the phase failed"; }
};

}  // namespace

struct ThreadPool::State {
  explicit State(int n) : size(n) {}

  const int size;
  const std::function<void(int)>* work = nullptr;  // written before `round` is, read after it
  alignas(64) std::atomic<uint32_t> round{0};      // one more for each run(), and for the end
  alignas(64) std::atomic<uint32_t> finished{0};   // rounds that all other threads have ended
  std::atomic<int> running{0};
  alignas(64) std::atomic<uint32_t> phase{0};  // one more for each complete barrier
  std::atomic<int> arrived{0};
  std::atomic<bool> failed{false};
  std::atomic<bool> stop{false};
  std::mutex error_mutex;
  std::exception_ptr error;
  std::vector<std::thread> threads;

  void fail(std::exception_ptr e) {
    {
      std::lock_guard lock(error_mutex);
      if (!error) error = std::move(e);
    }
    failed.store(true, std::memory_order_release);
    phase.fetch_add(1, std::memory_order_release);
    phase.notify_all();
  }

  void call(int t) {
    try {
      (*work)(t);
    } catch (const PhaseAborted&) {  // the thread that failed keeps the reason
    } catch (...) {
      fail(std::current_exception());
    }
  }

  void worker(int t) {
    ask_for_short_turns();
    for (uint32_t seen = 0;;) {
      wait_for_change(round, seen);
      ++seen;
      if (stop.load(std::memory_order_acquire)) return;
      call(t);
      if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        finished.store(seen, std::memory_order_release);
        finished.notify_one();
      }
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>(threads)) {
  DI_CHECK(threads >= 1, "a pool of {} threads", threads);
  for (int t = 1; t < threads; ++t) {
    state_->threads.emplace_back([s = state_.get(), t] { s->worker(t); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_release);
  state_->round.fetch_add(1, std::memory_order_release);
  state_->round.notify_all();
  for (std::thread& t : state_->threads) t.join();
}

int ThreadPool::size() const {
  return state_->size;
}

void ThreadPool::run(const std::function<void(int)>& work) {
  State& s = *state_;
  if (s.size == 1) return work(0);
  s.work = &work;
  s.running.store(s.size - 1, std::memory_order_relaxed);
  const uint32_t before = s.finished.load(std::memory_order_relaxed);
  s.round.fetch_add(1, std::memory_order_release);
  s.round.notify_all();
  s.call(0);
  wait_for_change(s.finished, before);
  if (s.failed.load(std::memory_order_acquire)) {
    s.arrived.store(0, std::memory_order_relaxed);
    s.failed.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(s.error, nullptr));
  }
}

void ThreadPool::barrier() {
  State& s = *state_;
  if (s.size == 1) return;
  const uint32_t phase = s.phase.load(std::memory_order_acquire);
  if (s.failed.load(std::memory_order_acquire)) throw PhaseAborted();
  if (s.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == s.size) {
    s.arrived.store(0, std::memory_order_relaxed);
    s.phase.fetch_add(1, std::memory_order_release);
    s.phase.notify_all();
  } else {
    wait_for_change(s.phase, phase);
  }
  if (s.failed.load(std::memory_order_acquire)) throw PhaseAborted();
}

}  // namespace deepinfer
