#include "engine/sequence.h"

#include <algorithm>
#include <random>

namespace deepinfer {

std::vector<std::unique_ptr<Sequence>> make_sequences(uint64_t request_id, EngineRequest request,
                                                      const SequenceLimits& limits) {
  auto family = std::make_shared<SequenceFamily>();
  const auto prompt_len = static_cast<int64_t>(request.prompt.size());
  family->max_tokens = request.sampling.max_tokens;
  family->sampling = request.shared ? std::move(request.shared)
                                    : std::make_shared<const ResolvedSampling>(resolve(
                                          std::move(request.sampling), limits.end_ids, limits.vocab_size));
  const SamplingParams& params = family->sampling->params;
  const int n = params.n;
  uint64_t seed;
  if (params.seed) {
    seed = static_cast<uint64_t>(*params.seed);
  } else {
    std::random_device device;
    seed = (static_cast<uint64_t>(device()) << 32) | device();
  }

  std::vector<BlockKey> keys;
  if (limits.prefix_caching) {
    BlockHasher hasher;
    family->root = hasher.root(request.cache_salt);
    keys.reserve(static_cast<size_t>(prompt_len / limits.block_size));
    for (int64_t i = 0; i < prompt_len / limits.block_size; ++i) {
      auto block = std::span(request.prompt).subspan(i * limits.block_size, limits.block_size);
      keys.push_back(hasher.next(keys.empty() ? family->root : keys.back(), block));
    }
  }
  // Nothing to share: the choices need not wait for the first one.
  family->prompt_ready = !limits.prefix_caching || prompt_len <= limits.block_size;

  std::vector<std::unique_ptr<Sequence>> sequences;
  for (int choice = 0; choice < n; ++choice) {
    auto s = std::make_unique<Sequence>();
    s->id = sequence_id(request_id, choice);
    s->request = request_id;
    s->choice = choice;
    s->priority = request.priority;
    s->seed = choice_seed(seed, choice);
    s->family = family;
    s->mirostat_mu = 2 * params.mirostat_tau;
    bool last = choice == n - 1;
    s->tokens = last ? std::move(request.prompt) : request.prompt;
    s->keys = last ? std::move(keys) : keys;
    s->prompt_len = prompt_len;
    s->max_len = std::min<int64_t>(limits.max_len, prompt_len + std::max(family->max_tokens, 1));
    sequences.push_back(std::move(s));
  }
  return sequences;
}

}  // namespace deepinfer
