// cuBLASLt, loaded when the program runs: large products in BF16, F16 and FP8. Without it the own tile kernel
// serves (gemm_tile.cu).
//
// For every (dtypes, N, K, M bucket) the library's candidates are timed the first time that it is met on the
// card, and the best is kept on disk (tuning.h). Nothing is timed in a capture or in deterministic mode:
// there the library's own first choice serves.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "backend/cuda_gpu.h"
#include "base/arena.h"
#include "deepinfer/result.h"
#include "tensor/dtype.h"

namespace deepinfer::cuda {

// The functions in use. Tests of the emulation fill it with plain loops.
struct CublasLtApi {
  decltype(&::cublasLtGetVersion) get_version = nullptr;
  decltype(&::cublasLtGetStatusString) status_string = nullptr;
  decltype(&::cublasLtCreate) create = nullptr;
  decltype(&::cublasLtDestroy) destroy = nullptr;
  decltype(&::cublasLtMatmul) matmul = nullptr;
  decltype(&::cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&::cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&::cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&::cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&::cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&::cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&::cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&::cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&::cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
};

// From the library that base/shared_library.h finds; version 13 or later. Its own file (cublaslt_load.cpp),
// for the emulation has another one.
Result<CublasLtApi> load_cublaslt();

// Factors of the codes of F8 operands, all F32 on the device.
enum class GemmScales : uint8_t {
  kNone,
  kRows,    // x_scale [m], w_scale [n]: sm_90 alone
  kBlocks,  // of 128 elements of K: x_scale [k / 128][m], w_scale [k / 128][n], whole multiples of 4; sm_90
};

// D [M, N] = X [M, K] W [N, K]^T + bias, plus D before it if `add`. Row-major, strides in elements.
struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* w = nullptr;
  int64_t w_stride = 0;
  void* d = nullptr;
  int64_t d_stride = 0;
  DType in = DType::kBF16;   // of x and w: kBF16, kF16, kF8E4M3 (n, k and the strides multiples of 16)
  DType out = DType::kBF16;  // as `in`, or kF32; of F8: any of the other three
  GemmScales scales = GemmScales::kNone;
  const float *x_scale = nullptr, *w_scale = nullptr;
  float alpha = 1;
  bool add = false;
  const float* bias = nullptr;  // [N], at a multiple of 16, of an F32 D; or null; not of F8
};

// Owner: the Gpu's parts; used on its thread.
class Cublaslt {
 public:
  // Allocates the workspace (fixed for good) and reads the tuned algorithms of this card. An error says why
  // the library cannot serve; nothing else then.
  static Result<std::shared_ptr<Cublaslt>> open(Gpu& gpu);
  static Result<std::shared_ptr<Cublaslt>> open(Gpu& gpu, const CublasLtApi& api);
  ~Cublaslt();

  // Launches in the Gpu's stream. False: the library has no algorithm for this one (or was not asked for it
  // before this capture), use the own kernel.
  bool multiply(Gpu& gpu, const Gemm& gemm);

 private:
  struct State;
  explicit Cublaslt(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Sets gpu.parts().cublaslt, gpu.fast.cublaslt and cublaslt_f8, or warns once why the own kernels serve.
void open_cublaslt(Gpu& gpu);

}  // namespace deepinfer::cuda
