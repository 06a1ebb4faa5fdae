// Small Llama checkpoints on several emulated devices that share every layer.
#pragma once

#include "comm/nccl.h"
#include "emulation/emulated_gpu.h"
#include "emulation/model_fixture.h"
#include "engine/cuda_ranks.h"
#include "model/quantization.h"

namespace deepinfer::test {

struct RanksScene {
  Scene scene;
  int ranks = 2;
  std::string online;  // model.quantization
  std::chrono::milliseconds timeout = std::chrono::seconds(60);
  std::function<void(int rank)> at_load;  // in a rank's thread, before it loads
};

inline NcclApi emulated_nccl() {
  const auto api = load_nccl({{EMULATED_NCCL_DIR, "the test"}}, "libnccl.so.2");
  DI_CHECK(api.ok(), "{}", api.error().message);
  return *api;
}

// On the machine as it is.
inline Result<std::unique_ptr<CudaRanks>> try_ranks(const RanksScene& r) {
  const Scene& s = r.scene;
  DI_ASSIGN(Checkpoint checkpoint, open_weights(path_of(s.model)));
  if (!r.online.empty()) DI_TRY(set_quantization(checkpoint, r.online));
  std::vector<CudaRankStart> starts;
  for (int i = 0; i < r.ranks; ++i) {
    DI_ASSIGN(std::unique_ptr<cuda::Gpu> gpu,
              cuda::Gpu::open({.index = i, .deterministic = s.deterministic, .self_check = false}));
    if (s.library) DI_TRY(gpu->open_fast_paths());
    starts.push_back({.gpu = std::move(gpu),
                      .load = [&, i](cuda::Gpu& on, Communicator& all) -> Result<std::unique_ptr<Model>> {
                        if (r.at_load) r.at_load(i);
                        ThreadPool pool(1);
                        Context context{.device = {Device::Kind::kCuda, i},
                                        .pool = &pool,
                                        .gpu = &on,
                                        .comm = &all,
                                        .activation = s.activation};
                        return make_model(checkpoint.config, checkpoint.weights, context);
                      },
                      .options = {.max_num_seqs = s.seqs,
                                  .max_num_batched_tokens = s.tokens,
                                  .max_model_len = s.max_len,
                                  .kv_dtype = s.kv,
                                  .activation = s.activation,
                                  .enforce_eager = s.eager,
                                  .graph_sizes = s.graph_sizes,
                                  .logits_bytes = s.logits_bytes,
                                  .plan_cache = [blocks = s.blocks](const MeasuredMemory& m) {
                                    return CachePlan{blocks, m.max_model_len};
                                  }}});
  }
  return CudaRanks::create(std::move(starts), emulated_nccl(), r.timeout);
}

inline void fresh_cards(uint64_t seed, int cards) {
  emulation::set_seed(seed);
  emulation::reset_machine({.device_count = cards});
}

inline std::unique_ptr<CudaRanks> make_ranks(const RanksScene& r) {
  fresh_cards(r.scene.seed, r.ranks);
  auto made = try_ranks(r);
  if (!made) ADD_FAILURE() << made.error().message;
  return made ? std::move(*made) : nullptr;
}

}  // namespace deepinfer::test
