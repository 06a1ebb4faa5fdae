#include "base/arena.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "base/check.h"

namespace deepinfer {
namespace {

TEST(Arena, HandsOutAlignedMemoryUntilItIsFull) {
  Arena arena(std::move(Buffer::allocate(1000)).value());
  auto* a = static_cast<std::byte*>(arena.allocate(1));
  auto* b = static_cast<std::byte*>(arena.allocate(100));
  EXPECT_EQ(b - a, 64);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b) % 64, 0u);
  const size_t mark = arena.used();
  EXPECT_THROW(arena.allocate(1000), InternalError);
  arena.allocate(500);
  arena.reset(mark);
  EXPECT_EQ(arena.used(), mark);
  EXPECT_NO_THROW(arena.allocate(800));
}

TEST(BufferSlab, BuffersAreSeparateZeroedAndAligned) {
  BufferSlab slab;
  std::vector<Buffer> buffers;
  for (const size_t bytes : {size_t{1}, size_t{64}, size_t{100}, size_t{70} << 20, size_t{3}}) {
    buffers.push_back(std::move(slab.allocate(bytes)).value());
    Buffer& b = buffers.back();
    EXPECT_EQ(b.size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 64, 0u);
    EXPECT_EQ(b.data()[0], std::byte{0});
    EXPECT_EQ(b.data()[bytes - 1], std::byte{0});
    std::memset(b.data(), static_cast<int>(buffers.size()), std::min<size_t>(bytes, 4096));
  }
  for (size_t i = 0; i < buffers.size(); ++i) EXPECT_EQ(buffers[i].data()[0], static_cast<std::byte>(i + 1));
  EXPECT_EQ(slab.allocate(0).value().data(), nullptr);
}

TEST(BufferSlab, BuffersOutliveIt) {
  auto slab = std::make_unique<BufferSlab>();
  Buffer first = std::move(slab->allocate(5000)).value(), second = std::move(slab->allocate(5000)).value();
  slab.reset();
  Buffer moved = std::move(first);
  second = Buffer();
  std::memset(moved.data(), 7, moved.size());
  EXPECT_EQ(moved.data()[4999], std::byte{7});
  EXPECT_EQ(first.data(), nullptr);  // NOLINT(bugprone-use-after-move): what a move leaves behind is defined
}

}  // namespace
}  // namespace deepinfer
