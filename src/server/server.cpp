#include "server/server.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "engine/llm.h"
#include "server/api.h"
#include "server/tls.h"

namespace deepinfer::server {

namespace {

constexpr size_t kLargestBodies = 8;  // of the largest size, in memory at the same time

// Streams cost little: a few threads serve thousands of them.
int io_threads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 8, 1, 8);
}

// What a client on this machine types.
std::string url_host(const std::string& host) {
  if (host == "0.0.0.0" || host == "::") return "127.0.0.1";
  return host.find(':') == std::string::npos ? host : "[" + host + "]";
}

std::string absolute(const std::string& path) {
  std::error_code ignored;
  const auto out = std::filesystem::absolute(path, ignored);
  return out.empty() ? path : out.string();
}

// As a POSIX shell takes it for one word.
std::string shell_word(const std::string& text) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) return text;
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

HttpLimits http_limits(const Config::Server& server) {
  HttpLimits limits;
  limits.head_bytes = static_cast<size_t>(server.max_header_bytes);
  limits.body_bytes = static_cast<size_t>(server.max_body_bytes);
  limits.bodies_bytes = kLargestBodies * limits.body_bytes;
  limits.connections = server.max_connections;
  limits.head = to_milliseconds(server.header_timeout);
  limits.body = to_milliseconds(server.body_timeout);
  limits.idle = to_milliseconds(server.idle_timeout);
  limits.write = to_milliseconds(server.write_timeout);
  return limits;
}

}  // namespace

std::chrono::milliseconds to_milliseconds(double seconds) {
  constexpr double kLongest = 1e9;  // some thirty years: sums of such times do not overflow
  return std::chrono::milliseconds(std::llround(std::ceil(std::clamp(seconds, 0.0, kLongest) * 1000)));
}

Server::Server(const Config& config, std::chrono::milliseconds ping)
    : config_(config), api_(std::make_unique<Api>(config, ping)) {}

Server::~Server() {
  stop();
}

Result<Address> Server::start() {
  DI_TRY(api_->check());
  DI_ASSIGN(const auto tls, TlsContext::load(config_.server.ssl_certfile, config_.server.ssl_keyfile));
  http_ = std::make_unique<HttpServer>(
      http_limits(config_.server),
      [api = api_.get()](HttpExchange& exchange) { return api->handle(exchange); },
      [api = api_.get()](int status, std::string_view message) {
        api->count_refusal(status);
        return http_error_body(status, message);
      },
      tls);
  DI_ASSIGN(Address address, listen(tls != nullptr));
  if (tls && tls->self_signed())
    address.curl = "--cacert " + shell_word(absolute(config_.server.ssl_certfile)) + " " + address.curl;
  http_->start(io_threads());
  return address;
}

Result<Address> Server::listen(bool tls) {
  const Config::Server& server = config_.server;
  const char* scheme = tls ? "https" : "http";
  if (server.uds.empty()) {
    DI_ASSIGN(const uint16_t port, http_->listen(server.host, server.port));
    const std::string url = fmt::format("{}://{}:{}", scheme, url_host(server.host), port);
    return Address{url, url};
  }
  const Config::Server builtin;
  if (server.host != builtin.host || server.port != builtin.port)
    log::info("server.uds is set: server.host and server.port are not used");
  DI_TRY(http_->listen_unix(server.uds));
  const std::string path = absolute(server.uds);
  return Address{"unix:" + path, fmt::format("--unix-socket {} {}://localhost", shell_word(path), scheme)};
}

void Server::set_model(Llm& llm) {
  llm_ = &llm;
  api_->set_model(&llm);
}

void Server::lose_device() {
  api_->lose_device();
}

bool Server::drain(std::chrono::milliseconds time) {
  api_->drain();
  if (http_) http_->close_when_idle();
  return api_->wait_idle(time);
}

void Server::stop() {
  api_->drain();
  if (http_) http_->stop();
}

void Server::remove_socket_file() {
  if (http_) http_->remove_socket_file();
}

}  // namespace deepinfer::server
