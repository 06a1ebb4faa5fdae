// How likely given tokens are, on a CUDA device, against double precision.
#include "emulation/device_fixture.h"
#include "ops/score_fixture.h"

namespace deepinfer::test {
namespace {

TEST(CudaScore, LogprobsRanksAndTheMostLikely) {
  DI_NEEDS_CARD();
  constexpr uint64_t kSeed = 32;
  RecordProperty("seed", kSeed);
  Random random(kSeed);
  Card card;
  for (const int64_t vocab : {1, 2, 31, 33, 128, 1000, 1025, 4099}) {
    for (const int32_t top : {0, 1, 20}) {
      const ScoreCase c = random_scores(random, 6, vocab, top);
      const Buffer logits = card.upload(c.logits), target = card.upload(c.target);
      const Buffer logprob = card.upload(std::vector<float>(c.rows));
      const Buffer rank = card.upload(std::vector<int32_t>(c.rows));
      const Buffer top_token = card.upload(std::vector<int32_t>(c.rows * top));
      const Buffer top_logprob = card.upload(std::vector<float>(c.rows * top));
      const auto tensor = [](const Buffer& b, DType dtype, std::initializer_list<int64_t> shape) {
        return make_tensor(const_cast<std::byte*>(b.data()), dtype, shape, kCard);
      };
      ScoreParams p{.logits = tensor(logits, DType::kF32, {c.rows, vocab}), .top = top};
      p.target = tensor(target, DType::kI32, {c.rows});
      p.logprob = tensor(logprob, DType::kF32, {c.rows});
      p.rank = tensor(rank, DType::kI32, {c.rows});
      p.top_token = tensor(top_token, DType::kI32, {c.rows, top});
      p.top_logprob = tensor(top_logprob, DType::kF32, {c.rows, top});
      ops::score(card.context, p);
      card.gpu->synchronize();
      expect_scores(c, {card.read<float>(logprob.data(), c.rows), card.read<int32_t>(rank.data(), c.rows),
                        card.read<int32_t>(top_token.data(), c.rows * top),
                        card.read<float>(top_logprob.data(), c.rows * top)});
    }
  }
}

}  // namespace
}  // namespace deepinfer::test
