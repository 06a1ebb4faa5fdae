#include "cli/serve_command.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "cli/exit_code.h"
#include "cli/limit_hint.h"
#include "cli/resolve_model.h"
#include "cli/serve_banner.h"
#include "cli/stats_line.h"
#include "engine/cluster.h"
#include "engine/llm.h"
#include "engine/profiling.h"
#include "server/server.h"

namespace deepinfer {
namespace {

constexpr int kDrainExpired = 6;
constexpr std::chrono::minutes kStatsInterval{1};
// For answers that say why they end, after the device is lost.
constexpr double kLastWords = 3;

// Each connection is a file: as many as the system lets this user have.
void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// The thread that called serve_command() waits here for signals and for the loader's news.
class Control {
 public:
  Control(const Config& config, std::string settings)
      : config_(config), settings_(std::move(settings)), server_(config) {}

  int run();

 private:
  void load();
  void loaded(Result<std::unique_ptr<Llm>> llm);
  void say_ready() const;
  void log_stats();
  void end();
  void wait_for_signal();
  void on_signal();
  [[noreturn]] void quit(int code);
  void on_device_lost(const std::string& why);
  void drain(double seconds);
  bool engine_stalled() const;

  const Config& config_;
  const std::string settings_;  // those that are not built-in, for the banner
  boost::asio::io_context io_;
  boost::asio::signal_set signals_{io_, SIGINT, SIGTERM};
  server::Server server_;
  server::Address address_;
  std::thread loader_, drainer_;
  boost::asio::steady_timer stats_timer_{io_};
  StatsSample stats_;  // when the last line was due
  std::optional<LimitHint> hint_;
  std::unique_ptr<Llm> llm_;
  int exit_code_ = 0;
  bool ended_ = false;
};

int Control::run() {
  auto address = server_.start();
  if (!address) return report(address.error());
  address_ = *address;
  log::info("loading the model; listening on {}", address_.url);
  wait_for_signal();
  loader_ = std::thread([this] { load(); });
  io_.run();
  if (loader_.joinable()) loader_.join();
  if (drainer_.joinable()) drainer_.join();
  server_.stop();
  if (llm_) finish_profile(llm_->profiler.get(), config_);
  // Its thread hangs, in a driver perhaps, and would be waited for without end.
  if (llm_ && engine_stalled()) {
    log::error("the engine does not answer: ending without it");
    quit(exit_code_ != 0 ? exit_code_ : kDrainExpired);
  }
  llm_.reset();  // before the server: its engine's last events go to the server's executors
  return exit_code_;
}

void Control::load() {
  std::optional<Result<std::unique_ptr<Llm>>> llm;
  try {
    Config config = config_;
    Result<void> resolved = resolve_model(config);
    llm.emplace(resolved ? Llm::load(config) : std::move(resolved).error());
  } catch (const std::exception& fault) {
    llm.emplace(Error{ErrorCode::kInternal, fmt::format("loading the model failed: {}", fault.what()), {}});
  }
  boost::asio::post(io_, [this, result = std::make_shared<Result<std::unique_ptr<Llm>>>(std::move(*llm))] {
    loaded(std::move(*result));
  });
}

void Control::loaded(Result<std::unique_ptr<Llm>> llm) {
  if (!llm) {
    exit_code_ = report(llm.error());
    end();
    return;
  }
  llm_ = std::move(*llm);
  server_.set_model(*llm_);
  if (llm_->profiler->recording())
    log::info(
        "a profile is being recorded; it is written to {} when the server ends, or at POST /stop_profile",
        profile_folder(config_).string());
  llm_->engine->on_device_lost(
      [this](const std::string& why) { boost::asio::post(io_, [this, why] { on_device_lost(why); }); });
  say_ready();
  if (config_.gpu.disable_log_stats) return;
  stats_ = sample_stats(*llm_->engine);
  hint_.emplace(config_, llm_->on_gpu, llm_->summary);
  log_stats();
}

// Lines for machines stay among themselves.
void Control::say_ready() const {
  if (config_.server.log_format == "json") {
    log_with(log::level::info, banner_fields(config_, settings_, *llm_, address_), "ready");
    return;
  }
  fmt::print("{}", banner(config_, settings_, *llm_, address_));
  std::fflush(stdout);
}

// Once a minute, as long as there is something to tell.
void Control::log_stats() {
  stats_timer_.expires_after(kStatsInterval);
  stats_timer_.async_wait([this](const boost::system::error_code& error) {
    if (error || ended_) return;
    const StatsSample now = sample_stats(*llm_->engine);
    if (const auto line = stats_line(stats_, now)) log::info("{}", *line);
    if (const auto hint = hint_->tell(stats_, now)) log::warn("{}", *hint);
    stats_ = now;
    log_stats();
  });
}

bool Control::engine_stalled() const {
  const double limit = config_.server.stall_timeout;
  return limit > 0 && llm_->engine->stats().seconds_since_heartbeat > limit;
}

// Nothing is left to wait for: run() returns.
void Control::end() {
  ended_ = true;
  boost::system::error_code ignored;
  signals_.cancel(ignored);
  signals_.clear(ignored);  // from now on a signal ends the program, whatever it waits for
  stats_timer_.cancel();
}

void Control::wait_for_signal() {
  signals_.async_wait([this](const boost::system::error_code& error, int) {
    if (!error) on_signal();
  });
}

// Without waiting for anything.
void Control::quit(int code) {
  server_.remove_socket_file();
  // Not of all files: a thread that hangs may hold one.
  std::fflush(stdout);
  std::fflush(stderr);
  std::_Exit(code);
}

void Control::on_signal() {
  if (!llm_) {
    // Loading cannot be interrupted, and nothing is half written.
    log::info("stopped while loading");
    quit(0);
  }
  if (drainer_.joinable()) {
    log::warn("second signal: ending at once");
    quit(exit_code_ != 0 ? exit_code_ : kDrainExpired);  // after a lost device: its code
  }
  log::info("finishing running requests, for at most {} s; a second signal ends at once",
            config_.server.drain_timeout);
  drainer_ = std::thread([this] { drain(config_.server.drain_timeout); });
  wait_for_signal();
}

// A service manager starts the program again; here nothing can run any more.
void Control::on_device_lost(const std::string& why) {
  exit_code_ = report(make_error(ErrorCode::kMemory, "{}", why));
  server_.lose_device();
  if (drainer_.joinable()) return;
  drainer_ = std::thread([this] { drain(kLastWords); });
}

void Control::drain(double seconds) {
  const bool clean = server_.drain(server::to_milliseconds(seconds));
  boost::asio::post(io_, [this, clean, seconds] {
    if (!clean) {
      log::warn("requests were still running after {} s", seconds);
      if (exit_code_ == 0) exit_code_ = kDrainExpired;
    }
    end();
  });
}

// A rank that works for another process; a signal ends it, which the others notice.
int run_rank(Config config) {
  Result<void> done = resolve_model(config);
  if (done) done = serve_rank(config);
  return done ? 0 : report(done.error());
}

}  // namespace

int serve_command(const Config& config, const std::string& settings) {
  std::signal(SIGPIPE, SIG_IGN);  // a client that leaves is an error code of its write
  raise_file_limit();
  if (config.cluster.nnodes > 1 && config.cluster.node_rank > 0) return run_rank(config);
  Control control(config, settings);
  return control.run();
}

}  // namespace deepinfer
