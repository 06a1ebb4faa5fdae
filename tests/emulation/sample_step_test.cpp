// Sampling on a CUDA device as a runner uses it: packed blocks, tokens read through block tables, rows that
// pad, graphs.
#include <array>
#include <memory>
#include <numeric>

#include "emulation/sample_fixture.h"

namespace deepinfer::test {
namespace {

// As a runner does it: tokens by KV block, found through the rows' tables; rows that pad; a graph.
struct HistoryStep {
  static constexpr int32_t kBlockSize = 16, kBlocks = 64;

  HistoryStep(Card& card, const Rows& rows, Random& random, int32_t padded) {
    const auto n = static_cast<int32_t>(rows.rows.size());
    std::vector<int32_t> free(kBlocks);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), random);
    history.assign(kBlocks * kBlockSize, 1 << 20);
    tables.assign(static_cast<size_t>(2 * padded) * kMaxBlocks, -1);
    // The rows' last tokens stand behind one other token each: indices are not positions.
    for (int32_t i = 0; i < n; ++i) {
      const SampleRow& row = rows.rows[i];
      std::vector<int32_t> all(row.prompt.begin(), row.prompt.end());
      all.insert(all.end(), row.output.begin(), row.output.end());
      DI_CHECK(!all.empty() && all.size() <= kMaxBlocks * kBlockSize, "{} tokens", all.size());
      for (size_t p = 0; p < all.size(); ++p) {
        int32_t& block = tables[static_cast<size_t>((padded + i) * kMaxBlocks) + p / kBlockSize];
        if (block < 0) {
          block = free.back();
          free.pop_back();
        }
        history[block * kBlockSize + p % kBlockSize] = all[p];
      }
      position.insert(position.end(), {99, static_cast<int32_t>(all.size()) - 1});
      token_row.insert(token_row.end(), {n - 1, i});
      logit_token.push_back(2 * i + 1);
    }
    for (int32_t i = n; i < padded; ++i) {
      position.insert(position.end(), {-1, -1});
      token_row.insert(token_row.end(), {i, i});
      logit_token.push_back(2 * i + 1);
    }
    upload(card);
  }

  void upload(Card& card) {
    const auto at = [&](Buffer& buffer, const std::vector<int32_t>& values) {
      if (buffer.data() == nullptr)
        buffer = card.upload(values);
      else
        card.write(buffer.data(), values);
      return reinterpret_cast<int32_t*>(buffer.data());
    };
    batch.position = at(buffers[0], position);
    batch.token_row = at(buffers[1], token_row);
    batch.logit_token = at(buffers[2], logit_token);
    batch.row_blocks = at(buffers[3], tables);
    batch.history = at(buffers[4], history);
    batch.history_group = 1;
    batch.group_stride = static_cast<int64_t>(tables.size()) / 2;
    batch.max_blocks = kMaxBlocks;
  }

  static constexpr int32_t kMaxBlocks = 8;
  std::vector<int32_t> history, tables, position, token_row, logit_token;
  std::array<Buffer, 5> buffers;
  cuda::DeviceBatch batch;
};

// Rows whose penalties can be read from a history: at least one token, the position behind it.
void add_row_with_history(Rows& rows, Random& random) {
  add_random_row(rows, random);
  SampleRow& row = rows.rows.back();
  if (row.prompt.empty()) row.prompt = rows.tokens.emplace_back(1, static_cast<int32_t>(rows.vocab / 2));
  if (random() % 3 == 0) {
    // The last token leads by less than its penalty.
    const auto last = static_cast<int32_t>(random() % rows.vocab);
    std::vector<int32_t> output(row.output.begin(), row.output.end());
    output.push_back(last);
    row.output = rows.tokens.emplace_back(std::move(output));
    row.temperature = 0;
    row.presence_penalty = 2;
    float* const x = &rows.logits[rows.logits.size() - rows.vocab];
    for (int64_t i = 0; i < rows.vocab; ++i) x[i] = std::isfinite(x[i]) ? std::fmod(x[i], 1.0f) : 0;
    x[last] = 1.5f;
  }
  row.position = static_cast<int64_t>(row.prompt.size() + row.output.size());
}

