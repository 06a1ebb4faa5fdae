#include "cli/serve_command.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/json/serialize.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "cli/exit_code.h"
#include "cli/resolve_model.h"
#include "engine/llm.h"
#include "server/server.h"

namespace deepinfer {
namespace {

constexpr int kDrainExpired = 6;
// For answers that say why they end, after the device is lost.
constexpr double kLastWords = 3;

// Each connection is a file: as many as the system lets this user have.
void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// A line that works when it is pasted into a shell.
std::string curl_line(const server::Address& address, const Llm& llm, bool needs_key) {
  std::string model = boost::json::serialize(boost::json::string_view(llm.names.front()));
  // Inside single quotes a shell takes everything as it is, but for the quote itself.
  for (size_t at = model.find('\''); at != std::string::npos; at = model.find('\'', at + 4))
    model.replace(at, 1, R"('\'')");
  const bool chat = llm.chat_template != nullptr;
  return fmt::format(
      "curl {}/v1/{} -H 'Content-Type: application/json'{} \\\n"
      "  -d '{{\"model\": {}, {}, \"max_tokens\": 64}}'",
      address.curl, chat ? "chat/completions" : "completions",
      needs_key ? " -H \"Authorization: Bearer $API_KEY\"" : "", model,
      chat ? R"("messages": [{"role": "user", "content": "Why is the sky blue?"}])"
           : R"("prompt": "The capital of France is")");
}

void print_ready(const server::Address& address, const Llm& llm, bool needs_key) {
  fmt::print("Serving {} at {} (Ctrl-C stops). Try in another terminal:\n\n{}\n\n", llm.names.front(),
             address.url, curl_line(address, llm, needs_key));
  std::fflush(stdout);
}

// The thread that called serve_command() waits here for signals and for the loader's news.
class Control {
 public:
  explicit Control(const Config& config) : config_(config), server_(config) {}

  int run();

 private:
  void load();
  void loaded(Result<std::unique_ptr<Llm>> llm);
  void wait_for_signal();
  void on_signal();
  [[noreturn]] void quit(int code);
  void on_device_lost(const std::string& why);
  void drain(double seconds);

  const Config& config_;
  boost::asio::io_context io_;
  boost::asio::signal_set signals_{io_, SIGINT, SIGTERM};
  server::Server server_;
  server::Address address_;
  std::thread loader_, drainer_;
  std::unique_ptr<Llm> llm_;
  int exit_code_ = 0;
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
    signals_.cancel();
    return;
  }
  llm_ = std::move(*llm);
  server_.set_model(*llm_);
  llm_->engine->on_device_lost(
      [this](const std::string& why) { boost::asio::post(io_, [this, why] { on_device_lost(why); }); });
  print_ready(address_, *llm_, !config_.server.api_key.empty() || !config_.server.api_key_file.empty());
}

void Control::wait_for_signal() {
  signals_.async_wait([this](const boost::system::error_code& error, int) {
    if (!error) on_signal();
  });
}

// Without waiting for anything.
void Control::quit(int code) {
  server_.remove_socket_file();
  std::fflush(nullptr);
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
    quit(kDrainExpired);
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
    signals_.cancel();
  });
}

}  // namespace

int serve_command(const Config& config) {
  std::signal(SIGPIPE, SIG_IGN);  // a client that leaves is an error code of its write
  raise_file_limit();
  Control control(config);
  return control.run();
}

}  // namespace deepinfer
