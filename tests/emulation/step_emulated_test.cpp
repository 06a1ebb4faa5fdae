// Random histories of slots: what StepWriter sends and begin_step makes of it, against plain arrays. Seeds
// are printed with a failure.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "backend/cuda_gpu.h"
#include "emulation/fresh_machine.h"
#include "engine/step_writer.h"

namespace deepinfer::test {
namespace {

constexpr int kSlots = 6;  // and one of padding
constexpr int kMaxBlocks = 9, kBlockSize = 4, kPool = 200;
constexpr cuda::StepShape kLargest{8, 60, 8};

struct Running {
  uint64_t id = 0;
  std::vector<std::vector<int32_t>> tables;  // [groups]
  int length = 0;
};

class History {
 public:
  History(uint64_t seed, int groups, int delta_room)
      : random_(seed),
        groups_(groups),
        delta_room_(delta_room),
        gpu_(std::move(cuda::Gpu::open({})).value()),
        writer_(groups, kSlots + 1, kMaxBlocks),
        slots_(kSlots) {
    state_.groups = groups;
    state_.slots = kSlots + 1;
    state_.max_rows = kLargest.rows;
    state_.max_blocks = kMaxBlocks;
    state_.block_size = kBlockSize;
    state_.history_group = groups - 1;
    block_ = take(cuda::step_block_bytes(kLargest, delta_room));
    host_ = std::move(gpu_->allocate_pinned(block_.size())).value();
    state_.block = block_.data();
    tables_ = take(static_cast<size_t>(groups) * state_.slots * kMaxBlocks * 4);
    row_blocks_ = take(static_cast<size_t>(groups) * state_.max_rows * kMaxBlocks * 4);
    token_row_ = take(kLargest.tokens * 4);
    last_ = take(state_.slots * 4);
    history_ = take(kPool * kBlockSize * 4);
    overflow_ = take(kSlots * kMaxBlocks * 2 * sizeof(cuda::BlockDelta));
    state_.tables = ints(tables_);
    state_.row_blocks = ints(row_blocks_);
    state_.token_row = ints(token_row_);
    state_.last_token = ints(last_);
    state_.history = ints(history_);
    for (int i = 0; i < state_.slots; ++i) last_tokens_.push_back(1000 + i);
    upload(last_, last_tokens_);
  }
  ~History() { gpu_->synchronize(); }

  // One step of random rows; empty when the device has what it should.
  std::string step() {
    Step step{.id = ++steps_};
    std::vector<int> chosen(kSlots);
    for (int i = 0; i < kSlots; ++i) chosen[i] = i;
    std::shuffle(chosen.begin(), chosen.end(), random_);
    chosen.resize(pick(1, kSlots));
    const bool decode = chance(0.5);
    tokens_.clear();
    tokens_.reserve(kSlots);
    for (const int slot : chosen) add_row(step, slot, decode);
    std::sort(step.rows.begin(), step.rows.end(), [](const StepRow& a, const StepRow& b) {
      return (a.tokens.size() == 1) > (b.tokens.size() == 1);
    });
    const StepSummary summary = summarize(step);
    cuda::StepShape shape = summary.shape;
    if (summary.decode() && chance(0.7)) {
      const int rows = pick(shape.rows, kLargest.rows);
      shape = {rows, rows, rows};
    }
    run(step, shape);
    return compare(step, shape);
  }

  // As after a step that failed.
  void forget() { writer_.forget(); }
  bool overflowed = false;

 private:
  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool chance(double p) { return std::uniform_real_distribution<double>(0, 1)(random_) < p; }
  Buffer take(size_t bytes) { return std::move(gpu_->allocate(bytes)).value(); }
  static int32_t* ints(const Buffer& b) { return reinterpret_cast<int32_t*>(b.data()); }

  void upload(const Buffer& to, const std::vector<int32_t>& values) {
    Buffer host = std::move(gpu_->allocate_pinned(values.size() * 4)).value();
    std::copy(values.begin(), values.end(), ints(host));
    gpu_->copy_in(to.data(), host.data(), values.size() * 4);
    gpu_->synchronize();
  }
  std::vector<int32_t> download(const int32_t* from, size_t n) {
    Buffer host = std::move(gpu_->allocate_pinned(n * 4)).value();
    gpu_->copy_out(host.data(), from, n * 4);
    gpu_->synchronize();
    return {ints(host), ints(host) + n};
  }

