// The classes of all code points as ranges: each entry is (first code point << 4) | class, up to the next
// entry.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace deepinfer {

inline constexpr size_t kCharClassRanges = 2324;
extern const std::array<uint32_t, kCharClassRanges> kCharClassTable;

}  // namespace deepinfer
