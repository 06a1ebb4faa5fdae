// Every device intrinsic that own kernels use: a wrapper with the builtin or PTX for nvcc, and a body for the
// emulation of tests/emulation, where the kernels are plain C++. Kernels call nothing else that is not C++.
#pragma once

#include "backend/cuda/ptx_math.h"
#include "backend/cuda/ptx_matrix.h"
#include "backend/cuda/ptx_memory.h"
#include "backend/cuda/ptx_sync.h"
