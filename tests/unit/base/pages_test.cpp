#include "base/pages.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/arena.h"

namespace deepinfer {
namespace {

TEST(Pages, GoBackAndComeAgainAsZeros) {
  constexpr size_t kBytes = (size_t{80} << 20) + 4096;  // more than is asked at once
  const Buffer b = std::move(Buffer::allocate(kBytes)).value();
  EXPECT_LT(resident_bytes(b.data(), kBytes), kBytes / 2);
  std::memset(b.data(), 7, kBytes);
  EXPECT_EQ(resident_bytes(b.data(), kBytes), kBytes);
  EXPECT_EQ(drop_pages(b.data(), kBytes), kBytes);
  EXPECT_LT(resident_bytes(b.data(), kBytes), kBytes / 2);
  EXPECT_EQ(b.data()[kBytes - 1], std::byte{0});
  EXPECT_EQ(b.data()[0], std::byte{0});
}

TEST(Pages, OfNothing) {
  EXPECT_EQ(resident_bytes(nullptr, 0), 0u);
  EXPECT_EQ(drop_pages(nullptr, 0), 0u);
}

}  // namespace
}  // namespace deepinfer
