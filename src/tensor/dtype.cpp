#include "tensor/dtype.h"

#include "base/check.h"

namespace deepinfer {

const DTypeInfo& info(DType dtype) {
  static constexpr DTypeInfo kTable[] = {
      {"F32", 1, 4},    {"F16", 1, 2},    {"BF16", 1, 2},   {"I32", 1, 4},     {"I8", 1, 1}, {"U8", 1, 1},
      {"Q4_0", 32, 18}, {"Q4_1", 32, 20}, {"Q8_0", 32, 34}, {"F8_E4M3", 1, 1}, {"U4", 2, 1},
  };
  return kTable[static_cast<int>(dtype)];
}

int64_t row_bytes(DType dtype, int64_t elems) {
  const DTypeInfo& i = info(dtype);
  DI_CHECK(elems % i.block_elems == 0, "a row of {} elements does not divide into blocks of {} ({})", elems,
           i.block_elems, i.name);
  return elems / i.block_elems * i.block_bytes;
}

}  // namespace deepinfer
