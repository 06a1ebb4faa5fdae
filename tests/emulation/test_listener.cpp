// Joins every emulated test program: a failure of the emulation that nobody expected fails the test, also
// where the exception was caught on its way, and a failed test names the seed.
#include <gtest/gtest.h>

#include <iostream>

#include "emulation/emulated_gpu.h"

namespace deepinfer::emulation {
namespace {

class Listener : public ::testing::EmptyTestEventListener {
  void OnTestEnd(const ::testing::TestInfo& info) override {
    if (const int failures = take_failures())
      ADD_FAILURE() << failures << " failures of the emulation that the test did not take (take_failures())";
    if (info.result()->Failed()) std::cerr << "DEEPINFER_EMULATION_SEED=" << seed() << "\n";
  }
};

const bool kRegistered = [] {
  ::testing::UnitTest::GetInstance()->listeners().Append(new Listener);
  return true;
}();

}  // namespace
}  // namespace deepinfer::emulation
