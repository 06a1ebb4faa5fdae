#include "server/stream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace deepinfer::server {

namespace asio = boost::asio;

Stream::Stream(Socket socket, const TlsContext* tls) : socket_(std::move(socket)) {
  Error ignored;
  socket_.non_blocking(true, ignored);
  // A token is a packet of its own. Unix sockets have no such option, and need none.
  const int one = 1;
  const auto local = socket_.local_endpoint(ignored);
  if (local.data()->sa_family == AF_INET || local.data()->sa_family == AF_INET6)
    setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (tls) tls_.emplace(*tls, socket_.native_handle());
}

asio::awaitable<Stream::Error> Stream::wait(Socket::wait_type what) {
  const auto [error] = co_await socket_.async_wait(what, asio::as_tuple(asio::use_awaitable));
  co_return error;
}

Stream::Socket::wait_type Stream::wanted(Socket::wait_type plain) const {
  if (!tls_) return plain;
  return tls_->wants_write() ? Socket::wait_write : Socket::wait_read;
}

asio::awaitable<Stream::Error> Stream::handshake() {
  if (!tls_) co_return Error();
  for (;;) {
    if (!socket_.is_open()) co_return asio::error::bad_descriptor;
    Error error = tls_->handshake();
    if (error != asio::error::would_block) co_return error;
    error = co_await wait(wanted(Socket::wait_read));
    if (error) co_return error;
  }
}

size_t Stream::try_read(std::span<char> bytes, Error& error) {
  if (!socket_.is_open()) {
    error = asio::error::bad_descriptor;
    return 0;
  }
  if (tls_) return tls_->read(bytes, error);
  return socket_.read_some(asio::buffer(bytes.data(), bytes.size()), error);
}

size_t Stream::try_write(std::string_view bytes, Error& error) {
  if (!socket_.is_open()) {
    error = asio::error::bad_descriptor;
    return 0;
  }
  if (tls_) return tls_->write(bytes, error);
  return socket_.write_some(asio::buffer(bytes.data(), bytes.size()), error);
}

asio::awaitable<std::pair<Stream::Error, size_t>> Stream::read(std::span<char> bytes) {
  for (;;) {
    Error error;
    const size_t got = try_read(bytes, error);
    if (error != asio::error::would_block) co_return std::pair(error, got);
    error = co_await wait(wanted(Socket::wait_read));
    if (error) co_return std::pair(error, size_t{0});
  }
}

asio::awaitable<Stream::Error> Stream::wait_write() {
  return wait(wanted(Socket::wait_write));
}

void Stream::cancel() {
  Error ignored;
  socket_.cancel(ignored);
}

Stream::Error Stream::shutdown_send() {
  if (tls_) tls_->close();
  Error error;
  socket_.shutdown(Socket::shutdown_send, error);
  return error;
}

void Stream::close() {
  Error ignored;
  socket_.close(ignored);
}

}  // namespace deepinfer::server
