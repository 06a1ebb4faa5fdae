#include "engine/cuda_runner.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "backend/cuda_error.h"
#include "base/check.h"
#include "base/log.h"
#include "device/tuning.h"

namespace deepinfer {

std::vector<int> graph_sizes(const CudaRunnerOptions& o) {
  std::vector<int> sizes;
  if (o.enforce_eager) return sizes;
  sizes = o.graph_sizes.empty() ? graph_sizes(o.max_num_seqs, false) : o.graph_sizes;
  std::erase_if(sizes, [&](int n) { return n < 1 || n >= o.max_num_seqs; });
  sizes.push_back(o.max_num_seqs);
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

CudaRunner::~CudaRunner() {
  // What follows frees memory that steps in flight may still use.
  try {
    if (gpu_ == nullptr) return;
    gpu_->make_current();
    if (lost_.empty()) gpu_->synchronize();
  } catch (const std::exception& e) {
    log::warn("the GPU at the end: {}", e.what());
  }
}

void CudaRunner::drop_step() {
  gpu_->pdl = false;
  gpu_->abandon_capture();
  if (writer_ != nullptr) writer_->forget();
  prepared_ = false;
}

void CudaRunner::forget_step() {
  drop_step();
  guarded([&] { settle(); });  // copies of it may be on their way
}

// Leaves everything ready for another step, whatever this one had begun.
void CudaRunner::clean_up() {
  drop_step();
  try {
    gpu_->synchronize();
  } catch (const std::exception&) {
    // The fault at hand is the one to tell.
  }
}

void CudaRunner::leave(const std::string& reason) {
  if (lost_.empty()) lost_ = reason;
  drop_step();
  peers_.comm->leave();
  try {
    gpu_->make_current();
    gpu_->synchronize();  // what is freed from here on nothing uses any more
  } catch (const std::exception&) {
    // The reason at hand is the one to tell.
  }
}

// Ranks only go on together. What throws is told to all of them, and nothing waits on the device any more.
void CudaRunner::give_up(const char* why) {
  const std::string reason = fmt::format("GPU {} ({}): {}", gpu_->facts().index, gpu_->facts().name, why);
  peers_.host->abort(reason);
  peers_.comm->abort(reason);
  leave(reason);
}

// The same for what was thrown and is at hand, which this rank is the first to tell of or another one was.
void CudaRunner::give_up_on_fault() {
  try {
    throw;
  } catch (const CommError& e) {
    give_up(e.what());
    throw;
  } catch (const std::bad_alloc& e) {
    give_up(e.what());
    throw;
  } catch (const std::exception& e) {
    give_up(e.what());
  } catch (...) {
    give_up("an exception that is no std::exception");
  }
  throw DeviceLost(lost_);
}

// Until the device has done all that it was given.
void CudaRunner::settle() {
  if (peers_.comm == nullptr) return gpu_->synchronize();
  settle(gpu_->record());
}

// A device that waits for others is not waited for blindly.
void CudaRunner::settle(const cuda::Event& end) {
  if (peers_.comm == nullptr) return gpu_->wait(end);
  const auto start = std::chrono::steady_clock::now();
  while (!gpu_->done(end)) {
    peers_.comm->check();
    if (std::chrono::steady_clock::now() - start > peers_.timeout)
      throw CommError(peers_.comm->rank(), peers_.comm->size(), "waiting for the device",
                      fmt::format("nothing for {} s: the GPUs do not reach each other (NCCL_DEBUG=INFO shows "
                                  "how they try; NCCL_P2P_DISABLE=1 makes them go through the host)",
                                  std::chrono::duration<double>(peers_.timeout).count()));
    std::this_thread::yield();
  }
}

void CudaRunner::guarded(const std::function<void()>& body) {
  if (!lost_.empty()) throw DeviceLost(lost_);
  try {
    gpu_->make_current();
    body();
  } catch (...) {
    if (peers_.comm == nullptr) recover();
    give_up_on_fault();
  }
}

// From what a body threw that is at hand.
void CudaRunner::recover() {
  try {
    throw;
  } catch (const cuda::CudaError& e) {
    clean_up();
    if (!e.sticky()) throw;
    lost_ = fmt::format(
        "GPU {} ({}): {}. Its context is broken and nothing can run on it in this process any more: start "
        "again; if it happens again, look for Xid errors in the kernel's log (dmesg)",
        gpu_->facts().index, gpu_->facts().name, e.what());
    throw DeviceLost(lost_);
  } catch (...) {
    clean_up();
    throw;
  }
}

int CudaRunner::graph_rows(const StepSummary& summary) const {
  if (!summary.decode()) return 0;
  const auto size = std::lower_bound(sizes_.begin(), sizes_.end(), summary.shape.rows);
  return size == sizes_.end() ? 0 : *size;
}

void CudaRunner::launch_forward(const Step& step) {
  guarded([&] { forward(step); });
}

void CudaRunner::forward(const Step& step) {
  DI_CHECK(in_flight_ < static_cast<int>(flights_.size()), "step {}: {} steps are in flight already", step.id,
           in_flight_);
  Flight& f = flight(in_flight_);
  f.id = step.id;
  f.sampled.clear();
  f.scored.clear();
  f.done = {};
  summary_ = summarize(step);
  const int rows = graph_rows(summary_);
  f.padded = rows > 0;
  f.shape = f.padded ? cuda::StepShape{rows, rows, rows} : summary_.shape;
  DI_CHECK(f.shape.rows <= largest_.rows && f.shape.tokens <= largest_.tokens,
           "step {}: {} rows and {} tokens, expected at most {} and {}", step.id, f.shape.rows,
           f.shape.tokens, largest_.rows, largest_.tokens);
  std::byte* block = f.step_block.data();
  const size_t bytes = writer_->write(step, f.shape, delta_room_, block);
  send_deltas();
  gpu_->copy_in(state_.block, block, bytes);
  if (!step.copies.empty()) ops::copy_blocks(context_, *kv_, step.copies);

  StepBatch batch = writer_->batch(f.shape, block);
  device_batch_ = bounds(f);
  batch.device = &device_batch_;
  place_results(f.shape);
  if (f.padded) {
    Graphs& graphs = graphs_[rows];
    replay(graphs.forward, graphs.forward_warm, [&] { run_forward(batch, f.shape); }, true);
  } else {
    run_forward(batch, f.shape);
  }
}

// Where forward leaves what sample reads; the same place for every step of a shape, as graphs must find it.
void CudaRunner::place_results(const cuda::StepShape& shape) {
  const int64_t hidden = model_->config().hidden, tokens = shape.tokens;
  logits_ = hidden_ = {};
  scratch_.reset();
  if (in_pieces(shape)) {
    hidden_ = make_tensor(scratch_.allocate_n<float>(static_cast<size_t>(tokens * hidden)), DType::kF32,
                          {tokens, hidden}, context_.device);
  } else if (leads()) {
    logits_ = make_tensor(logits_memory_.data(), DType::kF32, {shape.logit_rows, info_.vocab_size},
                          context_.device);
  }
  hidden_end_ = scratch_.used();
}

// Rare: many blocks at once, as after a long prefix was found in the cache.
void CudaRunner::send_deltas() {
  std::span<const cuda::BlockDelta> rest = writer_->overflow();
  const size_t room = pinned_deltas_.size() / sizeof(cuda::BlockDelta);
  while (!rest.empty()) {
    if (deltas_sent_) gpu_->wait(deltas_sent_);  // one buffer for all rounds
    const auto round = rest.first(std::min(room, rest.size()));
    std::memcpy(pinned_deltas_.data(), round.data(), round.size_bytes());
    gpu_->copy_in(delta_memory_.data(), pinned_deltas_.data(), round.size_bytes());
    cuda::apply_deltas(*gpu_, state_, reinterpret_cast<const cuda::BlockDelta*>(delta_memory_.data()),
                       static_cast<int32_t>(round.size()));
    deltas_sent_ = gpu_->record();
    rest = rest.subspan(round.size());
  }
}

// What is captured serves every step of its shape, so its bounds are those of the longest sequence.
cuda::DeviceBatch CudaRunner::bounds(const Flight& f) const {
  cuda::DeviceBatch d = cuda::device_batch(state_, f.shape);
  d.decode_rows = f.padded ? f.shape.rows : summary_.decode_rows;
  d.max_query = f.padded ? 1 : summary_.max_query;
  d.max_context = f.padded ? options_.max_model_len : summary_.max_context;
  return d;
}

void CudaRunner::run_forward(const StepBatch& batch, const cuda::StepShape& shape) {
  // What rank 0 sampled last.
  if (peers_.comm != nullptr)
    peers_.comm->broadcast(
        std::as_writable_bytes(std::span(state_.last_token, static_cast<size_t>(state_.slots))), 0);
  cuda::begin_step(*gpu_, state_, shape);
  scratch_.reset(hidden_end_);
  // NCCL's kernels do not know of those around them.
  gpu_->pdl = gpu_->fast.pdl && peers_.comm == nullptr && batch.device->decode_rows == shape.rows &&
              shape.rows <= options_.pdl_rows;
  model_->forward(context_, batch, *kv_, slots_, {.hidden_out = hidden_, .logits = logits_});
  gpu_->pdl = false;
}

// No graph when there is no memory for it, or something in it cannot be captured: then steps run without. On
// all ranks: they must replay alike.
cuda::Graph CudaRunner::capture(const std::function<void()>& body, bool by_all) {
  std::string why;
  cuda::Graph graph;
  try {
    gpu_->begin_capture();
    body();
    graph = gpu_->end_capture();
  } catch (const std::bad_alloc& e) {
    why = e.what();
  } catch (const cuda::CudaError& e) {
    if (e.sticky()) throw;
    why = e.what();
  }
  if (by_all && peers_.comm != nullptr) {
    float without = graph ? 0 : 1;
    peers_.host->all_reduce({&without, 1});
    if (without == 0) return graph;
    if (graph) why = "another rank has none";
  } else if (graph) {
    return graph;
  }
  gpu_->pdl = false;
  gpu_->abandon_capture();
  (by_all ? captures_ : captures_sampling_) = false;
  if (peers_.comm == nullptr) captures_ = captures_sampling_ = false;
  log::warn("no more CUDA graphs, steps of sizes that have none run without: {}", why);
  return {};
}

void CudaRunner::replay(cuda::Graph& graph, bool& warm, const std::function<void()>& body, bool by_all) {
  if (!graph && warm && (by_all ? captures_ : captures_sampling_)) graph = capture(body, by_all);
  if (graph) {
    gpu_->launch(graph);
  } else {
    body();
    warm = true;
  }
}

std::vector<float> CudaRunner::read_logits() {
  DI_CHECK(logits_, "the logits of the last forward were computed in pieces, or there was none");
  std::vector<float> out(static_cast<size_t>(logits_.elems()));
  guarded([&] {
    // Not pinned: the copy is done when the call returns, or soon after.
    gpu_->copy_out(out.data(), logits_.data, out.size() * sizeof(float));
    settle();
  });
  return out;
}

bool CudaRunner::done(uint64_t step_id) {
  DI_CHECK(in_flight_ > 0 && flight(0).id == step_id, "step {} is not the oldest in flight", step_id);
  bool is_done = false;
  guarded([&] {
    is_done = gpu_->done(flight(0).done);
    if (!is_done) peers_.comm->check();
  });
  return is_done;
}

StepOutput CudaRunner::wait(uint64_t step_id) {
  if (!lost_.empty()) throw DeviceLost(lost_);
  DI_CHECK(in_flight_ > 0 && flight(0).id == step_id, "wait for step {}, the oldest of {} in flight is {}",
           step_id, in_flight_, in_flight_ > 0 ? flight(0).id : 0);
  Flight& f = flight(0);
  first_ = (first_ + 1) % static_cast<int>(flights_.size());
  --in_flight_;
  guarded([&] { settle(f.done); });
  if (!leads()) return {};
  const std::byte* out = f.output.data();
  const auto* token = reinterpret_cast<const int32_t*>(out);
  const auto* logprob = reinterpret_cast<const float*>(out + output_layout_.logprob);
  const auto* top_token = reinterpret_cast<const int32_t*>(out + output_layout_.top_token);
  const auto* top_logprob = reinterpret_cast<const float*>(out + output_layout_.top_logprob);
  const auto* surprise = reinterpret_cast<const float*>(out + output_layout_.surprise);
  StepOutput output;
  output.accepted.resize(f.sampled.size());
  if (std::any_of(f.sampled.begin(), f.sampled.end(), [](const Sampled& s) { return s.mirostat; }))
    output.surprise.assign(f.sampled.size(), 0.0f);
  for (size_t i = 0; i < f.sampled.size(); ++i) {
    const Sampled& s = f.sampled[i];
    OutputToken t{.id = token[s.row]};
    if (s.logprobs >= 0) t.logprob = logprob[s.row];
    for (int32_t k = 0; k < s.logprobs; ++k) {
      const int64_t at = int64_t{s.row} * kMaxTopLogprobs + k;
      t.top.push_back({top_token[at], top_logprob[at]});
    }
    if (s.mirostat) output.surprise[i] = surprise[s.row];
    output.accepted[i].push_back(std::move(t));
  }
  read_scores(f, output);
  return output;
}

void CudaRunner::read_scores(const Flight& f, StepOutput& output) const {
  const std::byte* out = f.scores.data();
  const auto* logprob = reinterpret_cast<const float*>(out);
  const auto* rank = reinterpret_cast<const int32_t*>(out + score_layout_.rank);
  const auto* top_token = reinterpret_cast<const int32_t*>(out + score_layout_.top_token);
  const auto* top_logprob = reinterpret_cast<const float*>(out + score_layout_.top_logprob);
  int64_t at = 0;
  for (const Scored& s : f.scored) {
    std::vector<OutputToken>& tokens = output.scored.emplace_back();
    for (const int32_t target : s.targets) {
      OutputToken& t = tokens.emplace_back();
      t = {.id = target, .rank = rank[at], .logprob = logprob[at]};
      for (int32_t k = 0; k < s.top; ++k)
        t.top.push_back({top_token[at * kMaxTopLogprobs + k], top_logprob[at * kMaxTopLogprobs + k]});
      ++at;
    }
  }
}

}  // namespace deepinfer
