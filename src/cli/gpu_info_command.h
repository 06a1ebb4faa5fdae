// deepinfer gpu-info: the GPUs of this machine and what suits them.
#pragma once

namespace deepinfer {

// Prints a table, or JSON. No GPU is no failure: the reason is printed. Returns the exit code.
int gpu_info_command(bool json);

}  // namespace deepinfer
