// Joins every program of tests/card: where there is no card, all its tests are skipped with the reason.
#include <gtest/gtest.h>

#include "backend/cuda_gpu.h"

namespace deepinfer::test {
namespace {

class NeedsCard : public testing::Environment {
 public:
  void SetUp() override {
    std::string why;
    if (cuda::device_count(&why) == 0) GTEST_SKIP() << "no card: " << why;
  }
};

// GoogleTest owns it.
[[maybe_unused]] const testing::Environment* const registered =
    testing::AddGlobalTestEnvironment(new NeedsCard);

}  // namespace
}  // namespace deepinfer::test
