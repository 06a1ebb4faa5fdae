// FlashInfer's FA2 prefill kernel over this project's pages, for one activation dtype. The kernel is
// instantiated directly: its dispatcher would compile many more forms of it.
//
// The cache's layout is its HND with the block's stride between pages: block i of the layer at k + i *
// stride. Nothing is split over the context: a row's result depends on its own positions alone.
#pragma once

#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/variants.cuh>

#include "backend/cuda/fast/units.h"
#include "backend/cuda/launch.h"

namespace deepinfer::cuda {

// Lengths come from the plan, not from page counts: a row's pages are a row of a table with room to spare.
template <class T>
struct Fa2Params : flashinfer::BatchPrefillPagedParams<T, T, T, int32_t> {
  const uint32_t* kv_len = nullptr;
  __host__ __device__ __forceinline__ uint32_t get_kv_len(uint32_t row) const { return kv_len[row]; }
};

// The window's comparison costs only in tiles that are masked anyway.
using Fa2Variant = flashinfer::DefaultAttention</*custom_mask=*/false, /*sliding_window=*/true,
                                                /*soft_cap=*/false, /*alibi=*/false>;

template <class T, int kDim, int kTile, int kMmaKv>
struct Fa2Kernel {
  using Traits =
      flashinfer::KernelTraits<flashinfer::MaskMode::kCausal, kTile, flashinfer::get_num_mma_q(kTile), kMmaKv,
                               kDim / 16, kDim / 16, flashinfer::get_num_warps_q(kTile),
                               flashinfer::get_num_warps_kv(kTile), flashinfer::PosEncodingMode::kNone, T, T,
                               T, float, int32_t, Fa2Variant, false>;
  static_assert(!Traits::IsInvalid());
  static constexpr auto kKernel =
      flashinfer::BatchPrefillWithPagedKVCacheKernel</*same_kv_strides=*/true, Traits, Fa2Params<T>>;

  static void launch_on(const Fa2Call& call, const Fa2Params<T>& params) {
    LaunchConfig config;
    config.grid = dim3(static_cast<unsigned>(call.slots), 1, static_cast<unsigned>(call.attention->kv_heads));
    config.block = dim3(32, Traits::NUM_WARPS_Q, Traits::NUM_WARPS_KV);
    config.smem = sizeof(typename Traits::SharedStoragePaged);
    config.stream = call.stream;
    launch(config, kKernel, params);
  }
};

template <class T>
Fa2Params<T> fa2_params(const Fa2Call& call) {
  const PagedAttention& a = *call.attention;
  const DeviceBatch& b = *a.batch;
  const auto rows = static_cast<uint32_t>(a.rows - b.decode_rows);
  const int64_t strides[3] = {static_cast<int64_t>(a.block_stride / sizeof(T)),  // page, head, position
                              int64_t{a.block_size} * a.dim_k, a.dim_k};
  // The kernel's parameters are not const, what it only reads included.
  auto ids = [](const int32_t* p) { return const_cast<int32_t*>(p); };
  auto cache = [](const std::byte* p) { return const_cast<T*>(reinterpret_cast<const T*>(p)); };
  Fa2Params<T> p;
  p.q = const_cast<T*>(static_cast<const T*>(a.q));
  p.o = static_cast<T*>(a.out);
  p.paged_kv = flashinfer::paged_kv_t<T, int32_t>(
      static_cast<uint32_t>(a.kv_heads), static_cast<uint32_t>(a.block_size), static_cast<uint32_t>(a.dim_k),
      rows, flashinfer::QKVLayout::kHND, cache(a.k), cache(a.v), strides,
      ids(a.row_blocks + int64_t{b.decode_rows} * b.max_blocks), call.plan.page_start, nullptr);
  p.q_indptr = ids(b.row_start + b.decode_rows);
  p.o_indptr = p.q_indptr;
  p.kv_len = call.plan.kv_len + b.decode_rows;
  p.group_size = flashinfer::uint_fastdiv(static_cast<uint32_t>(a.heads / a.kv_heads));
  p.num_qo_heads = static_cast<uint32_t>(a.heads);
  p.q_stride_n = a.heads * a.dim_k;
  p.q_stride_h = a.dim_k;
  p.window_left = a.window > 0 ? a.window - 1 : -1;
  p.sm_scale = a.scale;
  p.request_indices = call.plan.tile_row;
  p.qo_tile_indices = call.plan.tile_in_row;
  p.block_valid_mask = call.plan.tile_valid;
  p.kv_tile_indices = ids(call.zeros);
  p.kv_chunk_size_ptr = ids(call.large_chunk);
  p.padded_batch_size = static_cast<uint32_t>(call.slots);
  p.partition_kv = false;
  return p;
}

template <class T>
bool fa2_ready() {
  cudaFuncAttributes attributes;
  const auto* kernel = reinterpret_cast<const void*>(Fa2Kernel<T, 128, 128, 4>::kKernel);
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) return true;
  (void)cudaGetLastError();
  return false;
}

// Two blocks in a multiprocessor: with 100 KB of shared memory that takes shorter tiles of the context.
template <class T>
void fa2_launch(const Fa2Call& call) {
  const Fa2Params<T> params = fa2_params<T>(call);
  const bool wide = call.tile == 128;
  if (call.attention->dim_k == 64) {
    if (wide) return Fa2Kernel<T, 64, 128, 4>::launch_on(call, params);
    return Fa2Kernel<T, 64, 64, 4>::launch_on(call, params);
  }
  if (wide && call.small_shared) return Fa2Kernel<T, 128, 128, 2>::launch_on(call, params);
  if (wide) return Fa2Kernel<T, 128, 128, 4>::launch_on(call, params);
  return Fa2Kernel<T, 128, 64, 4>::launch_on(call, params);
}

}  // namespace deepinfer::cuda
