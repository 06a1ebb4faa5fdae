// HTTP/1.1 over TCP or a Unix socket, with TLS or without: connections, limits and deadlines. What a request
// means is the handler's business. http.cpp and connection.cpp alone include Beast.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deepinfer/result.h"

namespace deepinfer::server {

struct HttpLimits {
  size_t head_bytes = 32 << 10;
  size_t body_bytes = 32 << 20;
  size_t bodies_bytes = 256 << 20;        // of all connections together: beyond it, 503
  int connections = 4096;                 // further ones get 503 and are closed
  std::chrono::milliseconds head{10000};  // from a head's first byte to its last, and for a TLS handshake
  std::chrono::milliseconds body{60000};
  std::chrono::milliseconds idle{75000};   // between requests
  std::chrono::milliseconds write{60000};  // a client that reads nothing for so long is gone
};

using HttpFields = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;
  std::string path;   // without the query, as sent (percent-encoded)
  std::string query;  // without '?'
  HttpFields fields;  // names in lower case
  std::string body;
  std::shared_ptr<void> lease;  // the body's share of HttpLimits::bodies_bytes, held as long as this

  std::string_view field(std::string_view name) const;  // first of that name; empty: none
};

struct HttpReply {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  HttpFields fields;   // further ones: names and values of ours, without line ends
  bool close = false;  // the connection ends with this reply
  std::string code;    // of the error in the body, for metrics and the log; not sent
};

class Connection;
struct RequestRecord;
class TlsContext;

// One request and the way to answer it. Lives on its connection's strand; the handler must not keep it.
class HttpExchange {
 public:
  explicit HttpExchange(Connection& connection) : connection_(connection) {}

  const HttpRequest& request() const;
  HttpRequest take_request();
  boost::asio::any_io_executor executor() const;

  // The client is gone (closed, half closed, reset, or it stopped reading). The callback runs once on the
  // strand, at once when it is so already.
  bool disconnected() const;
  void on_disconnect(std::function<void()> callback);

  bool started() const;  // a status line went out

  // Whole replies. False: the client is gone.
  boost::asio::awaitable<bool> reply(HttpReply reply);

  // A reply in pieces; each send() leaves at once.
  boost::asio::awaitable<bool> start_stream(HttpReply head);
  boost::asio::awaitable<bool> send(std::string_view data);
  boost::asio::awaitable<bool> end_stream();

  // Fields that every reply of this exchange gets besides its own (CORS, the request's id).
  void add_field(std::string name, std::string value);

  // Called before each status line goes out, so that who has the reply finds it counted.
  void on_head(std::function<void(const HttpReply&)> callback);
  // The reply cannot be completed: the connection ends with what was sent.
  void abandon();

  RequestRecord* record = nullptr;  // the handler's; http.cpp does not look

 private:
  Connection& connection_;
};

// Exceptions become 500. Not called for requests that break the rules of HTTP: these get their 4xx.
using HttpHandler = std::function<boost::asio::awaitable<void>(HttpExchange&)>;
// Makes the body of replies that http.cpp gives by itself.
using HttpErrorBody = std::function<std::string(int status, std::string_view message)>;

// Any thread may call its methods. start() begins threads of its own; handlers run on them.
class HttpServer {
 public:
  // `tls` null: plain HTTP.
  HttpServer(HttpLimits limits, HttpHandler handler, HttpErrorBody error_body,
             std::shared_ptr<const TlsContext> tls = nullptr);
  ~HttpServer();  // stop()
  HttpServer(const HttpServer&) = delete;

  // Binds and listens; returns the port. kAddressInUse or kConfig with what to do. A client that connects now
  // waits until start().
  Result<uint16_t> listen(const std::string& host, int port);
  // The same on a Unix socket, whose file is removed at the end.
  Result<void> listen_unix(const std::string& path);
  void remove_socket_file();  // now, for a process that ends without stop()
  void start(int threads);

  // From now on each reply closes its connection, and idle ones close at once.
  void close_when_idle();
  // Ends every connection at once, as if all clients had gone, and returns when the last handler has
  // returned.
  void stop();

  int connections() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace deepinfer::server
