// A queue between threads.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace deepinfer {

template <class T>
class Queue {
 public:
  void push(T value) {
    {
      std::lock_guard lock(mutex_);
      items_.push_back(std::move(value));
    }
    ready_.notify_one();
  }

  // Waits at most `time`; nothing when none came.
  std::optional<T> pop_for(std::chrono::nanoseconds time) {
    std::unique_lock lock(mutex_);
    if (!ready_.wait_for(lock, time, [this] { return !items_.empty(); })) return std::nullopt;
    std::optional<T> value = std::move(items_.front());
    items_.pop_front();
    return value;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<T> items_;
};

}  // namespace deepinfer
