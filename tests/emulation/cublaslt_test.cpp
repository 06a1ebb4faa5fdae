// The stand-in for cuBLASLt: products against double loops, and what the library refuses.
#include "backend/cuda/cublaslt.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <gtest/gtest.h>

#include <random>

#include "emulation/device_array.h"
#include "emulation/emulated_gpu.h"

namespace deepinfer::cuda {
namespace {

using emulation::DeviceArray;

template <class T>
constexpr cudaDataType_t kType = std::is_same_v<T, float>           ? CUDA_R_32F
                                 : std::is_same_v<T, __half>        ? CUDA_R_16F
                                 : std::is_same_v<T, __nv_bfloat16> ? CUDA_R_16BF
                                                                    : CUDA_R_8F_E4M3;

struct Problem {
  int m = 16, n = 5, k = 32;
  bool ta = true, tb = false;
  int gap = 0;  // between the columns of A, B and D, in elements
  float alpha = 1, beta = 0;
  bool bias = false, scales = false;
  int32_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;  // of both scales
};

// Of 128 elements of K, of an outer index, or of everything.
size_t scale_at(int32_t mode, int k, int outer, int count) {
  if (mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F) return static_cast<size_t>(k / 128 * count + outer);
  return mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F ? static_cast<size_t>(outer) : 0;
}

std::vector<float> powers_of_two(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = i % 3 == 0 ? 2.0f : i % 3 == 1 ? 0.5f : 1.0f;
  return values;
}

class CublasLt : public ::testing::Test {
 protected:
  void SetUp() override {
    emulation::set_seed(3);
    emulation::reset_machine();
    api_ = load_cublaslt().value();
    EXPECT_EQ(api_.create(&handle_), CUBLAS_STATUS_SUCCESS);
  }
  void TearDown() override {
    api_.destroy(handle_);
    emulation::reset_machine();
  }

  template <class T>
  static std::vector<T> random(size_t count, std::mt19937& source) {
    std::vector<T> values(count);
    for (T& v : values) v = static_cast<T>(static_cast<float>(static_cast<int>(source() % 15) - 7) / 4);
    return values;
  }

