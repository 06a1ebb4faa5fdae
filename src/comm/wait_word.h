// A counter that one thread raises and others wait for, with a time limit.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace deepinfer {

// One writer raises it; any thread may wait or close. Waiting spins for a bounded time, then sleeps.
class alignas(64) WaitWord {
 public:
  enum class Outcome : uint8_t { kReached, kClosed, kTimeout };

  void raise();

  // Ends all waits for counts that are not reached yet, now and later.
  void close();

  // Until it was raised `count` times, even if it was closed since.
  Outcome wait(uint64_t count, std::chrono::milliseconds timeout) {
    return reached(value_.load(std::memory_order_acquire), count) ? Outcome::kReached
                                                                  : wait_longer(count, timeout);
  }

 private:
  static bool reached(uint64_t value, uint64_t count) { return value >> 1 >= count; }
  Outcome wait_longer(uint64_t count, std::chrono::milliseconds timeout);
  bool spin(uint64_t count) const;
  void wake();

  // The closed bit is the lowest, so that the half the kernel compares changes with it.
  std::atomic<uint64_t> value_{0};  // 2 * count + closed
  std::atomic<uint32_t> sleepers_{0};
};

}  // namespace deepinfer
