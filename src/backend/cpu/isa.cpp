#include <cstdlib>
#include <string_view>

#include "backend/cpu/kernels.h"
#include "backend/cpu_kernels.h"
#include "base/check.h"

namespace deepinfer::cpu {
namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

const Kernels& choose() {
  __builtin_cpu_init();
  const char* set = std::getenv("DEEPINFER_CPU_ISA");
  const std::string_view cap = set == nullptr || *set == 0 ? "avx512" : set;
  DI_CHECK(cap == "avx512" || cap == "avx2" || cap == "portable",
           "DEEPINFER_CPU_ISA: got '{}', expected portable, avx2 or avx512", cap);
  if (cap == "avx512" && has_avx512()) return kAvx512Kernels;
  if (cap != "portable" && has_avx2()) return kAvx2Kernels;
  return kPortableKernels;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::string_view kernels_name() {
  return kernels().name;
}

}  // namespace deepinfer::cpu
