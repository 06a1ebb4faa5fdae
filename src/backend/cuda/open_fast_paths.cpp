#include "backend/cuda/cublaslt.h"
#include "backend/cuda/fast/fast_attention.h"
#include "backend/cuda/self_check.h"
#include "backend/cuda_error.h"
#include "base/check.h"
#include "base/paths.h"

namespace deepinfer::cuda {

Result<void> Gpu::open_fast_paths() {
  try {
    open_cublaslt(*this);
    DI_ASSIGN(const FastBuilt ready, prepare_fast_attention(*this));
    fast.fa2 = ready.fa2;
    fast.xqa = ready.xqa;
    if (options_.self_check) self_check(*this, path_checks(), cache_dir());
    return {};
  } catch (const CudaError& e) {
    return make_error(ErrorCode::kMemory, "{}", e.what());
  }
}

}  // namespace deepinfer::cuda
