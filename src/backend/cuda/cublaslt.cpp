#include "backend/cuda/cublaslt.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "backend/cuda/error.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/timer.h"
#include "backend/cuda/tuning.h"
#include "base/check.h"
#include "base/log.h"

namespace deepinfer::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr int64_t kMostBias = int64_t{1} << 16;       // values of a bias; others need a kernel of their own
constexpr int kCandidates = 12;
constexpr int kRuns = 5;                      // of a candidate, at most
constexpr float kMostMicroseconds = 200'000;  // of a shape, all candidates together

static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(AlgoBits));

cudaDataType_t data_type(DType d) {
  if (d == DType::kF8E4M3) return CUDA_R_8F_E4M3;
  return d == DType::kF32 ? CUDA_R_32F : d == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

TuningKey key_of(const Gemm& g) {
  return {.n = g.n,
          .k = g.k,
          .m = tuning_bucket(g.m),
          .in = static_cast<int>(g.in),
          .out = static_cast<int>(g.out),
          .add = (g.add ? 1 : 0) + (g.bias != nullptr ? 2 : 0) + 4 * static_cast<int>(g.scales)};
}

AlgoBits bits_of(const cublasLtMatmulAlgo_t& algo) {
  AlgoBits bits;
  std::memcpy(bits.data(), &algo, sizeof(algo));
  return bits;
}

bool is_capturing(const Gpu& gpu) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  DI_CUDA_CHECK(cudaStreamIsCapturing(stream_of(gpu), &status));
  return status != cudaStreamCaptureStatusNone;
}

// The library's description of a product. Column-major as it thinks: D^T [n, m] = W [n, k] X^T [k, m], where
// W^T and X^T are what row-major W and X look like to it.
class Descriptors {
 public:
  Descriptors(const CublasLtApi& api, const Gemm& g) : api_(api) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    good_ = api.desc_create(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
            api.desc_set(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)) ==
                CUBLAS_STATUS_SUCCESS &&
            layout(&w, g.in, g.k, g.n, g.w_stride) && layout(&x, g.in, g.k, g.m, g.x_stride) &&
            layout(&d, g.out, g.n, g.m, g.d_stride) && (g.bias == nullptr || add_bias(g.bias)) &&
            (g.in != DType::kF8E4M3 || set_f8(g));
  }
  Descriptors(const Descriptors&) = delete;
  ~Descriptors() {
    for (cublasLtMatrixLayout_t l : {w, x, d})
      if (l != nullptr) api_.layout_destroy(l);
    if (operation != nullptr) api_.desc_destroy(operation);
  }
  bool good() const { return good_; }

  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, d = nullptr;

 private:
  bool layout(cublasLtMatrixLayout_t* l, DType dtype, int64_t rows, int64_t cols, int64_t stride) {
    return api_.layout_create(l, data_type(dtype), static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                              stride) == CUBLAS_STATUS_SUCCESS;
  }

  // Its type is D's.
  bool add_bias(const float* bias) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    return api_.desc_set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue)) ==
               CUBLAS_STATUS_SUCCESS &&
           api_.desc_set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias)) ==
               CUBLAS_STATUS_SUCCESS;
  }

  template <class T>
  bool set(cublasLtMatmulDescAttributes_t what, const T& value) {
    return api_.desc_set(operation, what, &value, sizeof(value)) == CUBLAS_STATUS_SUCCESS;
  }

  // To the library W is A and X is B.
  bool set_f8(const Gemm& g) {
    // Sums in the tensor cores' own precision, as other engines take: what FP8 itself rounds away is far
    // more. Scales of blocks are applied in F32 every 128 columns anyway.
    const int8_t fast = g.scales == GemmScales::kBlocks ? 0 : 1;
    if (!set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast)) return false;
    if (g.scales == GemmScales::kNone) return true;
    const int32_t mode = g.scales == GemmScales::kRows ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
                                                       : CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    return set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode) && set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode) &&
           set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, g.w_scale) &&
           set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, g.x_scale);
  }

  const CublasLtApi& api_;
  bool good_ = false;
};

}  // namespace

struct Cublaslt::State {
  CublasLtApi api;
  cublasLtHandle_t handle = nullptr;
  Buffer workspace;
  Buffer zeros;  // [kMostBias] F32: a bias while algorithms are timed
  TuningFile tuned;
  std::set<TuningKey> attempted;                              // not tried a second time
  std::map<TuningKey, std::optional<AlgoBits>> first_choice;  // the library's; nullopt: it has none

  ~State() {
    if (handle != nullptr) (void)api.destroy(handle);
  }

  cublasStatus_t run(Gpu& gpu, const Gemm& g, const Descriptors& d, const AlgoBits& bits) {
    const float beta = g.add ? 1.0f : 0.0f;
    cublasLtMatmulAlgo_t algo;
    std::memcpy(&algo, bits.data(), sizeof(algo));
    return api.matmul(handle, d.operation, &g.alpha, g.w, d.w, g.x, d.x, &beta, g.d, d.d, g.d, d.d, &algo,
                      workspace.data(), workspace.size(), stream_of(gpu));
  }

