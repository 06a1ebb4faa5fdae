#include "base/thread_pool.h"

#include <barrier>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace deepinfer {

struct ThreadPool::State {
  explicit State(int n) : size(n), sync(n) {}
  const int size;
  std::barrier<> sync;
  std::mutex mutex;
  std::condition_variable wake;
  const std::function<void(int)>* work = nullptr;
  uint64_t round = 0;
  bool stop = false;
  std::exception_ptr error;
  std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>(threads)) {
  for (int t = 1; t < threads; ++t) {
    state_->threads.emplace_back([s = state_.get(), t] {
      for (uint64_t seen = 0;;) {
        const std::function<void(int)>* work;
        {
          std::unique_lock lock(s->mutex);
          s->wake.wait(lock, [&] { return s->stop || s->round != seen; });
          if (s->stop) return;
          seen = s->round;
          work = s->work;
        }
        (*work)(t);
        s->sync.arrive_and_wait();
      }
    });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  for (std::thread& t : state_->threads) t.join();
}

int ThreadPool::size() const {
  return state_->size;
}

void ThreadPool::run(const std::function<void(int)>& work) {
  {
    std::lock_guard lock(state_->mutex);
    state_->work = &work;
    ++state_->round;
  }
  state_->wake.notify_all();
  work(0);
  state_->sync.arrive_and_wait();
}

void ThreadPool::barrier() {
  state_->sync.arrive_and_wait();
}

}  // namespace deepinfer
