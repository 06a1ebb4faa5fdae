#include "cli/batch_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>

#include "base/check.h"
#include "cli/exit_code.h"
#include "cli/interrupt.h"
#include "cli/resolve_model.h"
#include "cli/stats_line.h"
#include "engine/llm.h"
#include "server/batch.h"

namespace deepinfer {
namespace {

constexpr int kSomeFailed = 1;
// Requests with the engine: as many as it runs, and as many again that wait.
constexpr int kWindow = 2;
constexpr std::chrono::seconds kTick{1};
constexpr int kTicksOfLog = 30;   // between lines where standard error is no terminal
constexpr int kTicksOfSync = 10;  // what a loss of power may cost

server::BatchPaths paths_of(const BatchOptions& options) {
  server::BatchPaths paths{options.input, options.output, options.errors};
  if (!options.errors.empty()) return paths;
  paths.errors = paths.output;
  paths.errors.replace_extension(".errors" + paths.output.extension().string());
  return paths;
}

// No deadlines and no bound of the queue: what is in flight is bounded, and its file waits.
Config without_deadlines(Config config) {
  config.server.max_queue = std::numeric_limits<int>::max() / 2;
  config.server.queue_timeout = 0;
  config.server.timeout = 0;
  return config;
}

// The thread that called batch_command() runs the batch and waits for signals.
class Run {
 public:
  Run(Config config, const server::BatchPaths& paths) : config_(std::move(config)), paths_(paths) {}

  int run();

 private:
  using Clock = std::chrono::steady_clock;

  Result<void> load(server::BatchFiles files);
  void start();
  void tick();
  void show(bool line);
  void end_at_once();
  int result() const;

  Config config_;
  const server::BatchPaths& paths_;
  boost::asio::io_context io_{1};  // before the model, whose last events go to it
  boost::asio::signal_set signals_{io_};
  boost::asio::steady_timer timer_{io_};
  std::unique_ptr<Llm> llm_;
  std::optional<server::Batch> batch_;
  bool terminal_ = isatty(STDERR_FILENO) != 0;
  Clock::time_point begin_, last_tick_;
  uint64_t last_tokens_ = 0;
  double tokens_per_second_ = 0;
  int ticks_ = 0;
  bool interrupted_ = false, ended_ = false;
};

Result<void> Run::load(server::BatchFiles files) {
  DI_TRY(resolve_model(config_));
  DI_ASSIGN(llm_, Llm::load(config_));
  batch_.emplace(*llm_, config_, std::move(files), io_, kWindow * config_.gpu.max_num_seqs);
  return {};
}

void Run::start() {
  llm_->engine->on_device_lost([this](const std::string& why) {
    boost::asio::post(io_, [this, why] { batch_->stop(Error{ErrorCode::kMemory, why, {}}); });
  });
  signals_.add(SIGINT);
  signals_.add(SIGTERM);
  signals_.async_wait([this](const boost::system::error_code& error, int) {
    if (error) return;
    interrupted_ = true;
    signals_.clear();  // the second one ends the program: results are whole on the disk
    batch_->stop(std::nullopt);
  });
  begin_ = last_tick_ = Clock::now();
  tick();
  batch_->start([this] {
    ended_ = true;
    signals_.cancel();
    timer_.cancel();
  });
}

void Run::tick() {
  timer_.expires_after(kTick);
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (error || ended_) return;
    const Clock::time_point now = Clock::now();
    const uint64_t tokens = sample_stats(*llm_->engine).generation_tokens;
    tokens_per_second_ =
        static_cast<double>(tokens - last_tokens_) / std::chrono::duration<double>(now - last_tick_).count();
    last_tokens_ = tokens;
    last_tick_ = now;
    ++ticks_;
    if (terminal_ || ticks_ % kTicksOfLog == 0) show(!terminal_);
    if (ticks_ % kTicksOfSync == 0) batch_->sync();
    const double limit = config_.server.stall_timeout;
    if (limit > 0 && llm_->engine->stats().seconds_since_heartbeat > limit) end_at_once();
    tick();
  });
}

// `line`: with its end; else the terminal's last line changes.
void Run::show(bool line) {
  const server::BatchProgress& p = batch_->progress();
  const int64_t now = p.succeeded + p.failed;
  std::string text = fmt::format("{} of {} done", p.before + p.succeeded, p.requests);
  if (p.failed > 0) text += fmt::format(", {} failed", p.failed);
  text += fmt::format("; {:.0f} tokens/s", tokens_per_second_);
  const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
  if (now > 0)
    text += fmt::format(", about {} left",
                        duration(seconds / static_cast<double>(now) * static_cast<double>(p.left())));
  std::fprintf(stderr, line ? "%s\n" : "\r%s\033[K", text.c_str());
  std::fflush(stderr);
}

// The engine's thread hangs, in a driver perhaps, and would be waited for without end.
void Run::end_at_once() {
  batch_->sync();
  const int code = report(make_error(ErrorCode::kMemory,
                                     "the engine does not answer (server.stall_timeout): ending; the same "
                                     "command goes on where it was"));
  std::fflush(stderr);
  std::_Exit(code);
}

int Run::result() const {
  const server::BatchProgress& p = batch_->progress();
  if (terminal_) std::fprintf(stderr, "\r\033[K");
  const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
  std::fprintf(stderr, "%lld of %lld requests done, %lld of them before; %lld tokens in %s, %.0f tokens/s\n",
               static_cast<long long>(p.before + p.succeeded), static_cast<long long>(p.requests),
               static_cast<long long>(p.before), static_cast<long long>(p.completion_tokens),
               duration(seconds).c_str(), static_cast<double>(p.completion_tokens) / std::max(seconds, 1e-3));
  if (p.failed > 0)
    std::fprintf(stderr, "deepinfer: %lld %s failed, see %s; the first: %s\n",
                 static_cast<long long>(p.failed), p.failed == 1 ? "request" : "requests",
                 paths_.errors.c_str(), p.first_failure.c_str());
  if (batch_->error()) return report(*batch_->error());
  if (interrupted_ && p.left() > 0) {
    std::fprintf(stderr, "deepinfer: stopped; the same command goes on where it was\n");
    return kInterruptedExit;
  }
  return p.failed > 0 ? kSomeFailed : 0;
}

int Run::run() {
  auto files = server::open_batch(paths_, static_cast<size_t>(config_.server.max_body_bytes));
  if (!files) return report(files.error());
  if (files->plan.done == files->plan.requests) {
    std::fprintf(stderr, "%lld of %lld requests done, all of them before\n",
                 static_cast<long long>(files->plan.done), static_cast<long long>(files->plan.requests));
    std::error_code ignored;
    std::filesystem::remove(paths_.errors, ignored);
    return 0;
  }
  if (const Result<void> loaded = load(std::move(*files)); !loaded) return report(loaded.error());
  start();
  io_.run();
  const int code = result();
  std::error_code ignored;
  if (batch_->progress().failed == 0) std::filesystem::remove(paths_.errors, ignored);
  return code;
}

}  // namespace

int batch_command(Config config, const BatchOptions& options) {
  std::signal(SIGXFSZ, SIG_IGN);  // a limit on the size of files is an error of the write
  const server::BatchPaths paths = paths_of(options);
  return Run(without_deadlines(std::move(config)), paths).run();
}

}  // namespace deepinfer