  // The library's candidates, best guess first. Asked for the end of the bucket, so that the answer does not
  // depend on which m came first.
  std::vector<AlgoBits> candidates(Gemm g, int most) {
    g.m = std::max(g.m, tuning_bucket(g.m));
    std::vector<AlgoBits> found;
    const Descriptors d(api, g);
    cublasLtMatmulPreference_t preference = nullptr;
    if (!d.good() || api.preference_create(&preference) != CUBLAS_STATUS_SUCCESS) return found;
    const uint64_t bytes = workspace.size();
    const uint32_t align = 16;
    bool good = api.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                   sizeof(bytes)) == CUBLAS_STATUS_SUCCESS;
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      good &= api.preference_set(preference, attribute, &align, sizeof(align)) == CUBLAS_STATUS_SUCCESS;
    std::vector<cublasLtMatmulHeuristicResult_t> results(most);
    int count = 0;
    if (good && api.heuristic(handle, d.operation, d.w, d.x, d.d, d.d, preference, most, results.data(),
                              &count) != CUBLAS_STATUS_SUCCESS)
      count = 0;
    api.preference_destroy(preference);
    for (int i = 0; i < count; ++i)
      if (results[i].state == CUBLAS_STATUS_SUCCESS && results[i].workspaceSize <= workspace.size())
        found.push_back(bits_of(results[i].algo));
    return found;
  }

  void tune(Gpu& gpu, Gemm g) {
    // What a residual holds must stay: all but nothing is added to it.
    if (g.add) g.alpha = 1e-30f;
    if (g.bias != nullptr) g.bias = reinterpret_cast<const float*>(zeros.data());
    const Descriptors d(api, g);
    if (!d.good()) return;
    Tuned best{.algo = {}, .microseconds = std::numeric_limits<float>::infinity()};
    Timer timer;
    float spent = 0;
    for (const AlgoBits& algo : candidates(g, kCandidates)) {
      const float us = time(gpu, g, d, algo, best.microseconds, timer, spent);
      if (us < best.microseconds) best = {algo, us};
      if (spent > kMostMicroseconds) break;
    }
    if (best.microseconds == std::numeric_limits<float>::infinity()) return;
    tuned.put(key_of(g), best);
    const Result<void> saved = tuned.save();
    if (!saved && !warned) log::warn("{}", saved.error().message);
    warned |= !saved;
  }

  // The least of a few runs, of fewer where it is not the best.
  float time(Gpu& gpu, const Gemm& g, const Descriptors& d, const AlgoBits& algo, float best, Timer& timer,
             float& spent) {
    float least = std::numeric_limits<float>::infinity();
    if (run(gpu, g, d, algo) != CUBLAS_STATUS_SUCCESS) return least;  // the first run also loads its code
    for (int i = 0; i < kRuns; ++i) {
      timer.start(stream_of(gpu));
      if (run(gpu, g, d, algo) != CUBLAS_STATUS_SUCCESS) break;
      const float us = timer.stop_us(stream_of(gpu));
      least = std::min(least, us);
      spent += us;
      if (least > 1.5f * best || least > 2000) break;
    }
    return least;
  }

  bool warned = false;
};

Cublaslt::Cublaslt(std::unique_ptr<State> state) : state_(std::move(state)) {}
Cublaslt::~Cublaslt() = default;

Result<std::shared_ptr<Cublaslt>> Cublaslt::open(Gpu& gpu, const CublasLtApi& api) {
  auto state = std::make_unique<State>();
  state->api = api;
  if (const cublasStatus_t code = api.create(&state->handle); code != CUBLAS_STATUS_SUCCESS) {
    state->handle = nullptr;
    return make_error(ErrorCode::kUnavailable, "cuBLASLt: it cannot be started: {}", api.status_string(code));
  }
  DI_ASSIGN(state->workspace, gpu.allocate(kWorkspaceBytes));
  DI_ASSIGN(state->zeros, gpu.allocate(kMostBias * sizeof(float)));
  gpu.fill(state->zeros.data(), 0, state->zeros.size());
  const GpuFacts& f = gpu.facts();
  const std::string subject =
      fmt::format("{} sm_{} driver {} cublaslt {}", f.name, f.capability, f.driver, api.get_version());
  state->tuned = TuningFile(tuning_path(subject), subject);
  return std::shared_ptr<Cublaslt>(new Cublaslt(std::move(state)));
}

bool Cublaslt::multiply(Gpu& gpu, const Gemm& g) {
  State& s = *state_;
  if (g.bias != nullptr && (g.n > kMostBias || g.out != DType::kF32)) return false;
  const TuningKey key = key_of(g);
  const bool capturing = is_capturing(gpu), free_to_choose = !gpu.options().deterministic;
  if (free_to_choose && !capturing && s.attempted.insert(key).second && !s.tuned.entries().contains(key))
    s.tune(gpu, g);
  // Also where something is tuned: a capture that finds this m refused cannot ask any more.
  auto choice = s.first_choice.find(key);
  if (choice == s.first_choice.end() && !capturing) {
    const std::vector<AlgoBits> found = s.candidates(g, 1);
    choice = s.first_choice.emplace(key, found.empty() ? std::nullopt : std::optional(found.front())).first;
  }
  const Descriptors d(s.api, g);
  if (!d.good()) return false;
  if (const auto found = s.tuned.entries().find(key); free_to_choose && found != s.tuned.entries().end()) {
    if (s.run(gpu, g, d, found->second.algo) == CUBLAS_STATUS_SUCCESS) return true;
    // Refused before anything was launched: the file's bits are not this library's, or this m is special.
    s.tuned.erase(key);
  }
  if (choice == s.first_choice.end()) return false;
  return choice->second && s.run(gpu, g, d, *choice->second) == CUBLAS_STATUS_SUCCESS;
}

}  // namespace deepinfer::cuda
