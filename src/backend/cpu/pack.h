// Between the parts of packing: which rows stand together, and how codes become tiles.
#pragma once

#include <array>
#include <cstdint>

#include "backend/cpu/packed.h"
#include "deepinfer/result.h"
#include "tensor/context.h"

namespace deepinfer::cpu {

struct RowAt {
  const LinearPart* part = nullptr;  // null: padding
  int64_t row = 0;                   // of the part
};
using GroupRows = std::array<RowAt, kGroupRows>;

// The rows of packed group g; the first one always exists.
GroupRows find_rows(const LinearSource& source, int64_t g);

// The CPU's own conditions on codes; quant/codes.h has those of the form.
Result<void> check_codes(const LinearSource& source);

// The layout that holds the codes without loss (of scales: see pack_codes), and kUnsupported for zero points
// that none holds. Reads all scales and zero points, with the context's threads.
Result<PackedShape> plan_codes(Context& context, const LinearSource& source, int64_t rows);

// Packed group g, into memory that is zeroed, and its scales behind all groups (null where there are none).
// F16 scales stay as they are. Others do too where F16 holds all of the weight's; else each row is divided by
// a factor first: by its scale where it has only one (exact), else by a power of two that moves its largest
// scale to 2^14. BF16 is then still exact down to 2^-31 of the largest, F32 is rounded to 11 bits.
// False: a code is not a number.
bool pack_codes(const LinearSource& source, const PackedShape& shape, int64_t g, std::byte* out,
                float* scales);

}  // namespace deepinfer::cpu
