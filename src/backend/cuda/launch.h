// How every kernel is launched and how kernels name their shared memory. The same source compiles with nvcc
// and, under DEEPINFER_EMULATION, as C++ on the execution model of tests/emulation.
//
// In a kernel:
//   DI_DYNAMIC_SHARED(bytes);        // unsigned char* bytes: LaunchConfig.smem of them, 128-byte aligned
//   DI_SHARED(float[32], partial);   // a static array of the block; a type with a comma needs an alias
// Never a bare __shared__.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "backend/cuda/error.h"

#ifdef DEEPINFER_EMULATION
#include "emulation/emulator.h"
#endif

namespace deepinfer::cuda {

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t smem = 0;  // dynamic shared memory of a block; above 48 KB the kernel's limit is raised
  cudaStream_t stream = nullptr;
  // The kernel may start before the one in front of it in the stream has ended: it must call
  // grid_dependency_wait() before it reads or writes anything that another kernel touches.
  bool pdl = false;
};

inline constexpr size_t kSharedWithoutOptIn = 48 << 10;

// Raises the kernel's limit of dynamic shared memory on the current device, and never lowers it: graphs with
// a larger launch of the same kernel may be replayed later.
void allow_shared(const void* function, size_t bytes);

// Asynchronous. Arguments are converted to the kernel's parameter types here and copied.
template <class... P, class... A>
void launch(const LaunchConfig& config, void (*kernel)(P...), A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
  std::tuple<std::remove_cv_t<P>...> values(std::forward<A>(args)...);
  const void* function = reinterpret_cast<const void*>(kernel);
  if (config.smem > kSharedWithoutOptIn) allow_shared(function, config.smem);
#ifdef DEEPINFER_EMULATION
  auto body = [kernel, values = std::move(values)] { std::apply(kernel, values); };
  DI_CUDA_CHECK(emulation::enqueue_kernel({.function = function,
                                           .grid = config.grid,
                                           .block = config.block,
                                           .smem = config.smem,
                                           .pdl = config.pdl,
                                           .body = std::move(body)},
                                          config.stream));
#else
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.smem;
  launch_config.stream = config.stream;
  launch_config.attrs = &attribute;
  launch_config.numAttrs = config.pdl ? 1 : 0;
  std::apply(
      [&](auto&... value) {
        // One more than needed, for kernels without parameters.
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
        DI_CUDA_CHECK(cudaLaunchKernelExC(&launch_config, function, pointers));
      },
      values);
#endif
}

}  // namespace deepinfer::cuda

#ifdef DEEPINFER_EMULATION
#define DI_DYNAMIC_SHARED(name) \
  unsigned char* name = static_cast<unsigned char*>(::deepinfer::emulation::dynamic_shared())
// The static's address tells one declaration from another.
#define DI_SHARED(type, name)             \
  static const char name##_declaration{}; \
  auto& name = ::deepinfer::emulation::static_shared<std::type_identity_t<type>>(&name##_declaration)
#else
#define DI_DYNAMIC_SHARED(name)                                              \
  extern __shared__ __align__(128) unsigned char deepinfer_dynamic_shared[]; \
  unsigned char* name = deepinfer_dynamic_shared
#define DI_SHARED(type, name) __shared__ __align__(16) std::type_identity_t<type> name
#endif
