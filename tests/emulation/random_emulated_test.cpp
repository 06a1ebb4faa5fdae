// Random values made on the device against those that the host writes: the same bits, whatever the layout.
#include <gtest/gtest.h>

#include "emulation/linear_fixture.h"
#include "quant/formats.h"

namespace deepinfer::test {
namespace {

struct Part {
  int64_t rows;
  uint64_t seed;
};

class RandomWeights : public testing::TestWithParam<DType> {
 protected:
  static RandomValues values(const Part& p, int64_t cols) {
    return {.seed = p.seed, .exponent = random_exponent(cols), .first = 3};
  }
  // What the device has, read back.
  static std::vector<std::byte> bytes_of(CudaMachine& m, const LinearWeight& w) {
    Result<Buffer> host = m.gpu->allocate_pinned(w.packed.size());
    DI_CHECK(host.ok(), "{}", host.error().message);
    m.gpu->copy_out(host->data(), w.packed.data(), w.packed.size());
    m.gpu->synchronize();
    return {host->data(), host->data() + host->size()};
  }
  void compare(const std::vector<Part>& parts, int64_t cols, RowOrder order) {
    CudaMachine m(GetParam());
    LinearSource random{.dtype = DType::kBF16, .cols = cols, .parts = {}, .order = order}, stored = random;
    std::vector<std::vector<std::byte>> files;
    for (const Part& p : parts) {
      random.parts.push_back({.rows = p.rows, .random = values(p, cols)});
      files.emplace_back(static_cast<size_t>(p.rows * cols) * 2);
      write_random(values(p, cols), 0, p.rows * cols, files.back().data());
      stored.parts.push_back({.data = files.back().data(), .rows = p.rows});
    }
    const Result<LinearWeight> made = pack(m.context, random), copied = pack(m.context, stored);
    ASSERT_TRUE(made.ok()) << made.error().message;
    ASSERT_TRUE(copied.ok()) << copied.error().message;
    EXPECT_EQ(made->rows, copied->rows);
    EXPECT_EQ(made->part_rows, copied->part_rows);
    EXPECT_EQ(made->kernel, copied->kernel);
    EXPECT_TRUE(bytes_of(m, *made) == bytes_of(m, *copied)) << cols << " columns";
  }
};

TEST_P(RandomWeights, AsTheHostWritesThem) {
  for (const uint64_t order : {1, 2, 3}) {
    use_order(order);
    compare({{1, 5}}, 1, RowOrder::kConcatenated);
    compare({{32, 7}}, 64, RowOrder::kConcatenated);
    compare({{17, 7}, {5, 8}, {9, 1 << 20}}, 70, RowOrder::kConcatenated);
    compare({{16, 7}, {16, 8}}, 128, RowOrder::kPaired);
    compare({{21, 7}, {21, 8}}, 300, RowOrder::kPaired);
  }
}

TEST_P(RandomWeights, NothingIsCopied) {
  if (!kEmulated) GTEST_SKIP() << "a card does not count its copies";
#ifdef DEEPINFER_EMULATION
  CudaMachine m(GetParam());
  m.gpu->synchronize();
  const auto before = emulation::machine_counts();
  const LinearSource source{
      .dtype = DType::kBF16, .cols = 64, .parts = {{.rows = 16, .random = values({16, 2}, 64)}}};
  const Result<LinearWeight> w = pack(m.context, source);
  ASSERT_TRUE(w.ok()) << w.error().message;
  m.gpu->synchronize();
  const auto after = emulation::machine_counts();
  EXPECT_EQ(after.kernels - before.kernels, 1);
  EXPECT_EQ(after.copies, before.copies);
  EXPECT_EQ(after.allocations - before.allocations, 1);  // none of them pinned
#endif
}

INSTANTIATE_TEST_SUITE_P(Types, RandomWeights, testing::Values(DType::kBF16, DType::kF16),
                         [](const auto& i) { return std::string(deepinfer::info(i.param).name); });

}  // namespace
}  // namespace deepinfer::test
