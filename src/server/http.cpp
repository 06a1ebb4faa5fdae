#include "server/http.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "server/connection.h"

namespace deepinfer::server {

namespace asio = boost::asio;
using asio::ip::tcp;
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

struct HttpServer::Impl {
  asio::io_context io;
  tcp::acceptor acceptor{asio::make_strand(io)};
  std::shared_ptr<HttpShared> shared = std::make_shared<HttpShared>();
  std::vector<std::thread> threads;

  asio::awaitable<void> accept();
  void serve(tcp::socket socket);
};

void HttpServer::Impl::serve(tcp::socket socket) {
  const auto executor = socket.get_executor();
  auto connection = std::make_shared<Connection>(std::move(socket), shared);
  size_t count = 0;
  {
    const std::lock_guard lock(shared->mutex);
    count = shared->connections.size();
  }
  const bool full = count > static_cast<size_t>(shared->limits.connections);
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
    if (!error) {
      serve(tcp::socket(std::move(socket)));
      continue;
    }
    if (!acceptor.is_open() || error == asio::error::operation_aborted) break;
    // Out of file descriptors or memory: others must end first.
    log::warn("cannot accept a connection: {}", error.message());
    asio::steady_timer pause(acceptor.get_executor(), std::chrono::milliseconds(200));
    co_await pause.async_wait(asio::as_tuple(asio::use_awaitable));
  }
}

HttpServer::HttpServer(HttpLimits limits, HttpHandler handler, HttpErrorBody error_body)
    : impl_(std::make_shared<Impl>()) {
  impl_->shared->limits = limits;
  impl_->shared->handler = std::move(handler);
  impl_->shared->error_body = std::move(error_body);
}

HttpServer::~HttpServer() {
  stop();
}

Result<uint16_t> HttpServer::listen(const std::string& host, int port) {
  const std::string where = fmt::format("{}:{}", host, port);
  error_code error;
  tcp::resolver resolver(impl_->io);
  const auto found = resolver.resolve(host, std::to_string(port),
                                      tcp::resolver::numeric_service | tcp::resolver::passive, error);
  if (error || found.empty())
    return make_error(
        ErrorCode::kConfig,
        "server.host: got \"{}\", which is not an address of this machine ({}); expected one such as "
        "127.0.0.1, or 0.0.0.0 for all",
        host, error.message());
  auto& acceptor = impl_->acceptor;
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) return acceptor.local_endpoint().port();
  error_code ignored;
  acceptor.close(ignored);
  if (error == asio::error::address_in_use)
    return make_error(
        ErrorCode::kAddressInUse,
        "server.port: {} is in use by another program; stop that one, or choose another port with "
        "--port N (0: any free one)",
        where);
  if (error == asio::error::access_denied)
    return make_error(ErrorCode::kConfig,
                      "server.port: this user may not listen on {}; choose a port from 1024 on with --port N",
                      where);
  return make_error(
      ErrorCode::kConfig,
      "server.host: cannot listen on {} ({}); expected an address of this machine such as 127.0.0.1, "
      "or 0.0.0.0 for all",
      where, error.message());
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
