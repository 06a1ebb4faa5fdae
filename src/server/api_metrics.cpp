// The routes of operators: what the server counts, and its prefix cache.
#include <chrono>
#include <thread>

#include "base/check.h"
#include "server/api.h"
#include "server/http_head.h"
#include "server/metrics_text.h"

namespace deepinfer::server {

namespace asio = boost::asio;

namespace {

constexpr int kResetTries = 10;
constexpr std::chrono::milliseconds kResetPause{5};

}  // namespace

asio::awaitable<void> Api::metrics(HttpExchange& exchange) {
  HttpReply reply{200, metrics_text(http_metrics_, config_, llm_)};
  reply.content_type = kMetricsContentType;
  co_await exchange.reply(std::move(reply));
}

// vLLM answers 200 whether the cache was emptied or not; here 200 means that it was.
asio::awaitable<void> Api::reset_prefix_cache(HttpExchange& exchange) {
  const std::string query = lower(exchange.request().query);  // Python writes False
  if (query.find("reset_running_requests=") != std::string::npos &&
      query.find("reset_running_requests=false") == std::string::npos) {
    co_await exchange.reply(
        error_reply({400,
                     "reset_running_requests: this server never ends running requests to "
                     "empty the cache; leave it out and ask again when none runs",
                     "invalid_request_error", "reset_running_requests", "unsupported_parameter"}));
    co_return;
  }
  // The engine's thread answers, which neither a thread of connections nor one that reads prompts waits for.
  // A request whose answer is out already leaves the engine a moment later: that is waited for.
  const auto done = co_await reset_pool_.run<bool>([this]() -> Result<bool> {
    for (int i = 0; i < kResetTries; ++i) {
      if (llm_.load()->engine->reset_prefix_cache()) return true;
      std::this_thread::sleep_for(kResetPause);
    }
    return false;
  });
  if (!done) {
    co_await exchange.reply(
        error_reply(to_api_error({ErrorCode::kQueueFull, "too many resets are waiting: try again", {}})));
  } else if (!*done) {
    co_await exchange.reply(error_reply({409,
                                         "the prefix cache is in use: requests are running; try again when "
                                         "deepinfer:num_requests_running is 0",
                                         "conflict_error", "", "requests_running", 1}));
  } else {
    HttpReply reply{200, ""};
    reply.content_type.clear();
    co_await exchange.reply(std::move(reply));
  }
}

}  // namespace deepinfer::server
