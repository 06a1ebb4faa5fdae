#include "engine/cpu_runner.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/pages.h"
#include "comm/communicator.h"

namespace deepinfer {
namespace {

constexpr int kScoredRows = 128;

}  // namespace

Result<std::unique_ptr<CpuRunner>> CpuRunner::create(std::unique_ptr<ThreadPool> pool,
                                                     std::unique_ptr<Model> model,
                                                     const CpuRunnerOptions& o) {
  std::unique_ptr<CpuRunner> r(new CpuRunner);
  r->pool_ = std::move(pool);
  r->model_ = std::move(model);
  const int block_size = 16;
  std::vector<KvGroupSpec> groups = r->model_->kv_groups(o.kv_dtype);
  r->info_ = {.groups = groups,
              .block_size = block_size,
              .num_blocks = o.num_blocks,
              .num_slots = o.max_num_seqs,
              .vocab_size = r->model_->config().vocab_size,
              .max_model_len = o.max_model_len,
              .max_in_flight = 1};
  DI_ASSIGN(r->kv_memory_, Buffer::allocate(o.num_blocks * KvCache::block_bytes(groups, block_size)));
  r->kv_ = std::make_unique<KvCache>(groups, block_size, o.num_blocks, r->kv_memory_.data(), Device{});
  // A prompt's scores read the head's weights once for so many tokens.
  r->logit_rows_ = o.head ? std::max(o.max_num_seqs, std::min(kScoredRows, o.max_num_batched_tokens)) : 1;
  r->info_.logit_rows = r->logit_rows_;
  DI_ASSIGN(r->logits_memory_, Buffer::allocate(int64_t{r->logit_rows_} * r->info_.vocab_size *
                                                static_cast<int64_t>(sizeof(float))));
  // Touched only when a prompt's tokens are scored.
  DI_ASSIGN(r->hidden_memory_,
            Buffer::allocate(int64_t{std::max(o.max_num_batched_tokens, o.max_num_seqs)} *
                             r->model_->config().hidden * static_cast<int64_t>(sizeof(float))));
  r->last_token_.assign(o.max_num_seqs, 0);
  r->slots_.last_token = make_tensor(r->last_token_.data(), DType::kI32, {o.max_num_seqs});
  if (o.slots != nullptr) r->slots_ = *o.slots;
  r->context_ = {.pool = r->pool_.get(), .comm = o.comm, .profiler = o.profiler};
  DI_ASSIGN(Buffer scratch, Buffer::allocate(r->model_->scratch_bytes(r->context_, o.max_num_batched_tokens,
                                                                      r->logit_rows_)));
  r->scratch_memory_ = {scratch.data(), scratch.size()};
  r->scratch_ = Arena(std::move(scratch));
  r->context_.scratch = &r->scratch_;
  return r;
}

bool CpuRunner::samples() const {
  return context_.comm == nullptr || context_.comm->rank() == 0;
}

void CpuRunner::flatten(const Step& step) {
  Flat& f = flat_;
  for (auto* v : {&f.row_slot, &f.row_start, &f.context_len, &f.token, &f.position, &f.logit_token,
                  &f.scored_token, &f.target, &f.target_top})
    v->clear();
  const size_t groups = info_.groups.size();
  f.block_ids.resize(groups);
  f.tables.resize(groups);
  size_t stride = 0;
  for (const StepRow& row : step.rows) {
    f.row_slot.push_back(row.slot);
    f.row_start.push_back(static_cast<int32_t>(f.token.size()));
    f.context_len.push_back(row.context_len);
    for (size_t i = 0; i < row.tokens.size(); ++i)
      f.position.push_back(row.context_len + static_cast<int32_t>(i));
    for (size_t i = 0; i < row.targets.size(); ++i)
      f.scored_token.push_back(static_cast<int32_t>(f.token.size() + i));
    f.target.insert(f.target.end(), row.targets.begin(), row.targets.end());
    f.target_top.insert(f.target_top.end(), row.targets.size(), row.target_top);
    f.token.insert(f.token.end(), row.tokens.begin(), row.tokens.end());
    for (int32_t i = row.samples ? row.drafts + 1 : 0; i > 0; --i)
      f.logit_token.push_back(static_cast<int32_t>(f.token.size()) - i);
    for (const std::vector<int32_t>& table : row.block_table) stride = std::max(stride, table.size());
  }
  f.row_start.push_back(static_cast<int32_t>(f.token.size()));
  for (size_t g = 0; g < groups; ++g) {
    f.block_ids[g].assign(step.rows.size() * stride, -1);
    for (size_t b = 0; b < step.rows.size(); ++b) {
      const std::vector<int32_t>& table = step.rows[b].block_table[g];
      std::copy(table.begin(), table.end(), f.block_ids[g].begin() + static_cast<int64_t>(b * stride));
    }
    f.tables[g] = {f.block_ids[g], static_cast<int32_t>(stride)};
  }
  f.batch = {.num_rows = static_cast<int32_t>(step.rows.size()),
             .num_tokens = static_cast<int32_t>(f.token.size()),
             .row_slot = f.row_slot,
             .row_start = f.row_start,
             .context_len = f.context_len,
             .token = f.token,
             .position = f.position,
             .block_table = f.tables,
             .logit_token = f.logit_token};
}

void CpuRunner::launch_forward(const Step& step) {
  flatten(step);
  scratch_.reset();
  const auto rows = static_cast<int64_t>(flat_.logit_token.size());
  logits_ = make_tensor(logits_memory_.data(), DType::kF32, {rows, info_.vocab_size});
  if (!step.copies.empty()) ops::copy_blocks(context_, *kv_, step.copies);
  output_.scored.clear();
  if (flat_.target.empty()) {
    model_->forward(context_, flat_.batch, *kv_, slots_, {.logits = logits_});
  } else {
    const Tensor hidden =
        make_tensor(hidden_memory_.data(), DType::kF32, {flat_.batch.num_tokens, model_->config().hidden});
    model_->forward(context_, flat_.batch, *kv_, slots_, {.hidden_out = hidden});
    score(&step, hidden);
  }
  launched_ = step.id;
}

void CpuRunner::forward_layers(const Step& step, const Tensor& hidden, bool embeds) {
  flatten(step);
  scratch_.reset();
  if (!step.copies.empty()) ops::copy_blocks(context_, *kv_, step.copies);
  model_->forward(context_, flat_.batch, *kv_, slots_,
                  {.hidden_in = embeds ? Tensor{} : hidden, .hidden_out = hidden});
}

CpuRunner::Rows CpuRunner::wanted_rows(const Step& step) {
  Rows rows;
  for (const StepRow& row : step.rows) {
    rows.scored += std::ssize(row.targets);
    rows.sampled += row.samples ? 1 + row.drafts : 0;
  }
  return rows;
}

void CpuRunner::copy_wanted(const Tensor& hidden, float* out) const {
  for (const auto* tokens : {&flat_.scored_token, &flat_.logit_token})
    for (const int32_t t : *tokens) out = std::copy_n(hidden.row<float>(t), hidden.shape[1], out);
}

// The rows as a batch of one sequence: the head looks at nothing else of it.
void CpuRunner::flatten_rows(const Step* step, const Rows& count) {
  Flat& f = flat_;
  f.target.clear();
  f.target_top.clear();
  if (step == nullptr) {
    f.target.resize(count.scored);
    f.target_top.resize(count.scored);
  } else {
    for (const StepRow& row : step->rows) {
      f.target.insert(f.target.end(), row.targets.begin(), row.targets.end());
      f.target_top.insert(f.target_top.end(), row.targets.size(), row.target_top);
    }
  }
  f.scored_token.resize(count.scored);
  f.logit_token.resize(count.sampled);
  std::iota(f.scored_token.begin(), f.scored_token.end(), 0);
  std::iota(f.logit_token.begin(), f.logit_token.end(), static_cast<int32_t>(count.scored));
  f.row_slot.assign(1, 0);
  f.context_len.assign(1, 0);
  f.row_start.assign({0, static_cast<int32_t>(count.all())});
  f.token.assign(count.all(), 0);
  f.position.assign(count.all(), 0);
  f.batch = {.num_rows = 1,
             .num_tokens = static_cast<int32_t>(count.all()),
             .row_slot = f.row_slot,
             .row_start = f.row_start,
             .context_len = f.context_len,
             .token = f.token,
             .position = f.position,
             .block_table = {},
             .logit_token = f.logit_token};
}

void CpuRunner::launch_head(const Step* step, const Rows& count, const Tensor& rows) {
  DI_CHECK(samples() == (step != nullptr), "a head of {} rows on the wrong rank", count.all());
  scratch_.reset();
  output_.scored.clear();
  logits_ = make_tensor(logits_memory_.data(), DType::kF32, {count.sampled, info_.vocab_size});
  if (step != nullptr) launched_ = step->id;
  if (count.all() == 0) return;
  flatten_rows(step, count);
  if (count.scored != 0) return score(step, rows);
  model_->head(context_, flat_.batch, rows, samples() ? logits_ : Tensor{});
}

// Logits of all positions of a chunk would not fit: they come in pieces, out of the last layer's hidden.
void CpuRunner::score(const Step* step, const Tensor& hidden) {
  const auto scored = std::span(flat_.scored_token);
  const auto most = static_cast<size_t>(logit_rows_);
  std::vector<OutputToken> all;
  for (size_t first = 0; first < scored.size(); first += most) {
    const size_t count = std::min(most, scored.size() - first);
    score_piece(hidden, first, count, all);
  }
  if (!samples()) return model_->head(context_, flat_.batch, hidden, {});
  auto next = all.begin();
  for (const StepRow& row : step->rows) {
    if (row.targets.empty()) continue;
    const auto end = next + static_cast<int64_t>(row.targets.size());
    output_.scored.emplace_back(std::make_move_iterator(next), std::make_move_iterator(end));
    next = end;
  }
  model_->head(context_, flat_.batch, hidden, logits_);
}

void CpuRunner::score_piece(const Tensor& hidden, size_t first, size_t count, std::vector<OutputToken>& out) {
  const auto n = static_cast<int64_t>(count);
  scratch_.reset();
  StepBatch batch = flat_.batch;
  batch.logit_token = std::span<const int32_t>(flat_.scored_token).subspan(first, count);
  const Tensor logits = make_tensor(logits_memory_.data(), DType::kF32, {n, info_.vocab_size});
  model_->head(context_, batch, hidden, logits);
  if (!samples()) return;
  const auto top = std::span(flat_.target_top).subspan(first, count);
  const int64_t most = *std::max_element(top.begin(), top.end());
  ScoreParams p{.logits = logits, .top = static_cast<int32_t>(most)};
  p.target = make_tensor(flat_.target.data() + first, DType::kI32, {n});
  p.logprob = make_tensor(scratch_.allocate_n<float>(n), DType::kF32, {n});
  p.rank = make_tensor(scratch_.allocate_n<int32_t>(n), DType::kI32, {n});
  p.top_token = make_tensor(scratch_.allocate_n<int32_t>(n * most), DType::kI32, {n, most});
  p.top_logprob = make_tensor(scratch_.allocate_n<float>(n * most), DType::kF32, {n, most});
  ops::score(context_, p);
  for (int64_t i = 0; i < n; ++i) {
    OutputToken& token = out.emplace_back();
    token = {p.target.as<int32_t>()[i], p.rank.as<int32_t>()[i], p.logprob.as<float>()[i], {}};
    for (int32_t k = 0; k < top[i]; ++k)
      token.top.push_back({p.top_token.row<int32_t>(i)[k], p.top_logprob.row<float>(i)[k]});
  }
}

// A row with drafts is sampled at each of its positions at once: the first of them is right in any case.
void CpuRunner::list_sample_rows(const Step& step) {
  sample_rows_.clear();
  for (const StepRow& row : step.rows) {
    for (int32_t i = 0; row.samples && i <= row.drafts; ++i) {
      SampleRow& r = sample_rows_.emplace_back(row.sampling);
      r.slot = row.slot;
      r.position += i;
      if (i > 0 && r.output.data() != nullptr)
        r.output = {r.output.data(), r.output.size() + static_cast<size_t>(i)};
    }
  }
}

void CpuRunner::launch_sample(const Step& step) {
  DI_CHECK(step.id == launched_, "sample of step {} after forward of step {}", step.id, launched_);
  list_sample_rows(step);
  int32_t most = 0;
  bool mirostat = false;
  size_t rows = 0;
  for (const StepRow& row : step.rows) {
    if (!row.samples) continue;
    ++rows;
    most = std::max(most, row.sampling.logprobs);
    mirostat = mirostat || row.sampling.mirostat != 0;  // has no drafts
  }
  output_.accepted.assign(rows, {});
  output_.surprise.assign(mirostat ? sample_rows_.size() : 0, 0.0f);
  if (sample_rows_.empty()) return;
  const auto S = static_cast<int64_t>(sample_rows_.size());
  scratch_.reset();
  SampleParams p{.logits = logits_, .rows = sample_rows_};  // the last token of a slot: accept()
  p.token = make_tensor(scratch_.allocate_n<int32_t>(S), DType::kI32, {S});
  p.logprob = make_tensor(scratch_.allocate_n<float>(S), DType::kF32, {S});
  p.top_token = make_tensor(scratch_.allocate_n<int32_t>(S * most), DType::kI32, {S, most});
  p.top_logprob = make_tensor(scratch_.allocate_n<float>(S * most), DType::kF32, {S, most});
  p.surprise = make_tensor(output_.surprise.data(), DType::kF32, {mirostat ? S : 0});
  ops::sample(context_, p);
  accept(step, p);
}

// Of each row the first token, and those behind guesses that were right.
void CpuRunner::accept(const Step& step, const SampleParams& p) {
  auto accepted = output_.accepted.begin();
  int64_t first = 0;  // of the row, in `p`
  for (const StepRow& row : step.rows) {
    if (!row.samples) continue;
    const auto guesses = row.tokens.last(static_cast<size_t>(row.drafts));
    for (int64_t s = first; s <= first + row.drafts; ++s) {
      OutputToken& token = accepted->emplace_back(OutputToken{.id = p.token.as<int32_t>()[s]});
      if (sample_rows_[s].logprobs >= 0) token.logprob = p.logprob.as<float>()[s];
      for (int32_t k = 0; k < sample_rows_[s].logprobs; ++k)
        token.top.push_back({p.top_token.row<int32_t>(s)[k], p.top_logprob.row<float>(s)[k]});
      if (s < first + row.drafts && token.id != guesses[static_cast<size_t>(s - first)]) break;
    }
    last_token_[row.slot] = accepted->back().id;
    first += row.drafts + 1;
    ++accepted;
  }
}

HeldMemory CpuRunner::held_memory() const {
  const auto resident = [](const auto& memory) {
    return static_cast<int64_t>(resident_bytes(memory.data(), memory.size()));
  };
  return {.cache = resident(kv_memory_),
          .workspaces = resident(scratch_memory_) + resident(logits_memory_) + resident(hidden_memory_)};
}

int64_t CpuRunner::release_unused() {
  scratch_.reset();
  logits_ = {};
  const auto drop = [](const auto& memory) {
    return static_cast<int64_t>(drop_pages(memory.data(), memory.size()));
  };
  return drop(kv_memory_) + drop(scratch_memory_) + drop(logits_memory_) + drop(hidden_memory_);
}

StepOutput CpuRunner::wait(uint64_t step_id) {
  DI_CHECK(step_id == launched_, "wait for step {}, launched {}", step_id, launched_);
  return std::move(output_);
}

}  // namespace deepinfer
