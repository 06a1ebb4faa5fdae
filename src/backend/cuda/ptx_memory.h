// Loads and stores of 16 bytes, atomics, copies into shared memory that run on while the thread computes.
#pragma once

#include "backend/cuda/ptx_base.h"

namespace deepinfer::cuda {

// From memory that no kernel writes while this one runs.
template <class T>
__device__ inline T ldg(const T* p) {
#ifdef DEEPINFER_EMULATION
  return *p;
#else
  return __ldg(p);
#endif
}

// The address is a multiple of 16.
__device__ inline Bits128 load_128(const void* p) {
  return *static_cast<const Bits128*>(p);
}

__device__ inline void store_128(void* p, const Bits128& v) {
  *static_cast<Bits128*>(p) = v;
}

// Read once: through the read-only path, kept out of L1. For memory that no kernel writes meanwhile.
__device__ inline Bits128 load_128_streaming(const void* p) {
#ifdef DEEPINFER_EMULATION
  return *static_cast<const Bits128*>(p);
#else
  Bits128 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "l"(p));
  return v;
#endif
}

// The same in front of a grid_dependency_wait(): ptxas moves the loads above behind the wait, these stay. (A
// strong load may not cross it; past L1 as well.)
__device__ inline Bits128 load_128_early(const void* p) {
#ifdef DEEPINFER_EMULATION
  return *static_cast<const Bits128*>(p);
#else
  Bits128 v;
  asm volatile("ld.relaxed.gpu.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "l"(p)
               : "memory");
  return v;
#endif
}

// 8 bytes at a multiple of 8.
__device__ inline uint2 load_64_early(const void* p) {
#ifdef DEEPINFER_EMULATION
  return *static_cast<const uint2*>(p);
#else
  uint2 v;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
#endif
}

// 4 and 2 bytes at a multiple of that.
__device__ inline uint32_t load_32_early(const void* p) {
#ifdef DEEPINFER_EMULATION
  return *static_cast<const uint32_t*>(p);
#else
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
#endif
}
__device__ inline uint32_t load_16_early(const void* p) {
#ifdef DEEPINFER_EMULATION
  return *static_cast<const uint16_t*>(p);
#else
  uint16_t v;
  asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
  return v;
#endif
}

// A value that another block of this launch reads. It finds it after this thread's threadfence() and an
// atomic that follows; the emulation keeps it back until then.
template <class T>
__device__ inline void store_for_others(void* p, const T& value) {
#ifdef DEEPINFER_EMULATION
  emulation::store_late(p, &value, sizeof(T));
#else
  *static_cast<T*>(p) = value;
#endif
}

// What this thread wrote before is seen by every thread of the device before what it writes after.
__device__ inline void threadfence() {
#ifdef DEEPINFER_EMULATION
  emulation::fence();
#else
  __threadfence();
#endif
}

// Atomics return the value before. T: int32_t, uint32_t, uint64_t (unsigned long long).
#ifdef DEEPINFER_EMULATION
#define DI_ATOMIC(name, builtin, result) \
  template <class T>                     \
  __device__ inline T name(T* p, T v) {  \
    emulation::pause();                  \
    const T old = *p;                    \
    *p = (result);                       \
    return old;                          \
  }
#else
namespace device {
template <class T>
struct AtomicType {
  using type = T;
};
template <>
struct AtomicType<unsigned long> {
  using type = unsigned long long;
};
}  // namespace device
#define DI_ATOMIC(name, builtin, result)                                        \
  template <class T>                                                            \
  __device__ inline T name(T* p, T v) {                                         \
    using A = typename device::AtomicType<T>::type;                             \
    return static_cast<T>(builtin(reinterpret_cast<A*>(p), static_cast<A>(v))); \
  }
#endif
DI_ATOMIC(atomic_add, atomicAdd, static_cast<T>(static_cast<uint64_t>(old) + static_cast<uint64_t>(v)))
DI_ATOMIC(atomic_max, atomicMax, old > v ? old : v)
DI_ATOMIC(atomic_min, atomicMin, old < v ? old : v)
DI_ATOMIC(atomic_or, atomicOr, old | v)
DI_ATOMIC(atomic_and, atomicAnd, old& v)
DI_ATOMIC(atomic_exch, atomicExch, v)
#undef DI_ATOMIC

// Writes `v` where `expected` was.
template <class T>
__device__ inline T atomic_cas(T* p, T expected, T v) {
#ifdef DEEPINFER_EMULATION
  emulation::pause();
  const T old = *p;
  if (old == expected) *p = v;
  return old;
#else
  using A = typename device::AtomicType<T>::type;
  return static_cast<T>(atomicCAS(reinterpret_cast<A*>(p), static_cast<A>(expected), static_cast<A>(v)));
#endif
}

// Memory that other blocks write: past L1, and as one access.
template <class T>
__device__ inline T load_volatile(const T* p) {
  return *static_cast<const volatile T*>(p);
}

// 16 bytes from global into shared memory, both 16-byte aligned; zeros without reading when !pred. Seen by
// this thread after cp_async_wait, by others after a barrier that follows it.
__device__ inline void cp_async_16(void* shared, const void* source, bool pred = true DI_SITE) {
#ifdef DEEPINFER_EMULATION
  emulation::copy_async(shared, source, pred, site);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(source),
               "r"(pred ? 16 : 0)
               : "memory");
#endif
}

// Ends a group: the copies of this thread since the last commit. An empty group counts too.
__device__ inline void cp_async_commit() {
#ifdef DEEPINFER_EMULATION
  emulation::commit_async();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all of this thread's groups but the last kPending.
template <int kPending>
__device__ inline void cp_async_wait() {
#ifdef DEEPINFER_EMULATION
  emulation::wait_async(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace deepinfer::cuda
