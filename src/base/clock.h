// Time, so that tests can hold it.
#pragma once

#include <chrono>

namespace deepinfer {

class Clock {
 public:
  using Time = std::chrono::steady_clock::time_point;
  virtual ~Clock() = default;
  virtual Time now() const = 0;
};

class SteadyClock final : public Clock {
 public:
  Time now() const override { return std::chrono::steady_clock::now(); }
};

class FakeClock final : public Clock {
 public:
  Time now() const override { return now_; }
  void advance(std::chrono::nanoseconds by) { now_ += by; }

 private:
  Time now_{};
};

}  // namespace deepinfer
