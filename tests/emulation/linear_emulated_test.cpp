// project, gate_up and head on CUDA against double precision: every weight type, awkward shapes, every
// kernel.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/cuda.h"
#include "backend/cuda/device_batch.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/packed.cuh"
#include "backend/cuda/staging.h"
#include "emulation/linear_fixture.h"

namespace deepinfer::test {
namespace {

TEST_P(CudaLinear, ProjectMatchesDoublePrecision) {
  CudaMachine m(a());
  project(m, 16, 64, {0, 1, 2, 5, 8, 9, 16, 17});
  project(m, 1, columns(7), {1, 3, 18});
  project(m, 37, columns(3 * 7), {1, 9, 33});
  project(m, 72, 96, {1, 4, 12, 20, 70});
  project(m, 24, 320, {1, 8, 13});
}

TEST_P(CudaLinear, ManySectionsOfK) {
  CudaMachine m(a());
  project(m, 17, 1088, {1, 11});
}

TEST_P(CudaLinear, AnyOrderOfThreadsAndOverlap) {
  for (const uint64_t seed : {1, 2, 3}) {
    use_order(seed);
    CudaMachine m(a());
    m.gpu->pdl = true;
    project(m, 40, 128, {1, 10, 30});
  }
  use_order(1);
}

// The self-check may switch the skinny kernel off.
TEST_P(CudaLinear, TileKernelServesFewTokens) {
  CudaMachine m(a());
  m.gpu->fast.skinny = false;
  every_weight_is_rounded_ = true;
  project(m, 37, 96, {1, 9});
}

TEST_P(CudaLinear, GateUpMatchesDoublePrecision) {
  CudaMachine m(a());
  gate_up(m, 1, columns(7), 1);
  gate_up(m, 24, 64, 1);
  gate_up(m, 24, 64, 4);
  gate_up(m, 20, 96, 5);
  gate_up(m, 24, 64, 11);
  gate_up(m, 40, 64, 20);
  if (quantized()) gate_up(m, 40, 64, 68);
}

TEST_P(CudaLinear, HeadComputesTheWantedRows) {
  const int64_t cols = 64, rows = 50;
  for (const int64_t wanted : {3, 6, 19}) {
    CudaMachine m(a());
    const int64_t tokens = 2 * wanted + 1;
    const Matrix w = random_matrix(random_, weight(), rows, cols);
    const LinearWeight packed = pack(m.context, {&w});
    const std::vector<float> x = random_floats(random_, tokens * cols), norm = random_floats(random_, cols);
    std::vector<int32_t> which;
    for (int64_t i = 0; i < wanted; ++i) which.push_back(static_cast<int32_t>(2 * i + 1));
    DeviceTensor dx(m, DType::kF32, x), dnorm(m, DType::kF32, norm), chosen(m, which),
        logits(m, DType::kF32, static_cast<size_t>(wanted * rows));
    const cuda::DeviceBatch device{.logit_token = static_cast<const int32_t*>(chosen.data())};
    const StepBatch batch{
        .num_tokens = static_cast<int32_t>(tokens), .logit_token = which, .device = &device};
    cuda::head(m.context, {.batch = &batch,
                           .hidden = dx.tensor({tokens, cols}),
                           .norm = {dnorm.tensor({cols}), 1e-6f},
                           .weight = &packed,
                           .scale = 0.5f,
                           .logits = logits.tensor({wanted, rows})});
    const std::vector<float> result = logits.read();
    for (int64_t s = 0; s < wanted; ++s) {
      const std::vector<float> row =
          rounded(a(), ref::rms_norm({x.data() + which[s] * cols, size_t(cols)}, norm, 1e-6f));
      for (int64_t r = 0; r < rows; ++r) {
        const Sum d = dot(weight_row(a(), w, r), row.data());
        ASSERT_NEAR(result[s * rows + r], 0.5 * d.value, bound_after_norm(d, cols, wanted)) << s << " " << r;
      }
    }
  }
}

TEST_P(CudaLinear, PartsOfAnySizeAreConcatenated) {
  CudaMachine m(a());
  const int64_t cols = 64, tokens = 2, rows = 37;
  const Matrix parts[] = {random_matrix(random_, weight(), 5, cols),
                          random_matrix(random_, weight(), 30, cols),
                          random_matrix(random_, weight(), 2, cols)};
  const LinearWeight packed = pack(m.context, {&parts[0], &parts[1], &parts[2]});
  EXPECT_EQ(packed.part_rows, (std::vector<int64_t>{5, 30, 2}));
  const std::vector<float> x = rounded(a(), random_floats(random_, tokens * cols)),
                           bias = random_floats(random_, rows);
  DeviceTensor dx(m, a(), x), dbias(m, DType::kF32, bias), out(m, a(), static_cast<size_t>(tokens * rows));
  cuda::linear(m.context, {.weight = &packed,
                           .x = dx.tensor({tokens, cols}),
                           .bias = dbias.tensor({rows}),
                           .out = out.tensor({tokens, rows})});
  const std::vector<float> y = out.read();
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < rows; ++r) {
      const Matrix& part = r < 5 ? parts[0] : r < 35 ? parts[1] : parts[2];
      const Sum s = dot(weight_row(a(), part, r < 5 ? r : r < 35 ? r - 5 : r - 35), x.data() + t * cols);
      const double expected = s.value + bias[r];
      ASSERT_NEAR(y[t * rows + r], expected,
                  bound(s, cols, tokens) + 1.01 * eps_of(a()) * (std::fabs(expected) + 1e-6));
    }
  }
}

