// mma and ldmatrix against double loops over the fragment layouts of the PTX ISA, and the conversions.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "backend/cuda/launch.h"
#include "backend/cuda/ptx.h"
#include "emulation/device_array.h"
#include "emulation/emulated_gpu.h"

namespace deepinfer::cuda {
namespace {

using emulation::DeviceArray;

template <class T>
__device__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 1)
    mma_m16n8k32_e4m3(d, a, b);
  else
    mma_m16n8k16<T>(d, a, b);
}

// d [16, 8] = c + a [16, K] b [K, 8]; each lane finds its elements as the PTX ISA's figures say.
template <class T>
__global__ void one_tile(const T* a, const T* b, const float* c, float* d, int k) {
  const int lane = static_cast<int>(threadIdx.x), group = lane >> 2, in_group = lane % 4;
  constexpr int kPer = 4 / sizeof(T);
  T fa[4 * kPer], fb[2 * kPer];
  for (int i = 0; i < 4 * kPer; ++i) {
    // a_i: row = group for i in the first and third quarter, else group + 8; column from in_group and i.
    const int quarter = i / kPer;
    const int row = quarter == 0 || quarter == 2 ? group : group + 8;
    const int column = in_group * kPer + i % kPer + (quarter >= 2 ? 4 * kPer : 0);
    fa[i] = a[row * k + column];
  }
  for (int i = 0; i < 2 * kPer; ++i)
    fb[i] = b[(in_group * kPer + i % kPer + (i >= kPer ? 4 * kPer : 0)) * 8 + group];
  uint32_t ra[4], rb[2];
  memcpy(ra, fa, sizeof ra);
  memcpy(rb, fb, sizeof rb);
  float acc[4];
  for (int i = 0; i < 4; ++i) acc[i] = c[(i < 2 ? group : group + 8) * 8 + in_group * 2 + i % 2];
  multiply_add<T>(acc, ra, rb);
  for (int i = 0; i < 4; ++i) d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + i % 2] = acc[i];
}

template <class T>
class Mma : public ::testing::Test {};
using MmaTypes = ::testing::Types<__nv_bfloat16, __half, __nv_fp8_e4m3>;
TYPED_TEST_SUITE(Mma, MmaTypes);

TYPED_TEST(Mma, EqualsDoubleLoops) {
  using T = TypeParam;
  constexpr int kK = 32 / sizeof(T);
  std::mt19937 random(5);
  std::vector<T> a(16 * kK), b(kK * 8);
  std::vector<float> c(16 * 8);
  // Few bits, so that sums are exact in any order.
  const auto value = [&] { return static_cast<float>(static_cast<int>(random() % 15) - 7) / 4; };
  for (T& v : a) v = static_cast<T>(value());
  for (T& v : b) v = static_cast<T>(value());
  for (float& v : c) v = value();
  const DeviceArray<T> da(a), db(b);
  const DeviceArray<float> dc(c), dd(c.size());
  launch({.grid = dim3(1), .block = dim3(32)}, one_tile<T>, da.data(), db.data(), dc.data(), dd.data(), kK);
  const auto d = dd.read();
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      double sum = c[row * 8 + column];
      for (int k = 0; k < kK; ++k)
        sum +=
            static_cast<double>(static_cast<float>(a[row * kK + k])) * static_cast<float>(b[k * 8 + column]);
      EXPECT_EQ(d[row * 8 + column], sum) << row << ", " << column;
    }
}

// Rows of 8 elements lie in shared memory with a gap; r of each lane goes out as two elements.
template <int kCount, bool kTransposed>
__global__ void load(uint16_t* out) {
  DI_DYNAMIC_SHARED(bytes);
  auto* rows = reinterpret_cast<uint16_t*>(bytes);
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 8 * kCount)
    for (int k = 0; k < 8; ++k) rows[lane * 24 + k] = static_cast<uint16_t>(lane * 8 + k);
  sync_warp();
  const void* row = rows + lane % (8 * kCount) * 24;
  uint32_t r[kCount];
  if constexpr (kCount == 4)
    kTransposed ? ldmatrix_x4_trans(r, row) : ldmatrix_x4(r, row);
  else
    kTransposed ? ldmatrix_x2_trans(r, row) : ldmatrix_x2(r, row);
  for (int i = 0; i < kCount; ++i) {
    out[(lane * kCount + i) * 2] = static_cast<uint16_t>(r[i] & 0xffff);
    out[(lane * kCount + i) * 2 + 1] = static_cast<uint16_t>(r[i] >> 16);
  }
}

