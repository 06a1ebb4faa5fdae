#include "raw_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>
#include <stdexcept>

#include "server/http_head.h"

namespace deepinfer::server {

namespace {

int connect_to(const RawTarget& target) {
  sockaddr_in tcp{};
  tcp.sin_family = AF_INET;
  tcp.sin_port = htons(target.port);
  tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sockaddr_un local{};
  local.sun_family = AF_UNIX;
  target.uds.copy(local.sun_path, sizeof local.sun_path - 1);
  const bool is_local = !target.uds.empty();
  const int out = ::socket(is_local ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
  const auto* address =
      is_local ? reinterpret_cast<const sockaddr*>(&local) : reinterpret_cast<const sockaddr*>(&tcp);
  if (connect(out, address, is_local ? sizeof local : sizeof tcp) != 0)
    throw std::runtime_error("cannot connect");
  const timeval limit{30, 0};
  setsockopt(out, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  const int one = 1;
  if (!is_local) setsockopt(out, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return out;
}

}  // namespace

RawClient::RawClient(const RawTarget& target) : socket_(connect_to(target)) {
  if (target.tls) start_tls();
}

void RawClient::start_tls() {
  std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes without MSG_NOSIGNAL
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set_mode(context, SSL_MODE_AUTO_RETRY);
  ssl_.reset(SSL_new(context));
  SSL_CTX_free(context);  // the session keeps it
  SSL_set_fd(ssl_.get(), socket_);
  if (SSL_connect(ssl_.get()) != 1) throw std::runtime_error("no TLS handshake");
}

RawClient::~RawClient() {
  close();
}

void RawClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ssl_ ? SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size()))
                              : ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return;  // the server may refuse before it has read all
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
}

void RawClient::send_in_pieces(std::string_view bytes, size_t size) {
  for (size_t i = 0; i < bytes.size(); i += size) {
    send(bytes.substr(i, size));
    usleep(200);
  }
}

void RawClient::shutdown_send() {
  if (ssl_)
    SSL_shutdown(ssl_.get());
  else
    ::shutdown(socket_, SHUT_WR);
}

void RawClient::close() {
  if (socket_ >= 0) ::close(socket_);
  socket_ = -1;
}

void RawClient::reset() {
  const linger hard{1, 0};
  setsockopt(socket_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  close();
}

bool RawClient::fill() {
  char bytes[4096];
  const ssize_t got =
      ssl_ ? SSL_read(ssl_.get(), bytes, sizeof bytes) : ::recv(socket_, bytes, sizeof bytes, 0);
  if (got > 0) buffer_.append(bytes, static_cast<size_t>(got));
  return got > 0;
}

std::string RawClient::take(size_t bytes) {
  while (buffer_.size() < bytes && fill()) {
  }
  const std::string out = buffer_.substr(0, bytes);
  buffer_.erase(0, out.size());
  return out;
}

std::string RawClient::read_until(std::string_view mark) {
  size_t at = 0;
  while ((at = buffer_.find(mark)) == std::string::npos)
    if (!fill()) return take(buffer_.size());
  return take(at + mark.size());
}

bool RawClient::at_end() {
  return buffer_.empty() && !fill();
}

RawReply RawClient::read_reply() {
  RawReply reply;
  std::string head = read_until("\r\n\r\n");
  if (!head.starts_with("HTTP/1.1 ")) return reply;
  reply.status = std::stoi(head.substr(9, 3));
  size_t at = head.find("\r\n") + 2;
  for (size_t end = head.find("\r\n", at); end > at; at = end + 2, end = head.find("\r\n", at)) {
    const size_t colon = head.find(": ", at);
    reply.fields[lower(head.substr(at, colon - at))] = head.substr(colon + 2, end - colon - 2);
  }
  if (reply.status == 100) return read_reply();
  if (reply.fields.contains("content-length")) {
    reply.body = take(std::stoul(reply.fields["content-length"]));
  } else if (reply.fields.contains("transfer-encoding")) {
    for (;;) {
      const size_t size = std::stoul(read_until("\r\n"), nullptr, 16);
      reply.body += take(size);
      take(2);
      if (size == 0) break;
    }
  } else if (reply.status != 204) {
    reply.body = read_until(std::string_view("\0never", 6));
  }
  return reply;
}

std::string post(std::string_view path, std::string_view body, std::string_view fields) {
  return fmt::format("POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{}\r\n{}", path,
                     body.size(), fields, body);
}

std::string get(std::string_view path, std::string_view fields) {
  return fmt::format("GET {} HTTP/1.1\r\nHost: localhost\r\n{}\r\n", path, fields);
}

}  // namespace deepinfer::server
