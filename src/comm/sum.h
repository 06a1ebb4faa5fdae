// Sums over ranks.
#pragma once

#include <cstddef>
#include <span>

namespace deepinfer {

// out[i] = parts[0][i] + parts[1][i] + ..., from left to right, for each `out` of outs and i in [begin, end).
// An out may be one of the parts.
void sum_in_order(std::span<const float* const> parts, std::span<float* const> outs, size_t begin,
                  size_t end);

}  // namespace deepinfer
