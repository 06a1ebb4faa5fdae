// Which cards this build has code for.
#pragma once

#include <string_view>

#include "deepinfer/result.h"

namespace deepinfer::cuda {

// As given to the build: "80, 89, 90a, 120f". PTX of compute_80 is always there besides.
std::string_view built_architectures();

// The architecture that the current device's code was compiled for: 90 for sm_90a, 80 where the driver made
// it from the PTX. 0: there is none.
int code_architecture();

// An error that says what the card is and what the build has, when the current device can run none of it.
Result<void> check_device_code();

}  // namespace deepinfer::cuda
