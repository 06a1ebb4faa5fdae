// What tests set of the emulated machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace deepinfer::emulation {

// Every order (of threads, blocks, streams) is drawn from it: DEEPINFER_EMULATION_SEED, else 1.
uint64_t seed();
void set_seed(uint64_t seed);

// Throws Failure with the text and the seed, and counts it.
[[noreturn]] void throw_failure(const std::string& text);
// Failures since the last call; tests that expect some take them, the test's end reports the others.
int take_failures();

}  // namespace deepinfer::emulation
