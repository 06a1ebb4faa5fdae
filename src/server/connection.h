// One connection: reads requests, answers what breaks the rules itself, hands the others to the handler.
// Private to http.cpp and connection.cpp.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>

#include "server/http.h"
#include "server/stream.h"

namespace deepinfer::server {

// What the connections of one server share.
struct HttpShared {
  HttpLimits limits;
  HttpHandler handler;
  HttpErrorBody error_body;
  std::shared_ptr<const TlsContext> tls;  // null: plain
  std::atomic<bool> closing = false;      // each reply ends its connection
  std::atomic<size_t> body_bytes = 0;

  std::mutex mutex;
  std::unordered_set<Connection*> connections;  // guarded by mutex
};

// All of it runs on the strand of its socket; only abort() and close_if_idle() may be called from elsewhere.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Stream::Socket socket, std::shared_ptr<HttpShared> shared);
  void enlist();  // once, before run(): from now on one of the shared connections
  ~Connection();
  Connection(const Connection&) = delete;

  boost::asio::awaitable<void> run(bool refused);  // refused: 503, too many connections

  void abort();
  void close_if_idle();

  // For HttpExchange.
  HttpRequest request;
  HttpFields reply_fields;
  std::function<void(const HttpReply&)> on_head;
  bool started() const { return started_; }
  bool gone() const { return gone_; }
  void on_gone(std::function<void()> callback);
  void abandon() { set_gone(); }
  boost::asio::any_io_executor executor() { return stream_.get_executor(); }
  boost::asio::awaitable<bool> reply(HttpReply reply);
  boost::asio::awaitable<bool> start_stream(HttpReply head);
  boost::asio::awaitable<bool> send(std::string_view data);
  boost::asio::awaitable<bool> end_stream();

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;

  boost::asio::awaitable<bool> handshake();
  boost::asio::awaitable<void> take_turn();           // before each read of a loop
  boost::asio::awaitable<Stream::Error> read_more();  // into buffer_
  boost::asio::awaitable<size_t> read_head();         // bytes of the head in buffer_; 0: the connection ends
  boost::asio::awaitable<bool> read_body(Parser& parser);
  boost::asio::awaitable<bool> read_body_bytes(Parser& parser);
  // What `parser` makes of the bytes in buffer_; true: it wants more of them, or is done.
  boost::asio::awaitable<bool> parse_body(Parser& parser);
  boost::asio::awaitable<bool> read_request();  // request is filled
  boost::asio::awaitable<void> handle();
  boost::asio::awaitable<void> refuse(int status, std::string message);  // then the connection ends
  boost::asio::awaitable<void> refuse_body();
  boost::asio::awaitable<bool> write(std::string bytes);
  boost::asio::awaitable<void> linger();
  bool fill_request(Parser& parser);
  bool lease_body(size_t bytes);
  std::string head_of(const HttpReply& reply, std::optional<size_t> length);

  void arm(std::chrono::milliseconds after);
  void disarm();
  void watch();
  void on_readable(boost::system::error_code error);
  boost::asio::awaitable<void> unwatch();
  void set_gone();

  std::shared_ptr<HttpShared> shared_;  // before the stream, which borrows its TLS
  Stream stream_;
  boost::beast::flat_buffer buffer_;
  boost::asio::steady_timer deadline_;
  boost::asio::steady_timer watch_ended_;
  uint64_t arming_ = 0;
  unsigned reads_ = 0;
  bool timed_out_ = false;
  bool idle_ = false;    // between requests
  bool served_ = false;  // at least one request
  bool aborted_ = false;
  bool gone_ = false;
  std::function<void()> on_gone_;
  bool watching_ = false, watch_wanted_ = false;

  // Of the request that is being answered.
  bool started_ = false;
  bool keep_alive_ = false;
  bool http10_ = false;
  bool chunked_ = false;
  bool head_only_ = false;  // HEAD: the reply has no body
};

}  // namespace deepinfer::server
