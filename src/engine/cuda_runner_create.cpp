// How a runner comes to be: memory for all that steps need, the largest step, the first graphs, and the KV
// cache out of what is left.
#include <algorithm>
#include <limits>
#include <utility>

#include "backend/cuda_error.h"
#include "base/check.h"
#include "engine/cuda_runner.h"

namespace deepinfer {
namespace {

constexpr size_t kAlign = 256;    // of arrays on the device
constexpr int kTrialBlocks = 64;  // most that the trial steps write to
// Tokens whose scores are computed at once, where the memory for logits allows it: the head's weight is read
// once for all of them.
constexpr int kLeastPiece = 128;
// Of bias and ban lists, on average a row; a step that needs more makes the block larger.
constexpr int kListWordsPerRow = 64;
constexpr size_t kLeastGraph = size_t{1} << 20;  // what a graph takes where it is too little to be measured

size_t round_up(size_t n, size_t unit) {
  return (n + unit - 1) / unit * unit;
}

size_t less(size_t a, size_t b) {
  return a > b ? a - b : 0;
}

// A Step with tables of its own, of rows that share few blocks: what they compute is of no use.
struct TrialStep {
  TrialStep(int groups, int block_size) : groups(groups), block_size(block_size) {}

  // Row i takes slot i. Its first block is `first`, those behind it repeat.
  void add(int tokens, int first, int blocks) {
    std::vector<std::vector<int32_t>> table(groups);
    const int count = (tokens + block_size - 1) / block_size;
    for (auto& ids : table)
      for (int i = 0; i < count; ++i) ids.push_back(first + i % blocks);
    tables.push_back(std::move(table));
    ids.emplace_back(tokens, 0);
  }
  // `shaped`: the first row asks for llama.cpp's samplers.
  const Step& finish(int logprobs, bool shaped) {
    for (size_t i = 0; i < tables.size(); ++i) {
      StepRow row{.sequence = i, .slot = static_cast<int32_t>(i), .tokens = ids[i]};
      row.block_table = tables[i];
      row.samples = true;
      row.sampling = {.slot = row.slot, .position = static_cast<int64_t>(ids[i].size())};
      row.sampling.top_k = 8;
      row.sampling.top_p = 0.9f;
      row.sampling.logprobs = logprobs;
      step.rows.push_back(row);
    }
    if (shaped) step.rows.front().sampling.typical_p = 0.9f;
    return step;
  }

