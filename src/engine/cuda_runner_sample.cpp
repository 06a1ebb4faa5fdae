// The sampling half of a step.
#include <algorithm>

#include "backend/cuda_error.h"
#include "base/check.h"
#include "engine/cuda_runner.h"
#include "profile/profiler.h"

namespace deepinfer {

void CudaRunner::launch_sample(const Step& step) {
  guarded([&] { sample(step); });
  ++in_flight_;
}

void CudaRunner::prepare_sample(const Step& step) {
  if (!lost_.empty()) throw DeviceLost(lost_);
  Flight& f = flight(in_flight_);
  DI_CHECK(leads() && f.id == step.id, "sample of step {} after forward of step {}", step.id, f.id);
  gpu_->make_current();
  pack_samples(step, f);
  prepared_ = true;
}

void CudaRunner::sample(const Step& step) {
  Flight& f = flight(in_flight_);
  DI_CHECK(f.id == step.id, "sample of step {} after forward of step {}", step.id, f.id);
  if (leads() && !prepared_) pack_samples(step, f);
  prepared_ = false;
  if (f.shape.scored > 0) {
    for (const StepRow& row : step.rows)
      if (!row.targets.empty())
        f.scored.push_back({{row.targets.begin(), row.targets.end()}, row.target_top});
    run_scores(f);
  }
  if (f.shape.logit_rows > 0) {
    // With pieces the head is here, and what all ranks call in it; then no rank has a graph.
    if (f.padded && !(peers_.comm != nullptr && in_pieces(f.shape))) {
      Graphs& graphs = graphs_[f.shape.rows];
      if (leads())
        replay(
            f.shaped ? graphs.shaped : graphs.sample, f.shaped ? graphs.shaped_warm : graphs.sample_warm,
            [&] { run_sample(f); }, false);
    } else {
      run_sample(f);
    }
  }
  if (!f.sampled.empty()) {
    const bool more = std::any_of(f.sampled.begin(), f.sampled.end(),
                                  [](const Sampled& s) { return s.logprobs >= 0 || s.mirostat; });
    const size_t bytes = f.copies_top ? output_layout_.bytes
                         : more       ? output_layout_.top_token
                                      : output_layout_.logprob;
    gpu_->copy_out(f.output.data(), output_memory_.data(), bytes);
  }
  f.done = gpu_->record();
}

// The rows of the sampling block are the rows of the logits: in a padded step those that do not sample are
// there too, and draw into the slot of padding.
void CudaRunner::pack_samples(const Step& step, Flight& f) {
  sample_rows_.clear();
  f.copies_top = false;
  bool masks = false;
  for (const StepRow& row : step.rows) {
    if (!row.samples && !f.padded) continue;
    const auto at = static_cast<int32_t>(sample_rows_.size());
    SampleRow& r = sample_rows_.emplace_back();
    if (!row.samples) {
      r.slot = state_.slots - 1;
      r.temperature = 0;
      continue;
    }
    r = row.sampling;
    r.slot = row.slot;
    f.sampled.push_back({at, r.logprobs, r.mirostat != 0});
    f.copies_top = f.copies_top || r.logprobs > 0;
    masks = masks || r.mask != nullptr;
  }
  if (f.shape.logit_rows == 0) return;
  cuda::SamplePacking packing{.layout = sample_block_.layout,
                              .rows = f.padded ? f.shape.logit_rows : 0,
                              .dummy_slot = state_.slots - 1,
                              .vocab = info_.vocab_size,
                              .history = state_.history != nullptr};
  cuda::Packed packed = cuda::pack_sample_block(sample_rows_, packing, f.sample_block.data());
  if (!packed.fits) {
    // Long lists of biases. Steps in flight read the old block, and graphs know its address.
    settle();
    for (auto& [rows, graphs] : graphs_) graphs.sample = {}, graphs.shaped = {};
    if (Result<void> grown = allocate_sampler(2 * packed.list_words); !grown)
      throw cuda::CudaOutOfMemory(grown.error().message);
    packing.layout = sample_block_.layout;
    packed = cuda::pack_sample_block(sample_rows_, packing, f.sample_block.data());
    DI_CHECK(packed.fits, "a sampling block of {} words for {}", sample_block_.layout.list_words,
             packed.list_words);
  }
  f.shaped = packed.shaped;
  gpu_->copy_in(sample_block_.data, f.sample_block.data(), packed.bytes);
  if (masks) {
    auto* host = reinterpret_cast<uint32_t*>(f.masks.data());
    const size_t bytes = cuda::pack_masks(sample_rows_, info_.vocab_size, host);
    gpu_->copy_in(const_cast<uint32_t*>(sample_block_.masks), host, bytes);
  }
}

// Where logits come in pieces, the head belongs to this half: their memory is used again for each piece.
void CudaRunner::run_sample(const Flight& f) {
  if (!leads() && !in_pieces(f.shape)) return;
  const int32_t rows = f.shape.logit_rows;
  for (int32_t first = 0; first < rows; first += piece_rows_) {
    const int32_t count = std::min(piece_rows_, rows - first);
    const Tensor logits = in_pieces(f.shape) ? piece_of(f, first, count, false)
                                             : make_tensor(logits_memory_.data(), DType::kF32,
                                                           {count, info_.vocab_size}, context_.device);
    if (leads()) sample_rows(first, logits, f.shaped);
  }
}

// Logits of some of the tokens that sample or, `scores`, of those that have targets.
Tensor CudaRunner::piece_of(const Flight& f, int32_t first, int32_t count, bool scores) {
  const cuda::StepArrays host = cuda::step_arrays(f.step_block.data(), f.shape);
  const cuda::StepArrays there = cuda::step_arrays(state_.block, f.shape);
  cuda::DeviceBatch device = device_batch_;
  device.logit_token = (scores ? there.scored_token : there.logit_token) + first;
  StepBatch batch = writer_->batch(f.shape, f.step_block.data());
  batch.logit_token = {(scores ? host.scored_token : host.logit_token) + first, static_cast<size_t>(count)};
  batch.device = &device;
  Tensor logits;
  if (leads())
    logits = make_tensor(logits_memory_.data(), DType::kF32, {count, info_.vocab_size}, context_.device);
  scratch_.reset(hidden_end_);
  model_->head(context_, batch, hidden_, logits);
  return logits;
}

void CudaRunner::run_scores(const Flight& f) {
  for (int32_t first = 0; first < f.shape.scored; first += piece_rows_) {
    const Tensor logits = piece_of(f, first, std::min(piece_rows_, f.shape.scored - first), true);
    if (leads()) score_rows(first, logits);
  }
  if (!leads()) return;
  gpu_->copy_out(f.scores.data(), score_memory_.data(), score_layout_.bytes);
}

void CudaRunner::score_rows(int32_t first, const Tensor& logits) {
  // Of arrays of all targets, those from `first` on. All hold 4 bytes an element.
  const int64_t rows = logits.size(0), top = kMaxTopLogprobs;
  const auto part = [&](size_t array, int64_t columns) {
    return score_memory_.data() + array + static_cast<size_t>(first * columns) * sizeof(float);
  };
  const ScoreLayout& at = score_layout_;
  int32_t* target = cuda::step_arrays(state_.block, flight(in_flight_).shape).target + first;
  const Device device = context_.device;
  int32_t most = 0;
  for (const Scored& s : flight(in_flight_).scored) most = std::max(most, s.top);
  ScoreParams p{.logits = logits, .top = most};
  p.target = make_tensor(target, DType::kI32, {rows}, device);
  p.logprob = make_tensor(part(0, 1), DType::kF32, {rows}, device);
  p.rank = make_tensor(part(at.rank, 1), DType::kI32, {rows}, device);
  p.top_token = make_tensor(part(at.top_token, top), DType::kI32, {rows, top}, device);
  p.top_logprob = make_tensor(part(at.top_logprob, top), DType::kF32, {rows, top}, device);
  ops::score(context_, p);
}

void CudaRunner::sample_rows(int32_t first, const Tensor& logits, bool shaped) {
  const Span span(context_.profiler, Phase::kSample, static_cast<int32_t>(logits.size(0)));
  std::byte* out = output_memory_.data();
  const cuda::SampleOutputs outputs{.token = reinterpret_cast<int32_t*>(out),
                                    .logprob = reinterpret_cast<float*>(out + output_layout_.logprob),
                                    .top_token = reinterpret_cast<int32_t*>(out + output_layout_.top_token),
                                    .top_logprob = reinterpret_cast<float*>(out + output_layout_.top_logprob),
                                    .top_stride = kMaxTopLogprobs,
                                    .last_token = state_.last_token,
                                    .surprise = reinterpret_cast<float*>(out + output_layout_.surprise)};
  cuda::DeviceSampleBlock block = sample_block_;
  block.first_row = first;
  block.shaped = shaped;
  cuda::sample_device(*gpu_, logits, block, device_batch_, info_.block_size, outputs, sample_scratch_.data());
}

}  // namespace deepinfer
