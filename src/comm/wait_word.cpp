#include "comm/wait_word.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <bit>
#include <climits>
#include <thread>

namespace deepinfer {
namespace {

// As long as a thread pool spins between phases (base/thread_pool.cpp): longer than ranks of equal work
// differ.
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr int kSpinsPerLook = 64;
constexpr int kBusyLooks = 4;  // after these the core is offered to other threads

static_assert(std::endian::native == std::endian::little, "the kernel compares the lower half of a word");
static_assert(sizeof(std::atomic<uint64_t>) == sizeof(uint64_t));

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

uint32_t* lower_half(const std::atomic<uint64_t>& word) {
  return reinterpret_cast<uint32_t*>(const_cast<std::atomic<uint64_t>*>(&word));
}

}  // namespace

void WaitWord::raise() {
  // Both sequentially consistent: either this sees the sleeper, or the sleeper's kernel sees the new value.
  value_.fetch_add(2);
  if (sleepers_.load() != 0) wake();
}

void WaitWord::close() {
  value_.fetch_or(1);
  wake();
}

void WaitWord::wake() {
  syscall(SYS_futex, lower_half(value_), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

bool WaitWord::spin(uint64_t count) const {
  const auto start = std::chrono::steady_clock::now();
  for (int looks = 0;; ++looks) {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      const uint64_t value = value_.load(std::memory_order_acquire);
      if (reached(value, count)) return true;
      if (value & 1) return false;
      pause();
    }
    if (std::chrono::steady_clock::now() - start > kSpin) return false;
    if (looks >= kBusyLooks) std::this_thread::yield();
  }
}

WaitWord::Outcome WaitWord::wait_longer(uint64_t count, std::chrono::milliseconds timeout) {
  if (spin(count)) return Outcome::kReached;
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  sleepers_.fetch_add(1);
  Outcome outcome = Outcome::kReached;
  for (;;) {
    const uint64_t value = value_.load();
    if (reached(value, count)) break;
    if (value & 1) {
      outcome = Outcome::kClosed;
      break;
    }
    const auto left =
        std::chrono::ceil<std::chrono::nanoseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      outcome = Outcome::kTimeout;
      break;
    }
    const timespec t{.tv_sec = static_cast<time_t>(left.count() / 1'000'000'000),
                     .tv_nsec = static_cast<long>(left.count() % 1'000'000'000)};
    syscall(SYS_futex, lower_half(value_), FUTEX_WAIT_PRIVATE, static_cast<uint32_t>(value), &t, nullptr, 0);
  }
  sleepers_.fetch_sub(1);
  return outcome;
}

}  // namespace deepinfer
