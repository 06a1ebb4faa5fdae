#include "server/connection.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/status.hpp>
#include <ctime>
#include <iterator>

#include "base/log.h"
#include "server/http_head.h"

namespace deepinfer::server {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

namespace {

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
constexpr size_t kReadBytes = 16 << 10;
constexpr size_t kPipelinedBytes = 64 << 10;  // taken in while a request is answered; then the socket waits
constexpr std::chrono::milliseconds kLinger{2000};
constexpr unsigned kReadsPerTurn = 64;

std::string_view view(const boost::beast::flat_buffer& buffer) {
  const auto data = buffer.data();
  return {static_cast<const char*>(data.data()), data.size()};
}

std::span<char> room(boost::beast::flat_buffer& buffer) {
  const auto bytes = buffer.prepare(kReadBytes);
  return {static_cast<char*>(bytes.data()), bytes.size()};
}

// The bytes of one body against the sum that all connections may hold.
struct BodyLease {
  explicit BodyLease(std::shared_ptr<HttpShared> owner) : shared(std::move(owner)) {}
  ~BodyLease() { shared->body_bytes -= bytes; }
  BodyLease(const BodyLease&) = delete;
  std::shared_ptr<HttpShared> shared;
  size_t bytes = 0;
};

}  // namespace

Connection::Connection(Stream::Socket socket, std::shared_ptr<HttpShared> shared)
    : shared_(std::move(shared)),
      stream_(std::move(socket), shared_->tls.get()),
      deadline_(stream_.get_executor()),
      watch_ended_(stream_.get_executor()) {}

// Not in the constructor: who finds it in the list needs its weak_from_this().
void Connection::enlist() {
  const std::lock_guard lock(shared_->mutex);
  shared_->connections.insert(this);
}

Connection::~Connection() {
  const std::lock_guard lock(shared_->mutex);
  shared_->connections.erase(this);
}

void Connection::arm(std::chrono::milliseconds after) {
  timed_out_ = false;
  const uint64_t arming = ++arming_;
  deadline_.expires_after(after);
  deadline_.async_wait([self = shared_from_this(), arming](error_code error) {
    if (error || arming != self->arming_) return;
    self->timed_out_ = true;
    self->stream_.cancel();
  });
}

void Connection::disarm() {
  ++arming_;
  deadline_.cancel();
}

void Connection::set_gone() {
  gone_ = true;
  keep_alive_ = false;
  if (auto callback = std::exchange(on_gone_, nullptr)) callback();
}

void Connection::on_gone(std::function<void()> callback) {
  on_gone_ = std::move(callback);
  if (gone_) set_gone();
}

// The last owner may be leaving on another thread just now.
void Connection::abort() {
  asio::post(stream_.get_executor(), [weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    self->aborted_ = true;
    self->stream_.close();
    self->set_gone();
  });
}

void Connection::close_if_idle() {
  asio::post(stream_.get_executor(), [weak = weak_from_this()] {
    const auto self = weak.lock();
    if (self && self->idle_ && self->served_) self->stream_.close();
  });
}

// While a request is answered somebody must read, or a client that leaves is not noticed before a write
// fails. What arrives meanwhile is the start of the next request.
void Connection::watch() {
  if (!watch_wanted_ || watching_ || gone_ || buffer_.size() >= kPipelinedBytes) return;
  watching_ = true;
  stream_.async_wait_read([self = shared_from_this()](error_code error) { self->on_readable(error); });
}

void Connection::on_readable(error_code error) {
  watching_ = false;
  size_t bytes = 0;
  if (!error && watch_wanted_) bytes = stream_.try_read(room(buffer_), error);
  buffer_.commit(bytes);
  if (!error || error == asio::error::would_block)
    watch();
  else if (watch_wanted_)
    set_gone();
  if (!watching_) watch_ended_.cancel();
}

asio::awaitable<void> Connection::unwatch() {
  watch_wanted_ = false;
  if (watching_) stream_.cancel();
  while (watching_) {
    watch_ended_.expires_at(asio::steady_timer::time_point::max());
    co_await watch_ended_.async_wait(kTuple);
  }
}

asio::awaitable<void> Connection::run(bool refused) {
  auto self = shared_from_this();
  const bool greeted = co_await handshake();
  if (greeted && refused) co_await refuse(503, "too many connections are open: try again");
  while (greeted && !refused && !aborted_ && stream_.is_open()) {
    if (!co_await read_request()) break;
    co_await handle();
    served_ = true;
    if (!keep_alive_) break;
  }
  if (!gone_ && stream_.is_open()) co_await linger();
  disarm();
  stream_.close();
}

// False: there is nobody to talk to.
asio::awaitable<bool> Connection::handshake() {
  if (!shared_->tls) co_return true;
  arm(shared_->limits.head);
  const error_code error = co_await stream_.handshake();
  disarm();
  if (!error) co_return true;
  if (stream_.was_plain_http()) {
    stream_.drop_tls();
    co_await refuse(400, "this server speaks HTTPS: use a URL that begins with https://");
  } else {
    set_gone();
  }
  co_return false;
}

// The reads of a fast sender's bytes never wait, but the deadline's timer must have its turn, and so must
// other connections.
asio::awaitable<void> Connection::take_turn() {
  if (++reads_ % kReadsPerTurn == 0) co_await asio::post(executor(), asio::use_awaitable);
}

asio::awaitable<Stream::Error> Connection::read_more() {
  co_await take_turn();
  if (timed_out_) co_return asio::error::operation_aborted;
  const auto [error, bytes] = co_await stream_.read(room(buffer_));
  buffer_.commit(bytes);
  co_return error;
}

asio::awaitable<size_t> Connection::read_head() {
  size_t seen = 0;
  // Empty lines before a request line are allowed.
  const auto skip_empty_lines = [&] {
    while (view(buffer_).starts_with("\r\n")) {
      buffer_.consume(2);
      seen = 0;
    }
  };
  idle_ = true;
  arm(shared_->limits.idle);
  for (;;) {
    skip_empty_lines();
    if (buffer_.size() > 0) {
      if (idle_) arm(shared_->limits.head);
      idle_ = false;
      const std::string_view bytes = view(buffer_);
      const size_t end = bytes.find("\r\n\r\n", seen < 3 ? 0 : seen - 3);
      const size_t head = end == std::string_view::npos ? bytes.size() : end + 4;
      if (auto fault = check_head_start(bytes.substr(0, head), seen)) {
        co_await refuse(fault->status, fault->message);
        co_return 0;
      }
      if (head > shared_->limits.head_bytes) {
        co_await refuse(
            431, fmt::format("the request's head is larger than {} bytes", shared_->limits.head_bytes));
        co_return 0;
      }
      if (end != std::string_view::npos) break;
      seen = bytes.size();
    } else if (served_ && shared_->closing) {
      co_return 0;
    }
    if (!co_await read_more()) continue;
    if (timed_out_ && !idle_) {
      co_await refuse(408, fmt::format("the request's head did not arrive within {} s",
                                       shared_->limits.head.count() / 1000.0));
    } else {
      set_gone();
    }
    co_return 0;
  }
  disarm();
  co_return view(buffer_).find("\r\n\r\n") + 4;
}

bool Connection::lease_body(size_t bytes) {
  auto lease = std::static_pointer_cast<BodyLease>(request.lease);
  if (!lease) request.lease = lease = std::make_shared<BodyLease>(shared_);
  if (bytes <= lease->bytes) return true;
  const size_t more = bytes - lease->bytes;
  lease->bytes = bytes;
  return shared_->body_bytes.fetch_add(more) + more <= shared_->limits.bodies_bytes;
}

asio::awaitable<bool> Connection::read_body(Parser& parser) {
  const auto expect = parser.get()[http::field::expect];
  if (!http10_ && lower({expect.data(), expect.size()}) == "100-continue" && buffer_.size() == 0 &&
      !parser.is_done() && !co_await write("HTTP/1.1 100 Continue\r\n\r\n"))
    co_return false;
  arm(shared_->limits.body);
  const bool complete = co_await read_body_bytes(parser);
  disarm();
  co_return complete;
}

asio::awaitable<bool> Connection::read_body_bytes(Parser& parser) {
  for (;;) {
    if (!co_await parse_body(parser)) co_return false;
    if (parser.is_done()) co_return true;
    if (buffer_.size() >= kPipelinedBytes) {
      co_await refuse(400, "the request's body cannot be read: a chunk's head has no end");
      co_return false;
    }
    if (!co_await read_more()) continue;
    if (timed_out_)
      co_await refuse(408, fmt::format("the request's body did not arrive within {} s",
                                       shared_->limits.body.count() / 1000.0));
    else
      set_gone();
    co_return false;
  }
}

asio::awaitable<bool> Connection::parse_body(Parser& parser) {
  error_code error;
  while (!error && !parser.is_done() && buffer_.size() > 0) {
    buffer_.consume(parser.put(buffer_.data(), error));
    if (!lease_body(parser.get().body().size())) {
      co_await refuse(503, "too many large requests are being read at once: try again");
      co_return false;
    }
  }
  if (!error || error == http::error::need_more) co_return true;
  if (error == http::error::body_limit)
    co_await refuse_body();
  else
    co_await refuse(400, fmt::format("the request's body cannot be read: {}", error.message()));
  co_return false;
}

bool Connection::fill_request(Parser& parser) {
  auto& message = parser.get();
  request.method.assign(message.method_string().data(), message.method_string().size());
  std::string_view target(message.target().data(), message.target().size());
  // Absolute form, which proxies send: the path is what counts.
  if (const size_t scheme = target.find("://");
      !target.starts_with('/') && scheme != std::string_view::npos) {
    const size_t slash = target.find('/', scheme + 3);
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  if (target == "*" && request.method == "OPTIONS") target = "/";
  if (!target.starts_with('/')) return false;
  const size_t question = target.find('?');
  request.path = target.substr(0, question);
  request.query = question == std::string_view::npos ? "" : target.substr(question + 1);
  for (const auto& field : message)
    request.fields.emplace_back(lower({field.name_string().data(), field.name_string().size()}),
                                std::string(field.value().data(), field.value().size()));
  request.body = std::move(message.body());
  return true;
}

asio::awaitable<bool> Connection::read_request() {
  request = {};
  reply_fields.clear();
  started_ = chunked_ = head_only_ = http10_ = keep_alive_ = false;
  const size_t head = co_await read_head();
  if (head == 0) co_return false;
  if (auto fault = check_head(view(buffer_).substr(0, head))) {
    co_await refuse(fault->status, fault->message);
    co_return false;
  }
  Parser parser;
  parser.header_limit(static_cast<uint32_t>(head));
  parser.body_limit(shared_->limits.body_bytes);
  error_code error;
  const size_t used = parser.put(asio::buffer(buffer_.data(), head), error);
  if (error || !parser.is_header_done()) {
    if (error == http::error::body_limit)
      co_await refuse_body();
    else
      co_await refuse(400, fmt::format("the request's head cannot be read: {}", error.message()));
    co_return false;
  }
  buffer_.consume(used);
  http10_ = parser.get().version() < 11;
  head_only_ = parser.get().method() == http::verb::head;
  if (!co_await read_body(parser)) co_return false;
  keep_alive_ = parser.keep_alive();
  if (!fill_request(parser)) {
    co_await refuse(400, "the request line's target must be a path such as /v1/models");
    co_return false;
  }
  co_return true;
}

asio::awaitable<void> Connection::handle() {
  watch_wanted_ = true;
  watch();
  bool failed = false;
  try {
    HttpExchange exchange(*this);
    co_await shared_->handler(exchange);
  } catch (const std::exception& fault) {
    log::error("{} {}: {}", request.method, request.path, fault.what());
    failed = true;
  }
  on_gone_ = nullptr;
  on_head = nullptr;
  if (failed || !started_) {
    if (started_ || gone_) {
      set_gone();  // in the middle of a reply nothing can be said any more
    } else {
      HttpReply reply{500, shared_->error_body(500, "an internal error of the server; its log says more")};
      reply.close = true;
      co_await this->reply(std::move(reply));
    }
  }
  co_await unwatch();
}

asio::awaitable<void> Connection::refuse(int status, std::string message) {
  disarm();
  HttpReply reply{status, shared_->error_body(status, message)};
  reply.close = true;
  if (status == 503) reply.fields.emplace_back("Retry-After", "1");
  co_await this->reply(std::move(reply));
}

asio::awaitable<void> Connection::refuse_body() {
  return refuse(413, fmt::format("the request's body is larger than {} bytes", shared_->limits.body_bytes));
}

// A close with unread bytes is a reset, which can destroy the reply before the client has read it.
asio::awaitable<void> Connection::linger() {
  if (stream_.shutdown_send()) co_return;
  arm(kLinger);
  std::vector<char> sink(kReadBytes);
  while (!timed_out_ && !(co_await stream_.read(sink)).first) co_await take_turn();
  disarm();
}

std::string Connection::head_of(const HttpReply& reply, std::optional<size_t> length) {
  if (reply.close || shared_->closing) keep_alive_ = false;
  chunked_ = !length && !http10_;
  if (!length && http10_) keep_alive_ = false;
  const auto reason = http::obsolete_reason(http::int_to_status(static_cast<unsigned>(reply.status)));
  std::string head = fmt::format(
      "HTTP/1.1 {} {}\r\nDate: {:%a, %d %b %Y %H:%M:%S} GMT\r\nServer: deepinfer\r\n", reply.status,
      std::string_view(reason.data(), reason.size()), fmt::gmtime(std::time(nullptr)));
  const auto add = [&](std::string_view name, std::string_view value) {
    fmt::format_to(std::back_inserter(head), "{}: {}\r\n", name, value);
  };
  if (!reply.content_type.empty() && reply.status != 204) add("Content-Type", reply.content_type);
  if (length && reply.status != 204) add("Content-Length", std::to_string(*length));
  if (chunked_) add("Transfer-Encoding", "chunked");
  if (!keep_alive_) add("Connection", "close");
  if (keep_alive_ && http10_) add("Connection", "keep-alive");
  for (const auto& [name, value] : reply.fields) add(name, value);
  for (const auto& [name, value] : reply_fields) add(name, value);
  head += "\r\n";
  return head;
}

asio::awaitable<bool> Connection::write(std::string bytes) {
  if (gone_) co_return false;
  error_code error;
  // Nearly always the socket takes all of it at once.
  for (std::string_view rest = bytes; !rest.empty() && !error;) {
    rest.remove_prefix(stream_.try_write(rest, error));
    if (error != asio::error::would_block) continue;
    arm(shared_->limits.write);
    error = co_await stream_.wait_write();
    disarm();
  }
  if (error) {
    stream_.close();
    set_gone();
  }
  co_return !error && !gone_;
}

asio::awaitable<bool> Connection::reply(HttpReply reply) {
  started_ = true;
  if (on_head && !gone_) on_head(reply);
  std::string bytes = head_of(reply, reply.body.size());
  if (!head_only_) bytes += reply.body;
  co_return co_await write(std::move(bytes));
}

asio::awaitable<bool> Connection::start_stream(HttpReply head) {
  started_ = true;
  if (on_head && !gone_) on_head(head);
  co_return co_await write(head_of(head, std::nullopt));
}

asio::awaitable<bool> Connection::send(std::string_view data) {
  if (data.empty() || head_only_) co_return !gone_;
  co_return co_await write(chunked_ ? fmt::format("{:x}\r\n{}\r\n", data.size(), data) : std::string(data));
}

asio::awaitable<bool> Connection::end_stream() {
  if (!chunked_ || head_only_) co_return !gone_;
  co_return co_await write("0\r\n\r\n");
}

}  // namespace deepinfer::server
