// The routes: who may call what, and what each does.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "deepinfer/config.h"
#include "device/gpu_monitor.h"
#include "engine/llm.h"
#include "server/api_error.h"
#include "server/auth.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/params.h"
#include "server/reply_format.h"
#include "server/request_record.h"
#include "server/text_pool.h"

namespace deepinfer::server {

class Api {
 public:
  // `ping`: how often a stream without news says that it lives.
  Api(const Config& config, std::chrono::milliseconds ping);

  // Before the first exchange: reads the API keys; kConfig for what is wrong with them or with open_routes.
  Result<void> check();

  // For HttpServer; any number of exchanges at once, on any strands.
  boost::asio::awaitable<void> handle(HttpExchange& exchange);

  // The HTTP server refused a request by itself: it broke the rules, or a limit.
  void count_refusal(int status) { http_metrics_.answered("none", status, ""); }

  void set_model(Llm* llm) { llm_ = llm; }  // borrowed; from now on ready
  void drain();                             // POSTs get 503
  void lose_device() { lost_ = true; }      // nothing can be served any more: unhealthy until the end
  // True when no request is being answered any more; false when the time is over.
  bool wait_idle(std::chrono::milliseconds time);

 private:
  using Handler = boost::asio::awaitable<void> (Api::*)(HttpExchange&);
  struct Route;
  static const std::vector<Route>& routes();

  bool host_allowed(const HttpRequest& request) const;
  bool add_cors(HttpExchange& exchange) const;  // whether the request's origin is allowed
  bool is_open(const Route& route) const;
  HttpReply options_reply(const HttpRequest& request, const std::string& allow, bool allowed_origin) const;
  boost::asio::awaitable<void> dispatch(HttpExchange& exchange, bool allowed_origin);
  boost::asio::awaitable<void> serve_route(HttpExchange& exchange, const Route& route);
  std::optional<ApiError> broken() const;  // why the engine does not answer

  boost::asio::awaitable<void> health(HttpExchange& exchange);
  boost::asio::awaitable<void> ready(HttpExchange& exchange);
  boost::asio::awaitable<void> version(HttpExchange& exchange);
  boost::asio::awaitable<void> models(HttpExchange& exchange);
  boost::asio::awaitable<void> model(HttpExchange& exchange);
  boost::asio::awaitable<void> chat(HttpExchange& exchange);
  boost::asio::awaitable<void> completion(HttpExchange& exchange);
  boost::asio::awaitable<void> tokenize(HttpExchange& exchange);
  boost::asio::awaitable<void> detokenize(HttpExchange& exchange);
  boost::asio::awaitable<void> gpu_info(HttpExchange& exchange);
  boost::asio::awaitable<void> metrics(HttpExchange& exchange);
  boost::asio::awaitable<void> reset_prefix_cache(HttpExchange& exchange);
  boost::asio::awaitable<void> openapi(HttpExchange& exchange);
  boost::asio::awaitable<void> start_profile(HttpExchange& exchange);
  boost::asio::awaitable<void> stop_profile(HttpExchange& exchange);

  void log_unknown(const boost::json::object& body, const RequestRecord& record);
  std::string model_json(const std::string& name) const;
  boost::asio::awaitable<void> generate(HttpExchange& exchange, Form form);

  const Config config_;
  const std::chrono::milliseconds ping_;
  ApiKeys keys_;  // constant after check()
  const int64_t started_;
  std::atomic<Llm*> llm_ = nullptr;
  std::atomic<bool> draining_ = false;
  std::atomic<bool> lost_ = false;
  HttpMetrics http_metrics_;
  TextPool text_pool_;
  GpuMonitor gpu_monitor_;
  TextPool gpu_pool_;            // one thread, which may wait for the driver
  TextPool reset_pool_{1, 4};    // one thread, which may wait for the engine
  TextPool profile_pool_{1, 4};  // one thread, which may wait for the disk

  std::mutex mutex_;
  std::condition_variable idle_;
  int active_ = 0;                  // guarded by mutex_: POSTs being answered
  std::set<std::string> reported_;  // guarded by mutex_: unknown fields that the log has seen
};

}  // namespace deepinfer::server
