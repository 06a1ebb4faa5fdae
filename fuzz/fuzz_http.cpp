// Bytes to the server's socket, in pieces that the first byte seeds: every answer is HTTP, and the server
// lives on.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>

#include "base/check.h"
#include "server/http.h"

using namespace deepinfer;
using namespace deepinfer::server;

namespace {

// One server for all inputs.
struct Target {
  Target() {
    HttpLimits limits;
    limits.head_bytes = 4096;
    limits.body_bytes = 4096;
    limits.head = limits.body = limits.idle = std::chrono::milliseconds(500);
    http = std::make_unique<HttpServer>(
        limits,
        [](HttpExchange& exchange) -> boost::asio::awaitable<void> {
          const HttpRequest& request = exchange.request();
          DI_CHECK(request.path.starts_with('/') && request.body.size() <= 4096,
                   "a request beyond its limits");
          co_await exchange.reply({200, request.body, "text/plain"});
        },
        [](int, std::string_view message) { return std::string(message); });
    auto bound = http->listen("127.0.0.1", 0);
    DI_CHECK(bound.ok(), "{}", bound.error().message);
    port = *bound;
    http->start(1);
  }
  std::unique_ptr<HttpServer> http;
  uint16_t port = 0;
};

// A whole request in a connection of its own; what came back.
std::string exchange(uint16_t port, const uint8_t* data, size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  const int connection = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  DI_CHECK(connect(connection, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
           "it does not listen");
  for (size_t at = 0; at < size;) {
    const size_t piece = std::min<size_t>(size - at, 1 + random() % (1 + size / 4));
    const ssize_t sent = send(connection, data + at, piece, MSG_NOSIGNAL);
    if (sent <= 0) break;
    at += static_cast<size_t>(sent);
  }
  shutdown(connection, SHUT_WR);
  std::string answer;
  char bytes[4096];
  for (ssize_t got = 0; (got = recv(connection, bytes, sizeof bytes, 0)) > 0;)
    answer.append(bytes, static_cast<size_t>(got));
  close(connection);
  return answer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Target target;
  if (size == 0) return 0;
  const std::string answer = exchange(target.port, data + 1, size - 1, data[0]);
  DI_CHECK(answer.empty() || answer.starts_with("HTTP/1.1 "), "an answer that is no HTTP: {}",
           answer.substr(0, 40));
  DI_CHECK(!answer.starts_with("HTTP/1.1 500"), "a fault of the server: {}", answer);
  return 0;
}
