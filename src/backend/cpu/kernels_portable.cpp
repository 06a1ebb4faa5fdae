#include "backend/cpu/attention-inl.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/matmul-inl.h"
#include "backend/cpu/rows-inl.h"
#include "backend/cpu/sample-inl.h"

namespace deepinfer::cpu {

const Kernels kPortableKernels = {
    .name = "portable",
    .norm = norm,
    .quantize = quantize,
    .matmul = matmul,
    .rotate = rotate,
    .store_k = store_k,
    .store_v = store_v,
    .attend = attend,
    .attend_part = attend_part,
    .attend_join = attend_join,
    .row_max = row_max,
    .row_collect = row_collect,
    .row_weights = row_weights,
    .row_sums = row_sums,
};

}  // namespace deepinfer::cpu