template <int kCount, bool kTransposed>
void check_load() {
  const DeviceArray<uint16_t> out(32 * kCount * 2);
  launch({.grid = dim3(1), .block = dim3(32), .smem = 32 * 48}, load<kCount, kTransposed>, out.data());
  const auto v = out.read();
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < kCount; ++i)
      for (int half = 0; half < 2; ++half) {
        int row = lane / 4, column = lane % 4 * 2 + half;
        if (kTransposed) std::swap(row, column);
        EXPECT_EQ(v[(lane * kCount + i) * 2 + half], (8 * i + row) * 8 + column) << lane << ", " << i;
      }
}

TEST(LoadMatrix, GivesFragments) {
  check_load<4, false>();
  check_load<4, true>();
  check_load<2, false>();
  check_load<2, true>();
}

// The value of an e4m3 byte by its definition: 1 sign, 4 exponent (bias 7), 3 mantissa; 0x7f NaN.
double e4m3_value(int bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  const double sign = bits & 128 ? -1 : 1;
  if (exponent == 15 && mantissa == 7) return std::nan("");
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(8 + mantissa, exponent - 10);
}

TEST(Conversions, E4m3) {
  for (int bits = 0; bits < 256; ++bits) {
    const double value = e4m3_value(bits);
    const float decoded = from_e4m3(static_cast<uint8_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(decoded));
      continue;
    }
    EXPECT_EQ(decoded, value) << bits;
    EXPECT_EQ(to_e4m3(decoded), bits);
    const auto pair = static_cast<uint16_t>(bits | 0x3800);  // 0x38: 1.0
    EXPECT_EQ(unpack2<__half>(from_e4m3x2<__half>(pair)).x, value);
    EXPECT_EQ(unpack2<__nv_bfloat16>(from_e4m3x2<__nv_bfloat16>(pair)).x, value);
    EXPECT_EQ(unpack2<__nv_bfloat16>(from_e4m3x2<__nv_bfloat16>(pair)).y, 1.0f);
    EXPECT_EQ(float2_from_e4m3x2(pair).y, 1.0f);
  }
  // Beyond the largest: 448. Ties go to the even mantissa.
  EXPECT_EQ(from_e4m3(to_e4m3(1e9f)), 448.0f);
  EXPECT_EQ(from_e4m3(to_e4m3(-500.0f)), -448.0f);
  EXPECT_EQ(from_e4m3(to_e4m3(17.0f)), 16.0f);
  EXPECT_EQ(from_e4m3(to_e4m3(19.0f)), 20.0f);
  EXPECT_EQ(to_e4m3x2(1.0f, -2.0f), 0xC038);
}

template <class T>
void check_pairs() {
  const uint32_t a = pack2<T>(1.5f, -2.0f), b = pack2<T>(4.0f, 0.25f), c = pack2<T>(1.0f, 8.0f);
  const auto expect = [](uint32_t bits, float low, float high) {
    EXPECT_EQ(unpack2<T>(bits).x, low);
    EXPECT_EQ(unpack2<T>(bits).y, high);
  };
  EXPECT_EQ(a & 0xffff, bit_cast<uint16_t>(from_float<T>(1.5f)));
  expect(a, 1.5f, -2.0f);
  expect(fma2<T>(a, b, c), 7.0f, 7.5f);
  expect(mul2<T>(a, b), 6.0f, -0.5f);
  expect(add2<T>(a, b), 5.5f, -1.75f);
  expect(sub2<T>(a, b), -2.5f, -2.25f);
  EXPECT_EQ(to_float(from_float<T>(0.375f)), 0.375f);
}

TEST(Conversions, Pairs) {
  check_pairs<__nv_bfloat16>();
  check_pairs<__half>();
}

TEST(Conversions, Bits) {
  EXPECT_EQ(popc(0xF0F0F001u), 13);
  EXPECT_EQ(clz(1), 31);
  EXPECT_EQ(clz(0), 32);
  EXPECT_EQ(ffs(0), 0);
  EXPECT_EQ(ffs(8), 4);
  EXPECT_EQ(umulhi(0x80000000u, 6), 3u);
  EXPECT_EQ(byte_perm(0x33221100u, 0x77665544u, 0x7410), 0x77441100u);
  EXPECT_EQ(byte_perm(0x00008000u, 0, 0x9999), 0xffffffffu);
  EXPECT_EQ(and_or(0xff0f, 0x0ff0, 1), 0x0f01u);
}

}  // namespace
}  // namespace deepinfer::cuda
