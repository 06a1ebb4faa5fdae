#include "session.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <iterator>

#include "base/check.h"
#include "base/limits.h"
#include "cli/resolve_model.h"
#include "engine/profiling.h"
#include "server/request_record.h"

namespace deepinfer::python {

namespace asio = boost::asio;
using server::ChoiceUpdate;
using Clock = std::chrono::steady_clock;

Channel::~Channel() {
  if (fd_ >= 0) ::close(fd_);
}

void Channel::push(News news) {
  {
    const std::lock_guard lock(mutex_);
    if (news_.empty() && fd_ >= 0) eventfd_write(fd_, 1);
    news_.push_back(std::move(news));
  }
  arrived_.notify_one();  // who wakes finds the lock free
}

std::vector<News> Channel::take(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, time, [this] { return !news_.empty(); });
  eventfd_t count;
  if (!news_.empty() && fd_ >= 0) eventfd_read(fd_, &count);
  return std::exchange(news_, {});
}

int Channel::fd() {
  const std::lock_guard lock(mutex_);
  if (fd_ < 0) fd_ = eventfd(news_.empty() ? 0 : 1, EFD_CLOEXEC | EFD_NONBLOCK);
  return fd_;
}

// One request, owned by the coroutine that follows it.
struct Session::Running {
  uint64_t id = 0;
  server::Prepared prepared;
  bool stream = false;
  std::shared_ptr<Channel> channel;
  std::unique_ptr<server::Generation> generation;
  std::vector<ChoiceUpdate> whole;  // by choice, unless it streams
  Clock::time_point begin = Clock::now();
  Times times;
  bool cancelled = false;

  double seconds() const { return std::chrono::duration<double>(Clock::now() - begin).count(); }
};

namespace {

// No deadlines and no bound of the queue: whoever calls from Python waits for all of his prompts.
Config embedded(Config config) {
  config.server.max_queue = std::numeric_limits<int>::max() / 2;
  config.server.queue_timeout = 0;
  config.server.timeout = 0;
  return config;
}

void append(ChoiceUpdate& whole, ChoiceUpdate update) {
  whole.index = update.index;
  whole.text += update.text;
  std::move(update.tokens.begin(), update.tokens.end(), std::back_inserter(whole.tokens));
  whole.ids.insert(whole.ids.end(), update.ids.begin(), update.ids.end());
  if (update.finish.empty()) return;
  whole.finish = update.finish;
  whole.stop_text = std::move(update.stop_text);
  whole.stop_id = update.stop_id;
}

// The cache of the CPU costs memory as it is used: two engines that each fit alone would end the process
// later.
Result<void> check_host_memory(const LoadSummary& s, int64_t others, int64_t limit) {
  if (others == 0 || others + s.weight_bytes + s.kv_bytes <= limit) return {};
  const auto mib = [](int64_t bytes) { return bytes >> 20; };
  const int64_t left = std::max<int64_t>(limit - others - s.weight_bytes, 0);
  return make_error(
      ErrorCode::kMemory,
      "memory: the weights ({} MiB) and the KV cache ({} MiB) of this engine and what the other engines of "
      "this process may take ({} MiB) are more than this machine's limit of {} MiB: {}",
      mib(s.weight_bytes), mib(s.kv_bytes), mib(others), mib(limit),
      left > 0 ? fmt::format("set gpu.kv_cache_memory_bytes to {} or less, or close another engine", left)
               : std::string("close another engine, or give it less gpu.kv_cache_memory_bytes"));
}

}  // namespace

Result<std::unique_ptr<Session>> Session::open(Config config, int64_t others) {
  config = embedded(std::move(config));
  DI_TRY(resolve_model(config));
  DI_ASSIGN(std::unique_ptr<Llm> llm, Llm::load(config));
  if (!llm->on_gpu) DI_TRY(check_host_memory(llm->summary, others, machine_limits().memory_bytes));
  return std::unique_ptr<Session>(new Session(std::move(config), std::move(llm)));
}

