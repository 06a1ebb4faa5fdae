#include "server/server.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "base/check.h"
#include "engine/llm.h"
#include "server/api.h"

namespace deepinfer::server {

namespace {

// Streams cost little: a few threads serve thousands of them.
int io_threads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 8, 1, 8);
}

// What a client on this machine types.
std::string url_host(const std::string& host) {
  if (host == "0.0.0.0" || host == "::") return "127.0.0.1";
  return host.find(':') == std::string::npos ? host : "[" + host + "]";
}

}  // namespace

Server::Server(const Config& config, HttpLimits limits)
    : config_(config), api_(std::make_unique<Api>(config)) {
  http_ = std::make_unique<HttpServer>(
      limits, [api = api_.get()](HttpExchange& exchange) { return api->handle(exchange); }, http_error_body);
}

Server::~Server() {
  stop();
}

Result<std::string> Server::start() {
  DI_ASSIGN(const uint16_t port, http_->listen(config_.server.host, config_.server.port));
  http_->start(io_threads());
  return fmt::format("http://{}:{}", url_host(config_.server.host), port);
}

void Server::set_model(Llm& llm) {
  llm_ = &llm;
  api_->set_model(&llm);
}

bool Server::drain(std::chrono::milliseconds time) {
  api_->drain();
  http_->close_when_idle();
  return api_->wait_idle(time);
}

void Server::stop() {
  api_->drain();
  http_->stop();
}

}  // namespace deepinfer::server
