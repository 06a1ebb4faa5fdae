#include "backend/cpu/attention-inl.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/matmul-inl.h"
#include "backend/cpu/rows-inl.h"
#include "backend/cpu/sample-inl.h"

namespace deepinfer::cpu {

const Kernels kAvx2Kernels = {"avx2",  norm,   quantize, matmul,      rotate,      store_k,
                              store_v, attend, row_max,  row_collect, row_weights, row_sums};

}  // namespace deepinfer::cpu
