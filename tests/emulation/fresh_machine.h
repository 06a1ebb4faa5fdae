// Tests that run on the emulation and on a real card begin here.
#pragma once

#include <cstdint>

#ifdef DEEPINFER_EMULATION
#include "emulation/emulated_gpu.h"
#endif

namespace deepinfer::test {

// The emulated machine as new, with orders drawn from the seed. A real card stays as it is.
inline void fresh_machine([[maybe_unused]] uint64_t seed) {
#ifdef DEEPINFER_EMULATION
  emulation::reset_machine();
  emulation::set_seed(seed);
#endif
}

}  // namespace deepinfer::test
