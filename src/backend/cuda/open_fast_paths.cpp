#include "backend/cuda/cublaslt.h"
#include "backend/cuda/fast/fast_attention.h"
#include "backend/cuda/self_check.h"
#include "base/check.h"
#include "base/paths.h"

namespace deepinfer::cuda {

Result<void> open_fast_paths(Gpu& gpu) {
  open_cublaslt(gpu);
  DI_ASSIGN(const FastBuilt ready, prepare_fast_attention(gpu));
  gpu.fast.fa2 = ready.fa2;
  gpu.fast.xqa = ready.xqa;
  if (gpu.options().self_check) self_check(gpu, path_checks(), cache_dir());
  return {};
}

}  // namespace deepinfer::cuda
