#include "server/http.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "server/connection.h"
#include "server/listener.h"

namespace deepinfer::server {

namespace asio = boost::asio;
using boost::system::error_code;

std::string_view HttpRequest::field(std::string_view name) const {
  for (const auto& [key, value] : fields)
    if (key == name) return value;
  return {};
}

const HttpRequest& HttpExchange::request() const {
  return connection_.request;
}
HttpRequest HttpExchange::take_request() {
  return std::move(connection_.request);
}
asio::any_io_executor HttpExchange::executor() const {
  return connection_.executor();
}
bool HttpExchange::disconnected() const {
  return connection_.gone();
}
void HttpExchange::on_disconnect(std::function<void()> callback) {
  connection_.on_gone(std::move(callback));
}
bool HttpExchange::started() const {
  return connection_.started();
}
asio::awaitable<bool> HttpExchange::reply(HttpReply reply) {
  return connection_.reply(std::move(reply));
}
asio::awaitable<bool> HttpExchange::start_stream(HttpReply head) {
  return connection_.start_stream(std::move(head));
}
asio::awaitable<bool> HttpExchange::send(std::string_view data) {
  return connection_.send(data);
}
asio::awaitable<bool> HttpExchange::end_stream() {
  return connection_.end_stream();
}
void HttpExchange::add_field(std::string name, std::string value) {
  connection_.reply_fields.emplace_back(std::move(name), std::move(value));
}

void HttpExchange::on_head(std::function<void(const HttpReply&)> callback) {
  connection_.on_head = std::move(callback);
}
void HttpExchange::abandon() {
  connection_.abandon();
}

namespace {
constexpr size_t kRefusals = 256;  // connections beyond the limit that are told so at the same time
}

struct HttpServer::Impl {
  asio::io_context io;
  Acceptor acceptor{asio::make_strand(io)};
  SocketFile socket_file;
  std::shared_ptr<HttpShared> shared = std::make_shared<HttpShared>();
  std::vector<std::thread> threads;

  asio::awaitable<void> accept();
  void serve(Stream::Socket socket);
};

void HttpServer::Impl::serve(Stream::Socket socket) {
  const auto executor = socket.get_executor();
  auto connection = std::make_shared<Connection>(std::move(socket), shared);
  connection->enlist();
  size_t count = 0;
  {
    const std::lock_guard lock(shared->mutex);
    count = shared->connections.size();
  }
  const auto limit = static_cast<size_t>(shared->limits.connections);
  if (count > limit + kRefusals) return;  // closed without a word
  const bool full = count > limit;
  asio::co_spawn(
      executor, [connection, full] { return connection->run(full); },
      [](std::exception_ptr fault) {
        try {
          if (fault) std::rethrow_exception(fault);
        } catch (const std::exception& error) {
          log::error("a connection ended with: {}", error.what());
        }
      });
}

asio::awaitable<void> HttpServer::Impl::accept() {
  while (acceptor.is_open()) {
    auto [error, socket] =
        co_await acceptor.async_accept(asio::make_strand(io), asio::as_tuple(asio::use_awaitable));
    if (!error && acceptor.is_open()) {
      serve(std::move(socket));
      continue;
    }
    if (!acceptor.is_open() || error == asio::error::operation_aborted) break;
    // Out of file descriptors or memory: others must end first.
    log::warn("cannot accept a connection: {}", error.message());
    asio::steady_timer pause(acceptor.get_executor(), std::chrono::milliseconds(200));
    co_await pause.async_wait(asio::as_tuple(asio::use_awaitable));
  }
}

HttpServer::HttpServer(HttpLimits limits, HttpHandler handler, HttpErrorBody error_body,
                       std::shared_ptr<const TlsContext> tls)
    : impl_(std::make_shared<Impl>()) {
  impl_->shared->limits = limits;
  impl_->shared->handler = std::move(handler);
  impl_->shared->error_body = std::move(error_body);
  impl_->shared->tls = std::move(tls);
}

HttpServer::~HttpServer() {
  stop();
}

Result<uint16_t> HttpServer::listen(const std::string& host, int port) {
  return listen_tcp(impl_->acceptor, host, port);
}

Result<void> HttpServer::listen_unix(const std::string& path) {
  DI_ASSIGN(impl_->socket_file, server::listen_unix(impl_->acceptor, path));
  return {};
}

void HttpServer::remove_socket_file() {
  impl_->socket_file.remove();
}

void HttpServer::start(int threads) {
  asio::co_spawn(
      impl_->acceptor.get_executor(), [impl = impl_.get()] { return impl->accept(); }, asio::detached);
  for (int i = 0; i < threads; ++i) impl_->threads.emplace_back([impl = impl_.get()] { impl->io.run(); });
}

void HttpServer::close_when_idle() {
  impl_->shared->closing = true;
  const std::lock_guard lock(impl_->shared->mutex);
  for (Connection* connection : impl_->shared->connections) connection->close_if_idle();
}

void HttpServer::stop() {
  remove_socket_file();
  if (impl_->threads.empty()) return;
  impl_->shared->closing = true;
  asio::post(impl_->acceptor.get_executor(), [impl = impl_.get()] {
    error_code ignored;
    impl->acceptor.close(ignored);
    const std::lock_guard lock(impl->shared->mutex);
    for (Connection* connection : impl->shared->connections) connection->abort();
  });
  for (std::thread& thread : impl_->threads) thread.join();
  impl_->threads.clear();
}

int HttpServer::connections() const {
  const std::lock_guard lock(impl_->shared->mutex);
  return static_cast<int>(impl_->shared->connections.size());
}

}  // namespace deepinfer::server
