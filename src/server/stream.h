// The bytes of one connection: TCP or a Unix socket, plain or TLS. Private to http.cpp and connection.cpp.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "server/tls.h"

namespace deepinfer::server {

// Runs on the socket's strand. Reads and writes do what can be done now (would_block: wait for it); only
// waits suspend, so a cancelled one loses no byte, with TLS neither.
class Stream {
 public:
  using Socket = boost::asio::generic::stream_protocol::socket;
  using Error = boost::system::error_code;

  // `tls` null: plain. Borrowed.
  Stream(Socket socket, const TlsContext* tls);

  auto get_executor() { return socket_.get_executor(); }
  bool is_open() const { return socket_.is_open(); }

  boost::asio::awaitable<Error> handshake();  // nothing for plain ones
  bool was_plain_http() const { return tls_ && tls_->was_plain_http(); }
  void drop_tls() { tls_.reset(); }  // to answer who sent plain HTTP

  size_t try_read(std::span<char> bytes, Error& error);
  size_t try_write(std::string_view bytes, Error& error);
  // Waits as often as it must, until there are bytes, the end (eof) or a fault.
  boost::asio::awaitable<std::pair<Error, size_t>> read(std::span<char> bytes);
  // After would_block: until it is worth trying again.
  boost::asio::awaitable<Error> wait_write();
  template <class Handler>
  void async_wait_read(Handler handler) {
    socket_.async_wait(Socket::wait_read, std::move(handler));
  }

  void cancel();          // waits end with operation_aborted
  Error shutdown_send();  // nothing more comes from here
  void close();

 private:
  boost::asio::awaitable<Error> wait(Socket::wait_type what);
  Socket::wait_type wanted(Socket::wait_type plain) const;

  Socket socket_;
  std::optional<TlsSession> tls_;
};

}  // namespace deepinfer::server
