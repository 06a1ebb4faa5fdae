// The stand-in for cuBLASLt: descriptors, the checks that the library makes of them, and products that run
// when their stream does. What the real one refuses is refused here (alignment, fp8 only as TN, workspace).
#include "emulation/cublaslt.h"

#include <cstring>
#include <memory>

#include "backend/cuda/cublaslt.h"
#include "base/check.h"
#include "emulation/runtime.h"

namespace deepinfer::emulation {
namespace {

constexpr uint64_t kMagic = 0x6c74656d75;
constexpr size_t kWorkspaces[] = {0, 1 << 20, 4 << 20};  // of the three algorithms

struct Description {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;
  cublasOperation_t trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N;
  cublasLtPointerMode_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  int32_t bias_type = -1;  // as D
  const float *a_scale = nullptr, *b_scale = nullptr, *d_scale = nullptr;
  int32_t a_scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  int32_t b_scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  int8_t fast_accumulation = 0;
};

struct Preference {
  uint64_t workspace = 0;
  uint32_t align[4] = {256, 256, 256, 256};  // of A, B, C, D
};

// What the library hides in cublasLtMatmulAlgo_t.
struct Algorithm {
  uint64_t magic, id, workspace, align, problem, unused[3];
};
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t));

Description* description(cublasLtMatmulDesc_t handle) {
  return reinterpret_cast<Description*>(handle);
}
MatrixLayout* layout(cublasLtMatrixLayout_t handle) {
  return reinterpret_cast<MatrixLayout*>(handle);
}
Preference* preference(cublasLtMatmulPreference_t handle) {
  return reinterpret_cast<Preference*>(handle);
}