  void add_row(Step& step, int slot, bool decode) {
    Running& r = slots_[slot];
    const bool full = r.length + 1 > kMaxBlocks * kBlockSize;
    bool goes_on = r.id != 0 && !full && chance(0.8);
    if (!goes_on) {  // another sequence, or the same one after it lost its blocks
      if (r.id == 0 || chance(0.7)) r.id = ++sequences_;
      r.tables.assign(groups_, {});
      r.length = pick(0, 3) * kBlockSize;  // a prefix that was found in the cache
    }
    const int room = kMaxBlocks * kBlockSize - r.length;
    const int count = decode ? 1 : std::min(room, pick(1, 9));
    const bool from_slot = goes_on && count == 1 && chance(0.7);
    std::vector<int32_t>& ids = tokens_.emplace_back();
    for (int i = 0; i < count; ++i) ids.push_back(from_slot ? kTokenFromSlot : pick(0, 999));
    for (int g = 0; g < groups_; ++g) {
      auto& table = r.tables[g];
      while (static_cast<int>(table.size()) * kBlockSize < r.length + count) table.push_back(next_block());
      // The first group has a window.
      if (g == 0 && groups_ > 1)
        for (int i = 0; i + 3 < static_cast<int>(table.size()); ++i) table[i] = -1;
    }
    StepRow row{.sequence = r.id, .slot = slot, .context_len = r.length, .tokens = ids};
    row.block_table = r.tables;
    row.samples = chance(0.8);
    step.rows.push_back(row);
    r.length += count;
  }
  int32_t next_block() {
    blocks_ = (blocks_ + 7) % kPool;  // enough that no two sequences share one
    return blocks_;
  }

  void run(const Step& step, const cuda::StepShape& shape) {
    const size_t bytes = writer_.write(step, shape, delta_room_, host_.data());
    if (const auto rest = writer_.overflow(); !rest.empty()) {
      overflowed = true;
      Buffer host = std::move(gpu_->allocate_pinned(rest.size_bytes())).value();
      std::copy(rest.begin(), rest.end(), reinterpret_cast<cuda::BlockDelta*>(host.data()));
      gpu_->copy_in(overflow_.data(), host.data(), rest.size_bytes());
      cuda::apply_deltas(*gpu_, state_, reinterpret_cast<const cuda::BlockDelta*>(overflow_.data()),
                         static_cast<int32_t>(rest.size()));
      gpu_->synchronize();
    }
    gpu_->copy_in(state_.block, host_.data(), bytes);
    cuda::begin_step(*gpu_, state_, shape);
    gpu_->synchronize();
  }

  std::string compare(const Step& step, const cuda::StepShape& shape) {
    const cuda::DeviceBatch batch = cuda::device_batch(state_, shape);
    const auto token = download(batch.token, shape.tokens), position = download(batch.position, shape.tokens),
               rows = download(batch.token_row, shape.tokens), slots = download(batch.row_slot, shape.rows),
               logit = download(batch.logit_token, std::max(shape.logit_rows, 1));
    const auto tables = download(batch.row_blocks, batch.group_stride * groups_);
    const auto history = download(batch.history, kPool * kBlockSize);
    int32_t t = 0, wanted_logits = 0;
    for (size_t b = 0; b < step.rows.size(); ++b) {
      const StepRow& row = step.rows[b];
      if (slots[b] != row.slot) return "slot of row " + std::to_string(b);
      for (size_t i = 0; i < row.tokens.size(); ++i, ++t) {
        const int32_t id = row.tokens[i] == kTokenFromSlot ? last_tokens_[row.slot] : row.tokens[i];
        const int32_t at = row.context_len + static_cast<int32_t>(i);
        if (token[t] != id || position[t] != at || rows[t] != static_cast<int32_t>(b))
          return "token " + std::to_string(t);
        const int32_t block = row.block_table[groups_ - 1][at / kBlockSize];
        if (history[block * kBlockSize + at % kBlockSize] != id)
          return "history of token " + std::to_string(t);
      }
      if (row.samples || shape.logit_rows == shape.rows)
        if (logit[wanted_logits++] != t - 1) return "logits of row " + std::to_string(b);
      for (int g = 0; g < groups_; ++g)
        for (size_t i = 0; i < row.block_table[g].size(); ++i)
          if (tables[g * batch.group_stride + b * kMaxBlocks + i] != row.block_table[g][i])
            return "block " + std::to_string(i) + " of group " + std::to_string(g) + ", row " +
                   std::to_string(b);
    }
    for (auto b = static_cast<int32_t>(step.rows.size()); b < shape.rows; ++b, ++t)
      if (slots[b] != kSlots || token[t] != 0 || position[t] != -1 || rows[t] != b) return "padding";
    return "";
  }

  std::mt19937_64 random_;
  int groups_, delta_room_;
  std::unique_ptr<cuda::Gpu> gpu_;
  StepWriter writer_;
  cuda::StepState state_;
  Buffer block_, host_, tables_, row_blocks_, token_row_, last_, history_, overflow_;
  std::vector<Running> slots_;
  std::vector<int32_t> last_tokens_;
  std::vector<std::vector<int32_t>> tokens_;
  uint64_t steps_ = 0, sequences_ = 0;
  int32_t blocks_ = 0;
};

TEST(StepEmulated, TheDeviceHasWhatTheHostSent) {
  bool overflowed = false, within = false;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    fresh_machine(seed);
    History history(seed, static_cast<int>(1 + seed % 2), seed % 3 == 0 ? 3 : 200);
    for (int i = 0; i < 30; ++i) {
      const std::string wrong = history.step();
      ASSERT_EQ(wrong, "") << "seed " << seed << ", step " << i;
      if (seed % 5 == 0 && i % 7 == 6) history.forget();
    }
    (history.overflowed ? overflowed : within) = true;
  }
  EXPECT_TRUE(overflowed && within) << "both ways of sending deltas";
}

}  // namespace
}  // namespace deepinfer::test