// The largest integers everywhere: no accumulator overflows, none is rounded.
TEST_P(CudaLinear, ExtremeIntegersAreExact) {
  if (!quantized()) return;
  CudaMachine m(a());
  const int64_t cols = 512;
  for (const int fill : {0x00, 0x7f, 0x80, 0xff}) {
    Matrix w = random_matrix(random_, weight(), 16, cols);
    const int header = info(weight()).block_bytes - (weight() == DType::kQ8_0 ? 32 : 16);
    for (size_t at = 0; at < w.data.size(); at += info(weight()).block_bytes)
      std::memset(w.data.data() + at + header, fill, info(weight()).block_bytes - header);
    const LinearWeight packed = pack(m.context, {&w});
    const std::vector<float> x(3 * cols, -1.0f);
    DeviceTensor dx(m, a(), x), y(m, DType::kF32, std::vector<float>(3 * 16, 0.0f));
    cuda::project(m.context,
                  {.x = dx.tensor({3, cols}), .weight = &packed, .bias = {}, .residual = y.tensor({3, 16})});
    const std::vector<float> result = y.read();
    for (int64_t r = 0; r < 16; ++r) {
      const Sum s = dot(weight_row(a(), w, r), x.data());
      for (int64_t t = 0; t < 3; ++t) ASSERT_NEAR(result[t * 16 + r], s.value, bound(s, cols, 3)) << fill;
    }
  }
}

// Alone or among others, a token's bits are the same.
TEST_P(CudaLinear, DeterministicBitsDoNotDependOnTheBatch) {
  CudaMachine m(a(), true);
  const int64_t cols = 320, f = 24, tokens = 70;
  const Matrix gate = random_matrix(random_, weight(), f, cols),
               up = random_matrix(random_, weight(), f, cols);
  const LinearWeight pairs = pack(m.context, {&gate, &up}, RowOrder::kPaired), one = pack(m.context, {&gate});
  const std::vector<float> hidden = random_floats(random_, tokens * cols),
                           norm = random_floats(random_, cols);
  DeviceTensor dx(m, DType::kF32, hidden), dnorm(m, DType::kF32, norm);
  const auto run = [&](int64_t first, int64_t count) {
    DeviceTensor paired(m, a(), static_cast<size_t>(count * f)),
        sums(m, DType::kF32, static_cast<size_t>(count * f));
    const Norm n{dnorm.tensor({cols}), 1e-5f};
    const Tensor x = slice_rows(dx.tensor({tokens, cols}), first, count);
    cuda::gate_up(m.context,
                  {.hidden = x, .norm = n, .weight = &pairs, .bias = {}, .out = paired.tensor({count, f})});
    cuda::linear(m.context, {.weight = &one, .x = x, .norm = &n, .bias = {}, .out = sums.tensor({count, f})});
    return std::pair(paired.read(), sums.read());
  };
  const auto all = run(0, tokens);
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 1}, {69, 1}, {5, 9}, {17, 19}}) {
    const auto some = run(first, count);
    for (int64_t i = 0; i < count * f; ++i) {
      ASSERT_EQ(some.first[i], all.first[first * f + i]) << first << " " << count << " " << i;
      ASSERT_EQ(some.second[i], all.second[first * f + i]) << first << " " << count << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaLinear, testing::ValuesIn(cases()), name_of);

TEST(CudaPack, RefusesWhatItCannotPack) {
  CudaMachine m(DType::kBF16);
  const float data[64] = {};
  const auto error = [&](const LinearSource& s) {
    const Result<LinearWeight> r = cuda::pack_linear(m.context, s);
    return r.ok() ? std::string("packed") : r.error().message;
  };
  EXPECT_THAT(error({.dtype = DType::kI32, .cols = 4, .parts = {{data, 1}}}), testing::HasSubstr("I32"));
  EXPECT_THAT(error({.dtype = DType::kQ4_0, .cols = 33, .parts = {{data, 1}}}),
              testing::HasSubstr("multiple of 32"));
  EXPECT_THAT(error({.dtype = DType::kF32, .cols = 0, .parts = {{data, 1}}}), testing::HasSubstr("columns"));
  EXPECT_THAT(error({.dtype = DType::kF32, .cols = 4, .parts = {}}), testing::HasSubstr("part"));
  EXPECT_THAT(error({.dtype = DType::kF32, .cols = 4, .parts = {{nullptr, 1}}}), testing::HasSubstr("rows"));
  EXPECT_THAT(error({.dtype = DType::kF32, .cols = 4, .parts = {{data, INT64_MAX / 4}}}),
              testing::HasSubstr("rows"));
  EXPECT_THAT(
      error({.dtype = DType::kF32, .cols = 4, .parts = {{data, 2}, {data, 1}}, .order = RowOrder::kPaired}),
      testing::HasSubstr("two of equal size"));
  // More than the card has: the message says how much was asked for.
  EXPECT_THAT(error({.dtype = DType::kF32, .cols = 100'000, .parts = {{data, 2'000'000'000}}}),
              testing::AllOf(testing::HasSubstr("2000000000, 100000"), testing::HasSubstr("GiB")));
}