  // The status of the heuristic, or of each product; checks every result.
  template <class In, class Out>
  cublasStatus_t run(const Problem& p) {
    std::mt19937 source(9);
    const int a_rows = p.ta ? p.k : p.m, a_cols = p.ta ? p.m : p.k, b_rows = p.tb ? p.n : p.k,
              b_cols = p.tb ? p.k : p.n;
    const int lda = a_rows + p.gap, ldb = b_rows + p.gap, ldd = p.m + p.gap;
    const auto a = random<In>(lda * a_cols, source), b = random<In>(ldb * b_cols, source);
    const auto before = random<Out>(ldd * p.n, source), bias = random<Out>(p.m, source);
    const DeviceArray<In> da(a), db(b);
    const DeviceArray<Out> dbias(bias);
    const std::vector<float> sa = powers_of_two(scale_at(p.mode, p.k - 1, p.m - 1, p.m) + 1),
                             sb = powers_of_two(scale_at(p.mode, p.k - 1, p.n - 1, p.n) + 1);
    const DeviceArray<float> a_scale(sa), b_scale(sb);
    const DeviceArray<char> workspace(8 << 20);

    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t la = nullptr, lb = nullptr, ld = nullptr;
    cublasLtMatmulPreference_t preference = nullptr;
    api_.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const auto attribute = [&](cublasLtMatmulDescAttributes_t what, auto value) {
      EXPECT_EQ(api_.desc_set(desc, what, &value, sizeof value), CUBLAS_STATUS_SUCCESS);
    };
    attribute(CUBLASLT_MATMUL_DESC_TRANSA, p.ta ? CUBLAS_OP_T : CUBLAS_OP_N);
    attribute(CUBLASLT_MATMUL_DESC_TRANSB, p.tb ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (p.bias) attribute(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    if (p.bias) attribute(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(dbias.data()));
    if (p.scales) attribute(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(a_scale.data()));
    if (p.scales) attribute(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(b_scale.data()));
    if (p.scales) attribute(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, p.mode);
    if (p.scales) attribute(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, p.mode);
    api_.layout_create(&la, kType<In>, a_rows, a_cols, lda);
    api_.layout_create(&lb, kType<In>, b_rows, b_cols, ldb);
    api_.layout_create(&ld, kType<Out>, p.m, p.n, ldd);
    api_.preference_create(&preference);
    const uint64_t bytes = workspace.size();
    api_.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    cublasLtMatmulHeuristicResult_t results[8];
    int count = 0;
    cublasStatus_t status = api_.heuristic(handle_, desc, la, lb, ld, ld, preference, 8, results, &count);
    EXPECT_EQ(count, status == CUBLAS_STATUS_SUCCESS ? 3 : 0);
    for (int i = 0; i < count; ++i) {
      const DeviceArray<Out> d(before);
      EXPECT_LE(results[i].workspaceSize, bytes);
      if (results[i].workspaceSize)
        EXPECT_EQ(api_.matmul(handle_, desc, &p.alpha, da.data(), la, db.data(), lb, &p.beta, d.data(), ld,
                              d.data(), ld, &results[i].algo, workspace.data(), results[i].workspaceSize - 1,
                              nullptr),
                  CUBLAS_STATUS_INVALID_VALUE);
      status = api_.matmul(handle_, desc, &p.alpha, da.data(), la, db.data(), lb, &p.beta, d.data(), ld,
                           d.data(), ld, &results[i].algo, workspace.data(), bytes, nullptr);
      if (status != CUBLAS_STATUS_SUCCESS) break;
      const auto out = d.read();
      for (int col = 0; col < p.n; ++col)
        for (int row = 0; row < p.m; ++row) {
          double sum = 0;
          for (int k = 0; k < p.k; ++k) {
            const double scale =
                p.scales ? sa[scale_at(p.mode, k, row, p.m)] * sb[scale_at(p.mode, k, col, p.n)] : 1.0;
            sum += scale * static_cast<float>(a[p.ta ? row * lda + k : k * lda + row]) *
                   static_cast<float>(b[p.tb ? k * ldb + col : col * ldb + k]);
          }
          const double expected = p.alpha * sum + p.beta * static_cast<float>(before[col * ldd + row]) +
                                  (p.bias ? static_cast<float>(bias[row]) : 0);
          EXPECT_EQ(static_cast<float>(out[col * ldd + row]),
                    static_cast<float>(static_cast<Out>(static_cast<float>(expected))));
        }
    }
    for (cublasLtMatrixLayout_t l : {la, lb, ld}) api_.layout_destroy(l);
    api_.preference_destroy(preference);
    api_.desc_destroy(desc);
    return status;
  }

  CublasLtApi api_;
  cublasLtHandle_t handle_ = nullptr;
};

TEST_F(CublasLt, EqualsDoubleLoops) {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true}) {
      EXPECT_EQ((run<__nv_bfloat16, __nv_bfloat16>({.m = 7, .n = 9, .k = 24, .ta = ta, .tb = tb})), 0);
      EXPECT_EQ((run<__half, __half>({.ta = ta, .tb = tb, .gap = 8, .alpha = 0.5f})), 0);
      EXPECT_EQ((run<__nv_bfloat16, float>({.ta = ta, .tb = tb, .gap = 3, .beta = 1})), 0);
      EXPECT_EQ((run<float, float>({.m = 1, .n = 1, .k = 1, .ta = ta, .tb = tb, .bias = true})), 0);
    }
  EXPECT_EQ((run<__nv_bfloat16, __nv_bfloat16>({.bias = true})), 0);
}

TEST_F(CublasLt, Fp8OnlyTransposedInMultiplesOf16) {
  using E4m3 = __nv_fp8_e4m3;
  EXPECT_EQ((run<E4m3, __nv_bfloat16>({.n = 8, .scales = true})), 0);
  EXPECT_EQ((run<E4m3, float>({.n = 3})), 0);
  EXPECT_EQ((run<E4m3, float>({.ta = false})), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ((run<E4m3, float>({.tb = true})), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ((run<E4m3, float>({.m = 24})), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ((run<E4m3, float>({.k = 40})), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ((run<E4m3, float>({.gap = 8})), CUBLAS_STATUS_NOT_SUPPORTED);
  emulation::reset_machine({.major = 8, .minor = 6});
  EXPECT_EQ((run<E4m3, float>({})), CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST_F(CublasLt, Fp8ScalesOfVectorsAndBlocksOnHopperAlone) {
  using E4m3 = __nv_fp8_e4m3;
  const int32_t outer = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
                blocks = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  EXPECT_EQ((run<E4m3, __nv_bfloat16>({.n = 7, .scales = true, .mode = outer})), 0);
  EXPECT_EQ((run<E4m3, float>({.beta = 1, .scales = true, .mode = outer})), 0);
  EXPECT_EQ((run<E4m3, float>({.n = 8, .k = 320, .scales = true, .mode = blocks})), 0);
  EXPECT_EQ((run<E4m3, float>({.n = 7, .k = 320, .scales = true, .mode = blocks})),
            CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ((run<E4m3, float>({.mode = blocks})), 0) << "no scales: the mode is not set";
  EXPECT_EQ((run<E4m3, float>({.bias = true})), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ((run<E4m3, __nv_bfloat16>({.bias = true})), 0);
  for (const auto& [major, minor] : {std::pair{8, 9}, {10, 0}, {12, 0}}) {
    emulation::reset_machine({.major = major, .minor = minor});
    EXPECT_EQ((run<E4m3, float>({.n = 8, .scales = true})), 0);
    EXPECT_EQ((run<E4m3, float>({.n = 8, .scales = true, .mode = outer})), CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT_EQ((run<E4m3, float>({.n = 8, .scales = true, .mode = blocks})), CUBLAS_STATUS_NOT_SUPPORTED);
  }
}

TEST_F(CublasLt, RefusesTypesThatItHasNoKernelFor) {
  EXPECT_EQ((run<__half, __nv_bfloat16>({})), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ((run<__half, __half>({.scales = true})), CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST_F(CublasLt, ChecksAddressesExtentsAndAlgorithms) {
  const DeviceArray<float> a(64), b(64), d(64);
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t good = nullptr, large = nullptr, narrow = nullptr, other = nullptr;
  api_.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  api_.layout_create(&good, CUDA_R_32F, 8, 8, 8);
  api_.layout_create(&large, CUDA_R_32F, 8, 8, 9);
  api_.layout_create(&narrow, CUDA_R_32F, 8, 8, 7);
  api_.layout_create(&other, CUDA_R_32F, 7, 8, 8);
  const auto multiply = [&](const float* from, cublasLtMatrixLayout_t layout,
                            const cublasLtMatmulAlgo_t* algo) {
    const float one = 1, zero = 0;
    return api_.matmul(handle_, desc, &one, from, layout, b.data(), good, &zero, d.data(), good, d.data(),
                       good, algo, nullptr, 0, nullptr);
  };
  EXPECT_EQ(multiply(a.data() + 1, good, nullptr), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(multiply(nullptr, good, nullptr), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(multiply(a.data(), narrow, nullptr), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(multiply(a.data(), other, nullptr), CUBLAS_STATUS_INVALID_VALUE);
  const cublasLtMatmulAlgo_t garbage{{1, 2, 3}};
  EXPECT_EQ(multiply(a.data(), good, &garbage), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(multiply(a.data(), good, nullptr), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(multiply(a.data(), large, nullptr), CUBLAS_STATUS_SUCCESS);
  EXPECT_THROW((void)cudaDeviceSynchronize(), emulation::Failure);
  EXPECT_EQ(emulation::take_failures(), 1);
  for (cublasLtMatrixLayout_t l : {good, large, narrow, other}) api_.layout_destroy(l);
  api_.desc_destroy(desc);
}

TEST_F(CublasLt, MayBeMissing) {
  emulation::reset_machine({.cublaslt = false});
  EXPECT_FALSE(load_cublaslt().ok());
}

}  // namespace
}  // namespace deepinfer::cuda