  int groups, block_size;
  std::vector<std::vector<std::vector<int32_t>>> tables;  // [rows][groups]
  std::vector<std::vector<int32_t>> ids;                  // [rows]
  Step step;
};

}  // namespace

Result<std::unique_ptr<CudaRunner>> CudaRunner::create(std::unique_ptr<cuda::Gpu> gpu,
                                                       std::unique_ptr<Model> model,
                                                       CudaRunnerOptions options, CudaPeers peers) {
  DI_CHECK(options.plan_cache != nullptr && options.max_model_len > 0 && options.max_num_seqs > 0 &&
               options.max_num_batched_tokens > 0 && options.max_in_flight > 0,
           "a runner for {} sequences of {} tokens, {} tokens a step, {} steps in flight",
           options.max_num_seqs, options.max_model_len, options.max_num_batched_tokens,
           options.max_in_flight);
  std::unique_ptr<CudaRunner> r(new CudaRunner);
  r->gpu_ = std::move(gpu);
  r->peers_ = std::move(peers);
  r->model_ = std::move(model);
  r->options_ = std::move(options);
  const auto fail = [&r](const char* why) {
    if (r->peers_.comm != nullptr && r->lost_.empty()) r->give_up(why);
  };
  try {
    r->gpu_->make_current();
    const Result<void> ready = r->prepare();
    if (ready) return r;
    fail(ready.error().message.c_str());
    return ready.error();
  } catch (const CommError& e) {
    fail(e.what());
    throw;  // another rank knows why
  } catch (const std::bad_alloc& e) {
    fail(e.what());
    return make_error(
        ErrorCode::kMemory,
        "GPU {} ({}): not enough memory for the largest step of {} tokens and {} sequences: {}: "
        "set gpu.max_num_batched_tokens or gpu.max_num_seqs lower",
        r->gpu_->facts().index, r->gpu_->facts().name, r->options_.max_num_batched_tokens,
        r->options_.max_num_seqs, e.what());
  } catch (const cuda::CudaError& e) {
    fail(e.what());
    return make_error(ErrorCode::kMemory, "the first steps failed: GPU {} ({}): {}", r->gpu_->facts().index,
                      r->gpu_->facts().name, e.what());
  } catch (const DeviceLost& e) {
    return make_error(ErrorCode::kMemory, "the first steps failed: {}", e.what());
  }
}

// None begins what needs the others before all of them can.
void CudaRunner::meet_ranks() {
  float one = 1;
  if (peers_.host != nullptr) peers_.host->all_reduce({&one, 1});
}

size_t CudaRunner::free_bytes() {
  settle();
  return gpu_->memory().free_bytes;
}

Result<void> CudaRunner::prepare() {
  const CudaRunnerOptions& o = options_;
  const cuda::MemoryInfo at_open = gpu_->memory_at_open();
  size_t free = free_bytes();
  measured_.total = at_open.total_bytes;
  measured_.others = less(at_open.total_bytes, at_open.free_bytes);
  measured_.weights = less(at_open.free_bytes, free);

  info_ = {.groups = model_->kv_groups(o.kv_dtype),
           .block_size = o.block_size,
           .num_slots = o.max_num_seqs,
           .vocab_size = model_->config().vocab_size,
           .max_model_len = o.max_model_len,
           .max_in_flight = o.max_in_flight,
           .touched_first = false};
  const int tokens = std::max(o.max_num_batched_tokens, o.max_num_seqs);
  largest_ = {o.max_num_seqs, tokens, o.max_num_seqs, tokens};
  delta_room_ = 2 * o.max_num_seqs + 1024;
  sizes_ = graph_sizes(o);
  DI_TRY(reserve_cache());
  DI_TRY(allocate());
  measured_.fixed = less(free, free_bytes());

  DI_TRY(map_blocks(kTrialBlocks + 1));
  free = free_bytes();
  meet_ranks();
  run_largest_step();
  const size_t after_step = free_bytes();
  measured_.step = less(free, after_step);
  if (!sizes_.empty()) capture_first();
  measured_.free = free_bytes();

  DI_ASSIGN(const CachePlan plan, o.plan_cache(measured_));
  DI_CHECK(plan.num_blocks > 0 && plan.num_blocks <= measured_.max_blocks && plan.max_model_len > 0 &&
               plan.max_model_len <= o.max_model_len,
           "a cache of {} blocks for contexts of {}, expected at most {} and {}", plan.num_blocks,
           plan.max_model_len, measured_.max_blocks, o.max_model_len);
  DI_TRY(map_blocks(plan.num_blocks));
  info_.num_blocks = plan.num_blocks;
  info_.max_model_len = plan.max_model_len;
  return {};
}

Result<void> CudaRunner::reserve_cache() {
  const size_t block_bytes = KvCache::block_bytes(info_.groups, info_.block_size);
  const size_t history_bytes = static_cast<size_t>(info_.block_size) * sizeof(int32_t);
  int64_t blocks = static_cast<int64_t>(gpu_->memory_at_open().total_bytes / block_bytes);
  blocks = std::clamp<int64_t>(blocks, kTrialBlocks + 1, std::numeric_limits<int32_t>::max());
  DI_ASSIGN(kv_range_, gpu_->reserve(static_cast<size_t>(blocks) * block_bytes));
  // Penalties count the tokens of a full group's blocks; others forget what is behind their window.
  const auto full = std::find_if(info_.groups.begin(), info_.groups.end(),
                                 [](const KvGroupSpec& g) { return g.kind == KvGroupSpec::Kind::kFull; });
  info_.tracks_tokens = full != info_.groups.end();
  if (info_.tracks_tokens && leads()) {
    DI_ASSIGN(history_range_, gpu_->reserve(static_cast<size_t>(blocks) * history_bytes));
    state_.history = reinterpret_cast<int32_t*>(history_range_.data());
    state_.history_group = static_cast<int32_t>(full - info_.groups.begin());
  }
  measured_.block_bytes = block_bytes + (state_.history != nullptr ? history_bytes : 0);
  measured_.granularity = kv_range_.granularity();
  measured_.block_size = info_.block_size;
  measured_.max_blocks = blocks;
  measured_.max_num_seqs = options_.max_num_seqs;
  measured_.max_num_batched_tokens = options_.max_num_batched_tokens;
  measured_.max_model_len = options_.max_model_len;
  return {};
}

Result<void> CudaRunner::map_blocks(int64_t blocks) {
  const auto n = static_cast<size_t>(blocks);
  DI_TRY(gpu_->map(kv_range_, n * KvCache::block_bytes(info_.groups, info_.block_size)));
  if (state_.history != nullptr)
    DI_TRY(gpu_->map(history_range_, n * static_cast<size_t>(info_.block_size) * sizeof(int32_t)));
  measured_.mapped = kv_range_.mapped() + history_range_.mapped();
  kv_ = std::make_unique<KvCache>(info_.groups, info_.block_size, blocks, kv_range_.data(), context_.device);
  return {};
}

HeldMemory CudaRunner::held_memory() const {
  const auto bytes = [](size_t n) { return static_cast<int64_t>(n); };
  size_t pinned = pinned_deltas_.size();
  for (const Flight& f : flights_)
    for (const Buffer* b : {&f.step_block, &f.sample_block, &f.masks, &f.output, &f.scores})
      pinned += b->size();
  return {.cache = bytes(measured_.mapped),
          .graphs = bytes(measured_.graphs + measured_.later_graphs),
          .workspaces = bytes(measured_.fixed + measured_.step),
          .pinned = bytes(pinned)};
}

Result<void> CudaRunner::allocate() {
  const CudaRunnerOptions& o = options_;
  context_.device = {Device::Kind::kCuda, gpu_->facts().index};
  context_.gpu = gpu_.get();
  context_.activation = o.activation;
  context_.profiler = o.profiler;
  context_.comm = peers_.comm.get();
  DI_TRY(allocate_state());
  const size_t row = static_cast<size_t>(info_.vocab_size) * sizeof(float);
  const auto most = static_cast<size_t>(std::max(o.max_num_seqs, std::min(kLeastPiece, largest_.scored)));
  const size_t fitting = o.logits_bytes == 0 ? most : o.logits_bytes / row;
  piece_rows_ = static_cast<int32_t>(std::clamp<size_t>(fitting, 1, most));
  if (leads()) {
    DI_ASSIGN(logits_memory_, gpu_->allocate(row * static_cast<size_t>(piece_rows_)));
  }
  DI_ASSIGN(Buffer scratch, gpu_->allocate(model_->scratch_bytes(
                                context_, largest_.tokens, std::max(largest_.logit_rows, piece_rows_))));
  scratch_ = Arena(std::move(scratch), kAlign);
  context_.scratch = &scratch_;
  DI_TRY(allocate_flights());
  if (!leads()) return {};
  return allocate_sampler(kListWordsPerRow * o.max_num_seqs);
}

Result<void> CudaRunner::allocate_state() {
  const CudaRunnerOptions& o = options_;
  cuda::StepState& s = state_;
  s.groups = static_cast<int32_t>(info_.groups.size());
  s.slots = o.max_num_seqs + 1;
  s.max_rows = o.max_num_seqs;
  s.max_blocks = (o.max_model_len + info_.block_size - 1) / info_.block_size;
  s.block_size = info_.block_size;
  // A delta counts from the start of all tables in 32 bits.
  if (int64_t{s.groups} * s.slots * s.max_blocks > std::numeric_limits<int32_t>::max())
    return make_error(ErrorCode::kMemory,
                      "gpu.max_num_seqs: {} sequences of {} tokens need tables of {} KV blocks, expected at "
                      "most {}: set gpu.max_num_seqs or model.max_model_len lower, or gpu.block_size higher",
                      o.max_num_seqs, o.max_model_len, int64_t{s.groups} * s.slots * s.max_blocks,
                      std::numeric_limits<int32_t>::max());
  writer_ = std::make_unique<StepWriter>(s.groups, s.slots, s.max_blocks);

  const size_t ints = sizeof(int32_t), tables = static_cast<size_t>(s.groups) * s.max_blocks * ints;
  const size_t sizes[] = {step_block_bytes(largest_, delta_room_), tables * s.slots, tables * s.max_rows,
                          largest_.tokens * ints, s.slots * ints};
  size_t total = 0;
  for (const size_t bytes : sizes) total += round_up(bytes, kAlign);
  DI_ASSIGN(state_memory_, gpu_->allocate(total));
  gpu_->fill(state_memory_.data(), 0, total);
  std::byte* next = state_memory_.data();
  auto piece = [&](size_t i) { return std::exchange(next, next + round_up(sizes[i], kAlign)); };
  s.block = piece(0);
  s.tables = reinterpret_cast<int32_t*>(piece(1));
  s.row_blocks = reinterpret_cast<int32_t*>(piece(2));
  s.token_row = reinterpret_cast<int32_t*>(piece(3));
  s.last_token = reinterpret_cast<int32_t*>(piece(4));
  slots_.last_token = make_tensor(s.last_token, DType::kI32, {s.slots}, context_.device);

  const size_t deltas = static_cast<size_t>(delta_room_) * sizeof(cuda::BlockDelta);
  DI_ASSIGN(delta_memory_, gpu_->allocate(deltas));
  DI_ASSIGN(pinned_deltas_, gpu_->allocate_pinned(deltas));
  return {};
}

Result<void> CudaRunner::allocate_flights() {
  flights_.resize(static_cast<size_t>(options_.max_in_flight));
  for (Flight& f : flights_) {
    DI_ASSIGN(f.step_block, gpu_->allocate_pinned(step_block_bytes(largest_, delta_room_)));
  }
  if (!leads()) return {};
  const size_t rows = static_cast<size_t>(options_.max_num_seqs);
  OutputLayout& out = output_layout_;
  out.logprob = round_up(rows * sizeof(int32_t), 16);
  out.surprise = out.logprob + round_up(rows * sizeof(float), 16);
  out.top_token = out.surprise + round_up(rows * sizeof(float), 16);
  out.top_logprob = out.top_token + round_up(rows * kMaxTopLogprobs * sizeof(int32_t), 16);
  out.bytes = out.top_logprob + rows * kMaxTopLogprobs * sizeof(float);
  DI_ASSIGN(output_memory_, gpu_->allocate(out.bytes));
  gpu_->fill(output_memory_.data(), 0, out.bytes);  // copied whole, and not all of it is written
  const size_t scored = static_cast<size_t>(largest_.scored);
  ScoreLayout& score = score_layout_;
  score.rank = round_up(scored * sizeof(float), 16);
  score.top_token = score.rank + round_up(scored * sizeof(int32_t), 16);
  score.top_logprob = score.top_token + round_up(scored * kMaxTopLogprobs * sizeof(int32_t), 16);
  score.bytes = score.top_logprob + scored * kMaxTopLogprobs * sizeof(float);
  DI_ASSIGN(score_memory_, gpu_->allocate(score.bytes));
  gpu_->fill(score_memory_.data(), 0, score.bytes);
  for (Flight& f : flights_) {
    DI_ASSIGN(f.output, gpu_->allocate_pinned(out.bytes));
    DI_ASSIGN(f.scores, gpu_->allocate_pinned(score.bytes));
  }
  return {};
}

Result<void> CudaRunner::allocate_sampler(int32_t list_words) {
  const int32_t rows = options_.max_num_seqs;
  const cuda::SampleBlockLayout layout{.max_rows = rows, .list_words = list_words};
  const size_t bytes = round_up(cuda::sample_block_bytes(layout), kAlign);
  const size_t masks = static_cast<size_t>(rows) * cuda::mask_words(info_.vocab_size) * sizeof(uint32_t);
  DI_ASSIGN(Buffer memory, gpu_->allocate(bytes + masks));
  for (Flight& f : flights_) {
    DI_ASSIGN(f.sample_block, gpu_->allocate_pinned(bytes));
    if (f.masks.size() == 0) {
      DI_ASSIGN(f.masks, gpu_->allocate_pinned(masks));
    }
  }
  sample_memory_ = std::move(memory);
  sample_block_ = {.data = sample_memory_.data(),
                   .layout = layout,
                   .masks = reinterpret_cast<const uint32_t*>(sample_memory_.data() + bytes)};
  if (sample_scratch_.size() == 0) {
    const size_t scratch = cuda::sample_scratch_bytes(rows, info_.vocab_size);
    DI_ASSIGN(sample_scratch_, gpu_->allocate(scratch));
    gpu_->fill(sample_scratch_.data(), 0, scratch);
  }
  return {};
}

void CudaRunner::run_trial(const Step& step) {
  launch_forward(step);
  launch_sample(step);
  (void)wait(step.id);
}

// As many rows and tokens as a step can have, all of them sampling: one with llama.cpp's samplers, and the
// last one with as many scored tokens as a piece has, so that no request meets code that is not loaded.
void CudaRunner::run_largest_step() {
  TrialStep trial(state_.groups, info_.block_size);
  int left = options_.max_num_batched_tokens;
  for (int row = 0; row < options_.max_num_seqs && left > 0; ++row) {
    // The last rows are chunks that take what the decode rows leave.
    const int behind = options_.max_num_seqs - row - 1;
    const int64_t room_behind = int64_t{behind} * options_.max_model_len;
    const int tokens = left - room_behind > 1 ? static_cast<int>(left - room_behind) : 1;
    trial.add(std::min(tokens, options_.max_model_len), tokens == 1 ? 0 : 1, kTrialBlocks);
    left -= std::min(tokens, options_.max_model_len);
  }
  (void)trial.finish(kMaxTopLogprobs, true);
  StepRow& last = trial.step.rows.back();
  last.targets = last.tokens.first(std::min(last.tokens.size(), static_cast<size_t>(piece_rows_)));
  last.target_top = kMaxTopLogprobs;
  run_trial(trial.step);
}

// What the second run of each took: the graphs of forward and of both kinds of sampling.
size_t CudaRunner::capture_decode(int rows) {
  size_t taken = 0;
  for (const bool shaped : {false, true}) {
    TrialStep trial(state_.groups, info_.block_size);
    for (int i = 0; i < rows; ++i) trial.add(1, 0, 1);
    const Step& step = trial.finish(-1, shaped);
    run_trial(step);
    const size_t free = free_bytes();
    run_trial(step);
    taken += less(free, free_bytes());
  }
  return taken;
}

void CudaRunner::capture_first() {
  const size_t smallest = capture_decode(sizes_.front());
  const size_t largest = sizes_.size() > 1 ? capture_decode(sizes_.back()) : 0;
  measured_.graphs = smallest + largest;
  const size_t rest = sizes_.size() > 2 ? sizes_.size() - 2 : 0;
  measured_.later_graphs = rest * std::max({smallest, largest, kLeastGraph});
}

}  // namespace deepinfer
