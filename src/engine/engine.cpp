#include "deepinfer/engine.h"

#include <future>
#include <thread>

#include "base/check.h"
#include "base/limits.h"
#include "engine/engine_loop.h"

namespace deepinfer {

struct Engine::Impl {
  Impl(std::unique_ptr<ModelRunner> runner_in, EngineOptions options_in, Clock* clock_in)
      : runner(std::move(runner_in)),
        options(std::move(options_in)),
        clock(clock_in != nullptr ? *clock_in : steady),
        loop(*runner, options,
             {runner->info(), options.max_num_batched_tokens, options.enable_chunked_prefill,
              options.enable_prefix_caching, options.speculation},
             clock, mailbox, metrics) {
    limits.max_len = loop.max_len();
    limits.vocab_size = runner->info().vocab_size;
    limits.block_size = runner->info().block_size;
    limits.prefix_caching = options.enable_prefix_caching;
    limits.end_ids = options.end_ids;
  }

  Result<void> check_prompt(std::span<const int32_t> prompt) const;
  Result<uint64_t> reserve(int sequences);
  void post(Submission submission);
  std::optional<EmptiedCache> empty_cache(bool release);

  std::unique_ptr<ModelRunner> runner;
  EngineOptions options;
  SteadyClock steady;
  const Clock& clock;
  Mailbox mailbox;
  EngineMetrics metrics{runner->info().max_model_len};
  EngineLoop loop;
  SequenceLimits limits;
  std::mutex join_mutex;
  std::thread thread;
  std::thread::id thread_id;  // set once, before the first request
};

Engine::Engine(std::unique_ptr<ModelRunner> runner, EngineOptions options, Clock* clock)
    : impl_(std::make_unique<Impl>(std::move(runner), std::move(options), clock)) {
  impl_->thread = std::thread([impl = impl_.get()] {
    ask_for_short_turns();
    impl->loop.run();
  });
  impl_->thread_id = impl_->thread.get_id();
}

Engine::~Engine() {
  stop();
}

Result<void> Engine::Impl::check_prompt(std::span<const int32_t> prompt) const {
  const ModelRunner::Info& info = runner->info();
  const auto length = static_cast<int64_t>(prompt.size());
  auto refuse = [](Error error) {
    error.param = "prompt";
    return error;
  };
  if (length == 0) {
    return refuse(make_error(ErrorCode::kInvalidArgument, "prompt: got no tokens, expected at least one"));
  }
  for (int32_t id : prompt) {
    if (id >= 0 && id < info.vocab_size) continue;
    return refuse(make_error(ErrorCode::kInvalidArgument, "prompt: got token {}, expected 0 to {}", id,
                             info.vocab_size - 1));
  }
  if (length >= info.max_model_len) {
    return refuse(
        make_error(ErrorCode::kContextLength,
                   "prompt: got {} tokens, expected at most {}: the context holds {} tokens, prompt and "
                   "answer together; shorten the prompt",
                   length, info.max_model_len - 1, info.max_model_len));
  }
  if (length >= limits.max_len) {
    return refuse(
        make_error(ErrorCode::kMemory,
                   "prompt: got {} tokens, expected at most {}: the KV cache has {} blocks of {} tokens; "
                   "shorten the prompt, or start the server with more gpu.kv_cache_memory_bytes",
                   length, limits.max_len - 1, info.num_blocks, info.block_size));
  }
  return {};
}

// A place in the queue for each sequence, and the request's id.
Result<uint64_t> Engine::Impl::reserve(int sequences) {
  std::lock_guard lock(mailbox.mutex);
  if (mailbox.draining || mailbox.stopping) {
    return make_error(ErrorCode::kUnavailable, "the server is shutting down and takes no new requests");
  }
  if (!mailbox.lost.empty()) {
    return make_error(ErrorCode::kMemory, "the server's GPU failed: the server has to be started again");
  }
  if (mailbox.queued + sequences > options.max_queue) {
    return make_error(ErrorCode::kQueueFull,
                      "the queue is full: {} sequences wait and {} more were asked for, the limit is {} "
                      "(server.max_queue); try again later",
                      mailbox.queued, sequences, options.max_queue);
  }
  mailbox.queued += sequences;
  ++mailbox.requests;
  return mailbox.next_request++;
}

void Engine::Impl::post(Submission submission) {
  {
    std::lock_guard lock(mailbox.mutex);
    if (mailbox.idle) mailbox.heartbeat = clock.now();
    mailbox.idle = false;
    if (!mailbox.stopped) {
      mailbox.submitted += static_cast<int64_t>(submission.sequences.size());
      mailbox.submissions.push_back(std::move(submission));
      mailbox.wake.notify_one();
      return;
    }
  }
  // Stopped between reserve() and here.
  for (const auto& s : submission.sequences) {
    submission.on_event({.request = s->request, .choice = s->choice, .finish = FinishReason::kCancelled});
  }
}

Result<std::shared_ptr<const ResolvedSampling>> Engine::prepare(SamplingParams sampling) const {
  const SequenceLimits& limits = impl_->limits;
  DI_TRY(validate(sampling, limits.vocab_size));
  return std::make_shared<const ResolvedSampling>(
      resolve(std::move(sampling), limits.end_ids, limits.vocab_size));
}

Result<uint64_t> Engine::submit(EngineRequest request, OnEvent on_event) {
  const int max_tokens = request.sampling.max_tokens;
  if (!request.shared) {
    DI_ASSIGN(request.shared, prepare(std::move(request.sampling)));
    request.sampling = {.max_tokens = max_tokens};
  }
  DI_TRY(check_lengths(request.shared->params, max_tokens));
  DI_TRY(impl_->check_prompt(request.prompt));
  const int n = request.shared->params.n;
  DI_ASSIGN(const uint64_t id, impl_->reserve(n));
  try {
    Submission submission{.request = id,
                          .arrival = impl_->clock.now(),
                          .name = std::move(request.name),
                          .on_event = std::move(on_event)};
    submission.sequences = make_sequences(id, std::move(request), impl_->limits);
    impl_->post(std::move(submission));
  } catch (...) {
    std::lock_guard lock(impl_->mailbox.mutex);
    impl_->mailbox.queued -= n;
    --impl_->mailbox.requests;
    throw;
  }
  return id;
}

void Engine::cancel(uint64_t request, int choice, bool answered) {
  std::lock_guard lock(impl_->mailbox.mutex);
  if (impl_->mailbox.requests == 0) return;
  impl_->mailbox.cancellations.push_back({request, choice, answered});
  impl_->mailbox.wake.notify_one();
}

void Engine::drain() {
  std::lock_guard lock(impl_->mailbox.mutex);
  impl_->mailbox.draining = true;
}

bool Engine::idle() const {
  std::lock_guard lock(impl_->mailbox.mutex);
  return impl_->mailbox.requests == 0;
}

void Engine::stop() {
  {
    std::lock_guard lock(impl_->mailbox.mutex);
    impl_->mailbox.stopping = true;
    impl_->mailbox.wake.notify_one();
  }
  // From a callback: the thread ends after it, and the destructor waits.
  if (impl_->thread_id == std::this_thread::get_id()) return;
  std::lock_guard lock(impl_->join_mutex);
  if (impl_->thread.joinable()) impl_->thread.join();
}

std::optional<EmptiedCache> Engine::Impl::empty_cache(bool release) {
  std::future<std::optional<EmptiedCache>> done;
  {
    std::lock_guard lock(mailbox.mutex);
    if (mailbox.requests > 0 || mailbox.stopping) return std::nullopt;
    CacheReset& reset = mailbox.resets.emplace_back();
    reset.release = release;
    done = reset.done.get_future();
    mailbox.wake.notify_one();
  }
  return done.get();
}

bool Engine::reset_prefix_cache() {
  return impl_->empty_cache(false).has_value();
}

std::optional<EmptiedCache> Engine::empty_cache() {
  return impl_->empty_cache(true);
}

HeldMemory Engine::held_memory() const {
  return impl_->runner->held_memory();
}

void Engine::on_device_lost(std::function<void(const std::string&)> callback) {
  std::string why;
  {
    std::lock_guard lock(impl_->mailbox.mutex);
    why = impl_->mailbox.lost;
    if (why.empty()) {
      impl_->mailbox.on_device_lost = std::move(callback);
      return;
    }
  }
  callback(why);
}

const EngineMetrics& Engine::metrics() const {
  return impl_->metrics;
}

EngineStats Engine::stats() const {
  std::lock_guard lock(impl_->mailbox.mutex);
  const Mailbox& mailbox = impl_->mailbox;
  EngineStats stats = mailbox.stats;
  stats.waiting += static_cast<int>(mailbox.submitted);
  if (!mailbox.idle) {
    stats.seconds_since_heartbeat =
        std::chrono::duration<double>(impl_->clock.now() - mailbox.heartbeat).count();
  }
  return stats;
}

}  // namespace deepinfer
