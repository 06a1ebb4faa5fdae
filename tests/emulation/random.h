// The numbers that every order of the emulation is drawn from.
#pragma once

#include <bit>
#include <cstdint>

namespace deepinfer::emulation {

// xorshift64*: quick, and good enough for orders.
class Random {
 public:
  explicit Random(uint64_t seed) : state_((seed ^ 0x9E3779B97F4A7C15ull) * 0xBF58476D1CE4E5B9ull | 1) {
    next();
  }
  uint32_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>(state_ * 0x2545F4914F6CDD1Dull >> 32);
  }
  // 0 to n - 1.
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(static_cast<uint64_t>(next()) * n >> 32); }
  bool one_in(uint32_t n) { return below(n) == 0; }
  // The place of one of the ones of `bits`, which has some.
  int pick(uint32_t bits) {
    const int turn = static_cast<int>(next() >> 27);
    return (std::countr_zero(std::rotr(bits, turn)) + turn) & 31;
  }

 private:
  uint64_t state_;
};

}  // namespace deepinfer::emulation