template <class T>
cublasStatus_t set(T& field, const void* value, size_t bytes) {
  if (!value || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

// Which kinds of problem one algorithm serves.
uint64_t problem_of(const Description& d, const MatrixLayout& a, const MatrixLayout& out) {
  return static_cast<uint64_t>(a.type) << 32 | static_cast<uint64_t>(out.type) << 16 |
         static_cast<uint64_t>(d.a_scale_mode) << 12 | static_cast<uint64_t>(d.trans_a) << 8 |
         static_cast<uint64_t>(d.trans_b);
}

bool is_layout(const MatrixLayout& l) {
  const int64_t least = l.order == CUBLASLT_ORDER_COL ? l.rows : l.cols;
  return l.rows > 0 && l.cols > 0 && l.ld >= least && element_bytes(l.type) != 0;
}

// What the library knows no kernel for is NOT_SUPPORTED, what cannot be is INVALID_VALUE.
cublasStatus_t check_types(const Description& d, const MatrixLayout& a, const MatrixLayout& b,
                           const MatrixLayout& c, const MatrixLayout& out) {
  if (d.compute != CUBLAS_COMPUTE_32F || d.scale != CUDA_R_32F ||
      d.pointer_mode != CUBLASLT_POINTER_MODE_HOST)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  for (const MatrixLayout* l : {&a, &b, &c, &out})
    if (l->batch != 1) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (a.type != b.type) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool fp8 = a.type == CUDA_R_8F_E4M3;
  if (!fp8 && (out.type != a.type && out.type != CUDA_R_32F)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!fp8 && (c.type != out.type || d.a_scale || d.b_scale || d.d_scale)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (d.epilogue != CUBLASLT_EPILOGUE_DEFAULT && d.epilogue != CUBLASLT_EPILOGUE_BIAS)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (d.epilogue == CUBLASLT_EPILOGUE_BIAS && !d.bias) return CUBLAS_STATUS_INVALID_VALUE;
  return CUBLAS_STATUS_SUCCESS;
}

// Scales of FP8 operands: vectors and blocks are sm_90's alone, and come in pairs.
cublasStatus_t check_scales(const Description& d, const MatrixLayout& out, int capability) {
  if (d.a_scale_mode != d.b_scale_mode) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool fp8_out = out.type == CUDA_R_8F_E4M3;
  if (d.d_scale && !fp8_out) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (d.a_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F) return CUBLAS_STATUS_SUCCESS;
  const bool blocks = d.a_scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  if ((!blocks && d.a_scale_mode != CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F) || capability != 90 ||
      fp8_out)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!d.a_scale || !d.b_scale) return CUBLAS_STATUS_INVALID_VALUE;
  if (blocks && (out.rows % 4 || out.cols % 4)) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (const float* scale : {d.a_scale, d.b_scale})
    if (reinterpret_cast<uintptr_t>(scale) % 16) return CUBLAS_STATUS_NOT_SUPPORTED;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t check_fp8(const Description& d, const MatrixLayout& a, const MatrixLayout& b,
                         const MatrixLayout& c, const MatrixLayout& out) {
  const MachineConfig& config = machine().config;
  const int capability = 10 * config.major + config.minor;
  if (capability < 89) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (d.trans_a != CUBLAS_OP_T || d.trans_b != CUBLAS_OP_N) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (const MatrixLayout* l : {&a, &b, &c, &out})
    if (l->order != CUBLASLT_ORDER_COL || l->ld * static_cast<int64_t>(element_bytes(l->type)) % 16)
      return CUBLAS_STATUS_NOT_SUPPORTED;
  if (a.rows % 16 || a.cols % 16) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (c.type == CUDA_R_8F_E4M3 || (out.type != CUDA_R_8F_E4M3 && c.type != out.type))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  // A bias is BF16 or F16, and no F32 one.
  if (d.epilogue == CUBLASLT_EPILOGUE_BIAS &&
      (d.bias_type < 0 ? out.type : static_cast<cudaDataType_t>(d.bias_type)) == CUDA_R_32F)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  return check_scales(d, out, capability);
}

cublasStatus_t check(const Description& d, const MatrixLayout& a, const MatrixLayout& b,
                     const MatrixLayout& c, const MatrixLayout& out) {
  for (const MatrixLayout* l : {&a, &b, &c, &out})
    if (!is_layout(*l)) return CUBLAS_STATUS_INVALID_VALUE;
  const bool at = d.trans_a != CUBLAS_OP_N, bt = d.trans_b != CUBLAS_OP_N;
  const int64_t m = at ? a.cols : a.rows, ka = at ? a.rows : a.cols;
  const int64_t kb = bt ? b.cols : b.rows, n = bt ? b.rows : b.cols;
  if (ka != kb || out.rows != m || out.cols != n || c.rows != m || c.cols != n)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (const cublasStatus_t status = check_types(d, a, b, c, out)) return status;
  return a.type == CUDA_R_8F_E4M3 ? check_fp8(d, a, b, c, out) : CUBLAS_STATUS_SUCCESS;
}

// --- The library's functions.

size_t get_version() {
  return 130000;
}

const char* status_string(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    default:
      return "CUBLAS_STATUS_?";
  }
}

cublasStatus_t create(cublasLtHandle_t* handle) {
  // Allocates on the device, and so may not stand in a capture.
  const cudaError_t error = runtime_call([] { return machine().unsafe_in_capture(); });
  if (error != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = reinterpret_cast<cublasLtHandle_t>(new uint64_t(kMagic));
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t destroy(cublasLtHandle_t handle) {
  delete reinterpret_cast<uint64_t*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t desc_create(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType_t scale) {
  *desc = reinterpret_cast<cublasLtMatmulDesc_t>(new Description{.compute = compute, .scale = scale});
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t desc_destroy(cublasLtMatmulDesc_t desc) {
  delete description(desc);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t desc_set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what, const void* value,
                        size_t bytes) {
  Description& d = *description(desc);
  switch (what) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(d.trans_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(d.trans_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return set(d.pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(d.epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(d.bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return set(d.bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
      return set(d.a_scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
      return set(d.b_scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_D_SCALE_POINTER:
      return set(d.d_scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
      return set(d.a_scale_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
      return set(d.b_scale_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
      return set(d.fast_accumulation, value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t layout_create(cublasLtMatrixLayout_t* out, cudaDataType type, uint64_t rows, uint64_t cols,
                             int64_t ld) {
  *out = reinterpret_cast<cublasLtMatrixLayout_t>(new MatrixLayout{
      .type = type, .rows = static_cast<int64_t>(rows), .cols = static_cast<int64_t>(cols), .ld = ld});
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t layout_destroy(cublasLtMatrixLayout_t l) {
  delete layout(l);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t preference_create(cublasLtMatmulPreference_t* out) {
  *out = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t preference_destroy(cublasLtMatmulPreference_t p) {
  delete preference(p);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t preference_set(cublasLtMatmulPreference_t handle, cublasLtMatmulPreferenceAttributes_t what,
                              const void* value, size_t bytes) {
  Preference& p = *preference(handle);
  switch (what) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return set(p.workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return set(p.align[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return set(p.align[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return set(p.align[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return set(p.align[3], value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t heuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                         cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                         cublasLtMatmulPreference_t wish, int most, cublasLtMatmulHeuristicResult_t* results,
                         int* count) {
  *count = 0;
  if (!handle || !desc || !wish || most < 1) return CUBLAS_STATUS_INVALID_VALUE;
  if (const cublasStatus_t status = check(*description(desc), *layout(a), *layout(b), *layout(c), *layout(d)))
    return status;
  const Preference& p = *preference(wish);
  uint32_t align = 256;
  for (const uint32_t one : p.align) align = std::min(align, one);
  if (layout(a)->type == CUDA_R_8F_E4M3 && align < 16) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (uint64_t id = 0; id < std::size(kWorkspaces) && *count < most; ++id) {
    if (kWorkspaces[id] > p.workspace) continue;
    const Algorithm algorithm{.magic = kMagic,
                              .id = id,
                              .workspace = kWorkspaces[id],
                              .align = align,
                              .problem = problem_of(*description(desc), *layout(a), *layout(d)),
                              .unused = {}};
    cublasLtMatmulHeuristicResult_t& result = results[(*count)++];
    result = {};
    std::memcpy(&result.algo, &algorithm, sizeof algorithm);
    result.workspaceSize = kWorkspaces[id];
    result.state = CUBLAS_STATUS_SUCCESS;
    result.wavesCount = 1;
  }
  return *count ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

// The algorithm must serve this problem with these addresses and this workspace.
cublasStatus_t check_algorithm(const cublasLtMatmulAlgo_t* algo, const MatrixProduct& p, uint64_t problem,
                               const void* workspace, size_t workspace_bytes, Algorithm& out) {
  out = {.magic = kMagic, .id = 0, .workspace = 0, .align = 16, .problem = problem, .unused = {}};
  if (algo) std::memcpy(&out, algo, sizeof out);
  if (out.magic != kMagic) return CUBLAS_STATUS_INVALID_VALUE;
  if (out.problem != problem || out.id >= std::size(kWorkspaces)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (out.workspace > workspace_bytes || (out.workspace && reinterpret_cast<uintptr_t>(workspace) % 16))
    return CUBLAS_STATUS_INVALID_VALUE;
  for (const void* address : {p.a, p.b, p.beta != 0 ? p.c : p.d, static_cast<const void*>(p.d)})
    if (!address || reinterpret_cast<uintptr_t>(address) % out.align) return CUBLAS_STATUS_INVALID_VALUE;
  return CUBLAS_STATUS_SUCCESS;
}

void check_memory(const char* what, const void* p, size_t bytes) {
  if (p && !machine().on_device(p, bytes))
    throw_failure(std::string("cublasLtMatmul: ") + std::to_string(bytes) + " bytes of " + what +
                  " are not in one allocation of the device's memory");
}

void run(const MatrixProduct& p, const void* workspace, size_t workspace_bytes) {
  check_memory("A", p.a, extent(p.a_layout));
  check_memory("B", p.b, extent(p.b_layout));
  if (p.beta != 0) check_memory("C", p.c, extent(p.c_layout));
  check_memory("D", p.d, extent(p.d_layout));
  if (p.bias)
    check_memory("the bias", p.bias, static_cast<size_t>(p.d_layout.rows) * element_bytes(p.bias_type));
  const bool vector = p.scale_mode != CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  const int64_t groups =
      p.scale_mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F ? (p.a_layout.rows + 127) / 128 : 1;
  check_memory("A's scale", p.a_scale, 4 * static_cast<size_t>(vector ? groups * p.d_layout.rows : 1));
  check_memory("B's scale", p.b_scale, 4 * static_cast<size_t>(vector ? groups * p.d_layout.cols : 1));
  check_memory("D's scale", p.d_scale, 4);
  if (workspace_bytes) {
    check_memory("the workspace", workspace, workspace_bytes);
    fill_poison(const_cast<void*>(workspace), workspace_bytes);
  }
  multiply(p);
  machine().microseconds += 1 + 1e-3 * static_cast<double>(p.d_layout.rows * p.d_layout.cols);
}

cublasStatus_t matmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                      cublasLtMatrixLayout_t al, const void* b, cublasLtMatrixLayout_t bl, const void* beta,
                      const void* c, cublasLtMatrixLayout_t cl, void* d, cublasLtMatrixLayout_t dl,
                      const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspace_bytes,
                      cudaStream_t stream) {
  if (!handle || !desc || !alpha || !beta) return CUBLAS_STATUS_INVALID_VALUE;
  const Description& what = *description(desc);
  if (const cublasStatus_t status = check(what, *layout(al), *layout(bl), *layout(cl), *layout(dl)))
    return status;
  MatrixProduct p{.a = a,
                  .b = b,
                  .c = c,
                  .d = d,
                  .a_layout = *layout(al),
                  .b_layout = *layout(bl),
                  .c_layout = *layout(cl),
                  .d_layout = *layout(dl),
                  .a_transposed = what.trans_a != CUBLAS_OP_N,
                  .b_transposed = what.trans_b != CUBLAS_OP_N,
                  .alpha = *static_cast<const float*>(alpha),
                  .beta = *static_cast<const float*>(beta),
                  .a_scale = what.a_scale,
                  .b_scale = what.b_scale,
                  .d_scale = what.d_scale,
                  .scale_mode = what.a_scale_mode,
                  .bias = what.epilogue == CUBLASLT_EPILOGUE_BIAS ? what.bias : nullptr};
  p.bias_type = what.bias_type < 0 ? p.d_layout.type : static_cast<cudaDataType_t>(what.bias_type);
  Algorithm algorithm{};
  if (const cublasStatus_t status = check_algorithm(algo, p, problem_of(what, p.a_layout, p.d_layout),
                                                    workspace, workspace_bytes, algorithm))
    return status;
  p.backwards = algorithm.id == 1;
  const cudaError_t error =
      enqueue_work([p, workspace, bytes = algorithm.workspace] { run(p, workspace, bytes); }, stream);
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // namespace

}  // namespace deepinfer::emulation

namespace deepinfer::cuda {

std::optional<CudaLibrary> cublaslt_library() {
  const Result<CublasLtApi> api = load_cublaslt();
  if (!api) return CudaLibrary{.version = "", .path = "", .problem = api.error().message};
  return CudaLibrary{.version = "13.0.0", .path = "emulated", .problem = ""};
}

Result<CublasLtApi> load_cublaslt() {
  namespace em = deepinfer::emulation;
  const std::lock_guard lock(em::machine_mutex());
  if (!em::machine().config.cublaslt)
    return make_error(ErrorCode::kUnavailable, "cuBLASLt: libcublasLt.so.13 not found (emulated)");
  return CublasLtApi{.get_version = em::get_version,
                     .status_string = em::status_string,
                     .create = em::create,
                     .destroy = em::destroy,
                     .matmul = em::matmul,
                     .desc_create = em::desc_create,
                     .desc_destroy = em::desc_destroy,
                     .desc_set = em::desc_set,
                     .layout_create = em::layout_create,
                     .layout_destroy = em::layout_destroy,
                     .preference_create = em::preference_create,
                     .preference_destroy = em::preference_destroy,
                     .preference_set = em::preference_set,
                     .heuristic = em::heuristic};
}

}  // namespace deepinfer::cuda
