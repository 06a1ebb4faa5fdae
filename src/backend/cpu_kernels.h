// Which inner loops the CPU backend runs, for people to read.
#pragma once

#include <string_view>

namespace deepinfer::cpu {

std::string_view kernels_name();  // "avx512", "avx2", "portable"

}  // namespace deepinfer::cpu
