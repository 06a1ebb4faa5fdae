#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/gloo.h"

namespace deepinfer {
namespace {

TEST(NoGloo, SaysWhatToInstall) {
  EXPECT_FALSE(has_gloo());
  auto made = gloo_communicator({}, std::chrono::seconds(1));
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(made.error().message, testing::HasSubstr("Install libgloo-dev and build again"));
}

}  // namespace
}  // namespace deepinfer
