// NVTX ranges, which NVIDIA's Nsight Systems shows: pushed and popped on the thread that works. The linker
// takes the bodies from nvtx.cpp in builds with CUDA's headers, else from no_nvtx.cpp, where there are none.
#pragma once

#include "profile/phase.h"

namespace deepinfer::nvtx {

// Whether a tool listens: it names its library in NVTX_INJECTION64_PATH before it starts the program.
bool listened();

void push(Phase phase);
void pop();

}  // namespace deepinfer::nvtx