TEST(CudaSampleStep, GraphWithHistoryAndPadding) {
  DI_NEEDS_CARD();
  constexpr uint64_t kSeed = 31;
  RecordProperty("seed", kSeed);
  Random random(kSeed);
  Card card;
  constexpr int64_t kVocab = 131;  // few, so that every penalty matters
  constexpr int32_t kPadded = 8, kSlots = 9, kDummy = 8;
  Block block(card, {.max_rows = kPadded, .list_words = 1000}, kVocab);
  Buffer logits = must(card.gpu->allocate(kPadded * kVocab * sizeof(float)));
  const Tensor x = make_tensor(logits.data(), DType::kF32, {kPadded, kVocab}, kCard);
  DeviceOutcome out(card, kSlots);
  cuda::Graph graph;
  std::unique_ptr<HistoryStep> first;
  for (int step = 0; step < 12; ++step) {
    SCOPED_TRACE(step);
    Rows rows(kVocab);
    const auto n = static_cast<int32_t>(1 + random() % kPadded);
    for (int32_t i = 0; i < n; ++i) add_row_with_history(rows, random);
    HistoryStep now(card, rows, random, kPadded);
    if (first == nullptr) first = std::make_unique<HistoryStep>(card, rows, random, kPadded);
    for (auto member : {&HistoryStep::history, &HistoryStep::tables, &HistoryStep::position,
                        &HistoryStep::token_row, &HistoryStep::logit_token})
      (*first).*member = now.*member;
    first->upload(card);  // the graph's addresses
    std::vector<float> padded = rows.logits;
    padded.resize(kPadded * kVocab, std::nanf(""));
    card.write(logits.data(), padded);
    const Outcome preset = blank(kSlots);
    card.write(out.token.data(), preset.token);
    card.write(out.last.data(), preset.last);
    card.write(out.logprob.data(), preset.logprob);
    card.write(out.top_token.data(), preset.top_token);
    ASSERT_TRUE(block.pack(rows.rows, kPadded, kDummy, true).fits);
    if (!graph) {
      card.gpu->begin_capture();
      cuda::sample_device(*card.gpu, x, block.block, first->batch, HistoryStep::kBlockSize, out.outputs(),
                          block.scratch.data());
      graph = card.gpu->end_capture();
    }
    card.gpu->launch(graph);
    const Outcome got = out.read(), expected = on_card(card, rows);
    for (int32_t i = 0; i < kSlots; ++i) {
      const bool real = i < n;
      EXPECT_EQ(got.token[i], real ? expected.token[i] : -7);
      EXPECT_EQ(got.last[i], real ? expected.last[i] : i == kDummy && n < kPadded ? 0 : -7);
      EXPECT_EQ(got.logprob[i], real ? expected.logprob[i] : 7.0f);
      for (int64_t j = 0; j < kTop; ++j)
        EXPECT_EQ(got.top_token[i * kTop + j], real ? expected.top_token[i * kTop + j] : -7);
    }
    EXPECT_TRUE(block.counts_are_zero());
  }
}

TEST(CudaSampleStep, NoiseIsOfTheBatchsPosition) {
  DI_NEEDS_CARD();
  Random random(8);
  Card card;
  Rows rows(400);
  for (int i = 0; i < 6; ++i) {
    add_row_with_history(rows, random);
    rows.rows[i].temperature = 2;
    rows.rows[i].top_k = 0;
  }
  HistoryStep step(card, rows, random, 6);
  const Outcome expected = on_card(card, rows);
  for (SampleRow& row : rows.rows) row.position += 3;  // an upper bound, with steps in flight
  Block block(card, {.max_rows = 6, .list_words = 1000}, 400);
  ASSERT_TRUE(block.pack(rows.rows, 6, 0, true).fits);
  Buffer logits = card.upload(rows.logits);
  DeviceOutcome out(card, 6);
  cuda::sample_device(*card.gpu, make_tensor(logits.data(), DType::kF32, {6, 400}, kCard), block.block,
                      step.batch, HistoryStep::kBlockSize, out.outputs(), block.scratch.data());
  const Outcome got = out.read();
  EXPECT_EQ(got.token, expected.token);
  EXPECT_TRUE(got == expected);
}

TEST(CudaSampleStep, PackingSaysWhatItNeeds) {
  const std::vector<int32_t> tokens = {1, 2, 3};
  const std::vector<LogitBias> bias = {{1, 1.0f}, {2, 1.0f}};
  const SampleRow row{
      .presence_penalty = 1, .prompt = tokens, .output = tokens, .bias = bias, .banned = tokens};
  const std::vector<SampleRow> rows = {row, row};
  std::vector<std::byte> host(4096);
  cuda::SamplePacking packing{.layout = {.max_rows = 2, .list_words = 13}, .rows = 2, .vocab = 10};
  cuda::Packed packed = cuda::pack_sample_block(rows, packing, host.data());
  EXPECT_FALSE(packed.fits);
  EXPECT_EQ(packed.list_words, 14);
  packing.layout.list_words = 14;
  packed = cuda::pack_sample_block(rows, packing, host.data());
  EXPECT_TRUE(packed.fits);
  EXPECT_LE(packed.bytes, cuda::sample_block_bytes(packing.layout));
  packing.history = false;
  EXPECT_EQ(cuda::pack_sample_block(rows, packing, host.data()).list_words, 26);
  packing.layout.max_rows = 1;
  packing.layout.list_words = 100;
  EXPECT_FALSE(cuda::pack_sample_block(rows, packing, host.data()).fits);
  packing.rows = 1;
  EXPECT_FALSE(cuda::pack_sample_block(rows, packing, host.data()).fits) << "more rows than room";
  SampleRow many = row;
  many.logprobs = kMaxTopLogprobs + 1;
  EXPECT_THROW(cuda::pack_sample_block({&many, 1}, packing, host.data()), InternalError);
}

}  // namespace
}  // namespace deepinfer::test