// Larger than a staging buffer, packed by several threads, pairs interleaved: every value where packed.h
// says.
TEST(CudaPack, LargeWeightsGoThroughSeveralBuffers) {
  ThreadPool pool(3);
  CudaMachine m(DType::kBF16);
  m.context.pool = &pool;
  Random random(7);
  for (const auto& [dtype, rows, cols] : {std::tuple<DType, int64_t, int64_t>{DType::kBF16, 4501, 1000},
                                          {DType::kQ4_1, 26501, 480},
                                          {DType::kQ8_0, 15005, 544}}) {
    const Matrix gate = random_matrix(random, dtype, rows, cols),
                 up = random_matrix(random, dtype, rows, cols);
    const LinearWeight w = pack(m.context, {&gate, &up}, RowOrder::kPaired);
    ASSERT_GT(w.packed.size(), size_t{16} << 20) << "more than one buffer";
    Result<Buffer> host = m.gpu->allocate_pinned(w.packed.size());
    ASSERT_TRUE(host.ok());
    m.gpu->copy_out(host.value().data(), w.packed.data(), w.packed.size());
    m.gpu->synchronize();
    cuda::PackedView view = cuda::packed_view(w);
    const std::byte* scales = static_cast<const std::byte*>(view.scales);
    if (scales != nullptr) view.scales = host.value().data() + (scales - w.packed.data());
    view.data = host.value().data();
    for (int64_t row = 0; row < view.rows; row += row < 64 || row > view.rows - 64 ? 1 : 97) {
      const int64_t part_row = row / 16 * 8 + row % 8;
      const Matrix& part = row % 16 < 8 ? gate : up;
      std::vector<double> expected(view.cols, 0.0);
      if (part_row < rows) {
        const std::vector<double> values = ref::dequantize_row(dtype, part.row(part_row), cols);
        std::copy(values.begin(), values.end(), expected.begin());
      }
      for (int64_t k = 0; k < view.cols; ++k)
        ASSERT_NEAR(cuda::packed_value(view, row, k), expected[k], 1e-6 * std::fabs(expected[k]) + 1e-7)
            << info(dtype).name << " row " << row << " column " << k;
    }
  }
  cuda::release_staging(*m.gpu);
}

TEST(CudaPack, UploadKeepsVectors) {
  CudaMachine m(DType::kBF16);
  Random random(1);
  const std::vector<float> values = random_floats(random, 1000);
  Result<Buffer> b = cuda::upload(m.context, values);
  ASSERT_TRUE(b.ok());
  DeviceTensor host(m, DType::kF32, values.size());
  std::vector<float> back(values.size());
  Result<Buffer> pinned = m.gpu->allocate_pinned(4000);
  ASSERT_TRUE(pinned.ok());
  m.gpu->copy_out(pinned.value().data(), b.value().data(), 4000);
  m.gpu->synchronize();
  std::memcpy(back.data(), pinned.value().data(), 4000);
  EXPECT_EQ(back, values);
  Result<Buffer> none = cuda::upload(m.context, {});
  EXPECT_TRUE(none.ok());
}

}  // namespace
}  // namespace deepinfer::test
