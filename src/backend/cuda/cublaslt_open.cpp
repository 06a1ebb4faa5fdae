// Apart from cublaslt.cpp, so that tests which bring their own library need not have one that is loaded.
#include "backend/cuda/cublaslt.h"
#include "backend/cuda/f8.h"
#include "backend/cuda/parts.h"
#include "base/check.h"
#include "base/log.h"

namespace deepinfer::cuda {

Result<std::shared_ptr<Cublaslt>> Cublaslt::open(Gpu& gpu) {
  DI_ASSIGN(const CublasLtApi api, load_cublaslt());
  return open(gpu, api);
}

void open_cublaslt(Gpu& gpu) {
  Result<std::shared_ptr<Cublaslt>> opened = Cublaslt::open(gpu);
  gpu.fast.cublaslt = opened.ok();
  gpu.fast.cublaslt_f8 = opened.ok() && has_f8_products(gpu);
  if (opened.ok())
    gpu.parts().cublaslt = std::move(opened).value();
  else
    log::warn("prefill and large batches are served by slower own kernels: {}", opened.error().message);
}

}  // namespace deepinfer::cuda
