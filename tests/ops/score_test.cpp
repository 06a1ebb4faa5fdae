// How likely given tokens are, against double precision: odd vocabularies, ties, logits that are no numbers.
#include "score_fixture.h"

namespace deepinfer::test {
namespace {

TEST(Score, LogprobsRanksAndTheMostLikely) {
  constexpr uint64_t kSeed = 31;
  RecordProperty("seed", kSeed);
  Random random(kSeed);
  for (const int threads : {1, 3}) {
    Machine machine(threads);
    for (const int64_t vocab : {1, 2, 15, 16, 17, 33, 1000, 1024, 1025, 5003}) {
      for (const int32_t top : {0, 1, 20}) {
        ScoreCase c = random_scores(random, 11, vocab, top);
        Scores out{std::vector<float>(c.rows), std::vector<int32_t>(c.rows),
                   std::vector<int32_t>(c.rows * top, -7), std::vector<float>(c.rows * top, 7)};
        std::vector<float> logits = c.logits;
        ScoreParams p{.logits = make_tensor(logits.data(), DType::kF32, {c.rows, vocab}), .top = top};
        p.target = make_tensor(c.target.data(), DType::kI32, {c.rows});
        p.logprob = make_tensor(out.logprob.data(), DType::kF32, {c.rows});
        p.rank = make_tensor(out.rank.data(), DType::kI32, {c.rows});
        p.top_token = make_tensor(out.top_token.data(), DType::kI32, {c.rows, top});
        p.top_logprob = make_tensor(out.top_logprob.data(), DType::kF32, {c.rows, top});
        ops::score(machine.context, p);
        EXPECT_EQ(machine.arena.used(), 0u);
        expect_scores(c, out);
      }
    }
  }
}

}  // namespace
}  // namespace deepinfer::test
