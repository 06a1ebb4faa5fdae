// Threads that run one phase together: a fork, the work, a barrier.
#pragma once

#include <functional>
#include <memory>

namespace deepinfer {

// run() is called by one thread at a time, which takes part as thread 0. Between phases of a step the others
// spin for a bounded time, then sleep: an idle pool costs nothing.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // at least 1, the caller included
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int size() const;

  // work(t) on every thread t in [0, size()); returns when all are done. The first exception is thrown again
  // here.
  void run(const std::function<void(int)>& work);

  // Inside run(): returns when all threads of the pool have come here. Every thread calls it equally often.
  // When another thread's work has thrown it throws too, so that none waits for the thread that is gone: let
  // that exception pass.
  void barrier();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace deepinfer
