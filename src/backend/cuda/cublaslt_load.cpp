#include "backend/cuda/cublaslt.h"
#include "base/check.h"
#include "base/shared_library.h"

namespace deepinfer::cuda {
namespace {

constexpr size_t kOldest = 130000;  // 13.0, as its functions were when this was compiled

template <class Function>
Result<void> take(const SharedLibrary& library, const char* name, Function*& function) {
  DI_ASSIGN(function, library.symbol<Function>(name));
  return {};
}

Result<CublasLtApi> read(const SharedLibrary& library) {
  CublasLtApi a;
  DI_TRY(take(library, "cublasLtGetVersion", a.get_version));
  const size_t version = a.get_version();
  if (version < kOldest)
    return make_error(ErrorCode::kUnavailable, "version {}.{}, expected 13.0 or newer", version / 10000,
                      version % 10000 / 100);
  DI_TRY(take(library, "cublasLtGetStatusString", a.status_string));
  DI_TRY(take(library, "cublasLtCreate", a.create));
  DI_TRY(take(library, "cublasLtDestroy", a.destroy));
  DI_TRY(take(library, "cublasLtMatmul", a.matmul));
  DI_TRY(take(library, "cublasLtMatmulDescCreate", a.desc_create));
  DI_TRY(take(library, "cublasLtMatmulDescDestroy", a.desc_destroy));
  DI_TRY(take(library, "cublasLtMatmulDescSetAttribute", a.desc_set));
  DI_TRY(take(library, "cublasLtMatrixLayoutCreate", a.layout_create));
  DI_TRY(take(library, "cublasLtMatrixLayoutDestroy", a.layout_destroy));
  DI_TRY(take(library, "cublasLtMatmulPreferenceCreate", a.preference_create));
  DI_TRY(take(library, "cublasLtMatmulPreferenceDestroy", a.preference_destroy));
  DI_TRY(take(library, "cublasLtMatmulPreferenceSetAttribute", a.preference_set));
  DI_TRY(take(library, "cublasLtMatmulAlgoGetHeuristic", a.heuristic));
  return a;
}

Result<SharedLibrary> find_library() {
  const LibrarySpec spec{
      .name = "cuBLASLt",
      .files = {"libcublasLt.so.13"},
      .remedy =
          "Install CUDA 13's cuBLAS (PyPI: nvidia-cublas), or set DEEPINFER_CUDA_LIB_DIR to the folder "
          "that has libcublasLt.so.13.",
      .check = [](const SharedLibrary& library) -> Result<void> {
        DI_TRY(read(library));
        return {};
      }};
  return load_library(spec);
}

}  // namespace

Result<CublasLtApi> load_cublaslt() {
  DI_ASSIGN(const SharedLibrary library, find_library());
  return read(library);
}

std::optional<CudaLibrary> cublaslt_library() {
  const Result<SharedLibrary> library = find_library();
  if (!library) return CudaLibrary{.version = "", .path = "", .problem = library.error().message};
  const Result<CublasLtApi> api = read(*library);
  const size_t version = api ? api->get_version() : 0;
  return CudaLibrary{
      .version = fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100),
      .path = library->path().string(),
      .problem = ""};
}

}  // namespace deepinfer::cuda