Session::Session(Config config, std::unique_ptr<Llm> llm) : config_(std::move(config)), llm_(std::move(llm)) {
  thread_ = std::thread([this] { io_.run(); });
}

Session::~Session() {
  close();
}

Session::Use Session::use() const {
  Use use{std::shared_lock(open_)};
  use.llm = closed_ ? nullptr : llm_.get();
  return use;
}

Result<Submitted> Session::submit(const boost::json::object& body, SubmitOptions options,
                                  std::shared_ptr<Channel> channel) {
  const Use model = use();
  if (!model) return make_error(ErrorCode::kUnavailable, "the engine is closed");
  auto running = std::make_shared<Running>();
  running->id = ++last_;
  DI_ASSIGN(running->prepared,
            server::prepare(body, options.chat ? server::kChat : server::kCompletion, *model.llm, config_));
  if (running->prepared.prompts.size() != 1)
    return make_error(ErrorCode::kInvalidArgument, "prompt: got {} prompts in one request, expected one",
                      running->prepared.prompts.size());
  running->stream = options.stream;
  running->channel = std::move(channel);
  Submitted out{running->id, running->prepared.prompts[0]};
  asio::co_spawn(io_, follow(std::move(running)), asio::detached);
  return out;
}

void Session::cancel(uint64_t request) {
  asio::post(io_, [this, request] {
    const auto it = running_.find(request);
    if (it == running_.end()) return;
    it->second->cancelled = true;
    it->second->generation->cancel();
    it->second->generation->wake();
  });
}

void Session::end(Running& running, std::optional<Error> error) {
  running.times.end = running.seconds();
  News news{.request = running.id, .end = true, .error = std::move(error), .times = running.times};
  if (!news.error) {
    news.usage = running.generation->usage();
    news.prompt_logprobs = running.generation->prompt_logprobs().front();
    news.choices = std::move(running.whole);
  }
  running_.erase(running.id);
  running.channel->push(std::move(news));
}

// Until the answer is complete; the error that ended it.
asio::awaitable<std::optional<Error>> Session::run(Running& r) {
  server::Generation& generation = *r.generation;
  if (auto submitted = generation.submit(r.prepared.prompts, r.prepared.max_tokens); !submitted)
    co_return std::move(submitted).error();
  if (!r.stream) r.whole.resize(static_cast<size_t>(generation.choices()));
  while (!generation.done()) {
    co_await generation.wait(std::nullopt);
    if (r.cancelled) co_return make_error(ErrorCode::kCancelled, "the request was cancelled");
    auto updates = generation.take();
    if (!updates) co_return std::move(updates).error();
    if (generation.scheduled() && !r.times.queue) r.times.queue = r.seconds();
    if (updates->empty()) continue;
    if (!r.times.first_token) r.times.first_token = r.seconds();
    if (r.stream) {
      r.channel->push({.request = r.id, .choices = std::move(*updates)});
      continue;
    }
    for (ChoiceUpdate& update : *updates) {
      const auto index = static_cast<size_t>(update.index);
      append(r.whole.at(index), std::move(update));
    }
  }
  co_return std::nullopt;
}

asio::awaitable<void> Session::follow(std::shared_ptr<Running> running) {
  running_[running->id] = running;
  running->generation =
      std::make_unique<server::Generation>(*llm_, running->prepared.request, io_.get_executor());
  std::optional<Error> error;
  try {
    error = co_await run(*running);
  } catch (const std::exception& fault) {
    error = make_error(ErrorCode::kInternal, "{}", fault.what());
  }
  end(*running, std::move(error));
}

void Session::close() {
  if (closed_.exchange(true)) return;
  const std::unique_lock lock(open_);
  llm_->engine->stop();  // what runs gets its end, which the coroutines tell
  finish_profile(llm_->profiler.get(), config_);
  work_.reset();
  thread_.join();
  llm_.reset();
}

}  // namespace deepinfer::python
