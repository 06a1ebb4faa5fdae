// Every wrapper of ptx.h in one kernel, so that a build finds one that an architecture cannot compile.
// Nothing launches it.
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx.h"

namespace deepinfer::cuda {
namespace {

struct Pair {
  float value;
  int32_t index;
};

template <class T>
__device__ uint32_t pairs(uint32_t x, float f) {
  uint32_t y = pack2<T>(f, f + 1);
  y = fma2<T>(x, y, y);
  y = mul2<T>(y, x);
  y = add2<T>(y, x);
  y = sub2<T>(y, x);
  const float2 v = unpack2<T>(y);
  y ^= from_e4m3x2<T>(to_e4m3x2(v.x, v.y));
  const uint2 four = from_e4m3x4<T>(y);
  y ^= four.x + four.y;
  return y ^ static_cast<uint32_t>(to_float(from_float<T>(f)));
}

template <class T>
__device__ T atomics(T* p) {
  T v = atomic_add(p, T{1});
  v += atomic_max(p, T{2});
  v += atomic_min(p, T{3});
  v += atomic_or(p, T{4});
  v += atomic_and(p, T{5});
  v += atomic_exch(p, T{6});
  return v + atomic_cas(p, T{7}, T{8}) + load_volatile(p);
}

template <class T>
__global__ void __launch_bounds__(128)
    every_wrapper(const void* in, T* out, int32_t* i32, uint32_t* u32, uint64_t* u64) {
  DI_DYNAMIC_SHARED(bytes);
  DI_SHARED(float[32], partial);
  DI_SHARED(int, count);
  grid_dependency_wait();
  const int thread = static_cast<int>(threadIdx.x);
  partial[thread % 32] = static_cast<float>(ldg(static_cast<const int*>(in)));
  count = 0;
  cp_async_16(bytes + 16 * thread, static_cast<const char*>(in) + 16 * thread, thread < 64);
  cp_async_commit();
  cp_async_wait<0>();
  sync_threads();
  uint32_t a[4], b[2];
  float d[4] = {};
  ldmatrix_x4(a, bytes + 16 * (thread % 32));
  ldmatrix_x2(b, bytes + 16 * (thread % 32));
  mma_m16n8k16<T>(d, a, b);
  ldmatrix_x4_trans(a, bytes + 16 * (thread % 32));
  ldmatrix_x2_trans(b, bytes + 16 * (thread % 32));
  mma_m16n8k16<T>(d, a, b);
  Pair pair{d[0], thread};
  pair = shfl_xor(pair, 1);
  pair = shfl(pair, 3);
  double wide = shfl_up(static_cast<double>(pair.value), 2);
  wide = shfl_down(wide, 2u, kFullMask, 16);
  uint32_t x = ballot(d[1] > 0) ^ static_cast<uint32_t>(any(d[2] > 0)) ^ static_cast<uint32_t>(all(d[3] > 0));
  sync_warp();
  x += static_cast<uint32_t>(sync_threads_count(x & 1) + sync_threads_or(x & 2) + sync_threads_and(x & 4));
  x ^= pairs<T>(x, d[0]) + static_cast<uint32_t>(popc(x) + clz(x) + ffs(x)) + umulhi(x, x) +
       byte_perm(x, x, 0x1032) + and_or(x, 15, 1);
  float f = exp2_fast(d[0]) + exp_fast(d[1]) + log_fast(d[2]) + rsqrt(d[3]) + divide_fast(d[0], d[1]);
  f += from_e4m3(to_e4m3(f)) + minimum(f, 1.0f) + maximum(f, partial[0]) + static_cast<float>(wide);
  const Bits128 bits = load_128_streaming(in), more = load_128(in);
  store_128(bytes + 16 * thread, {{bits.x[0], more.x[1], x, bit_cast<uint32_t>(f)}});
  threadfence();
  x += static_cast<uint32_t>(atomics(i32)) + atomics(u32) + static_cast<uint32_t>(atomics(u64));
  grid_launch_dependents();
  out[thread] = from_float<T>(f + static_cast<float>(x) + static_cast<float>(clock()) +
                              static_cast<float>(count) + to_float(static_cast<const T*>(in)[thread]));
}

// Compiles everywhere; runs on sm_89 and later.
__global__ void every_fp8_wrapper(const uint32_t* in, float* out) {
  const uint32_t a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]};
  float d[4] = {};
  mma_m16n8k32_e4m3(d, a, b);
  out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}

}  // namespace

void compile_check(cudaStream_t stream) {
  const LaunchConfig config{
      .grid = dim3(1), .block = dim3(128), .smem = 64 << 10, .stream = stream, .pdl = true};
  launch(config, every_wrapper<__nv_bfloat16>, nullptr, nullptr, nullptr, nullptr, nullptr);
  launch(config, every_wrapper<__half>, nullptr, nullptr, nullptr, nullptr, nullptr);
  launch(config, every_fp8_wrapper, nullptr, nullptr);
}

}  // namespace deepinfer::cuda
