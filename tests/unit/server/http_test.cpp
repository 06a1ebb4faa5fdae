// HttpServer over loopback: what it accepts, what it refuses and how, and that it notices a client that
// leaves.
#include "server/http.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <random>
#include <thread>

#include "raw_client.h"

namespace deepinfer::server {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using testing::HasSubstr;

class HttpTest : public testing::Test {
 protected:
  void start(HttpLimits limits = {}) {
    server_ = std::make_unique<HttpServer>(
        limits, [this](HttpExchange& exchange) { return serve(exchange); },
        [](int, std::string_view message) { return "refused: " + std::string(message); });
    auto port = server_->listen("127.0.0.1", 0);
    ASSERT_TRUE(port.ok()) << port.error().message;
    port_ = *port;
    server_->start(2);
  }

  // /echo sends the body back, /stream three pieces, /hang waits for the client to leave, /throw throws.
  asio::awaitable<void> serve(HttpExchange& exchange) {
    const std::string path = exchange.request().path;
    if (path == "/throw") throw std::runtime_error("on purpose");
    if (path == "/silent") co_return;
    if (path == "/stream") {
      HttpReply head;
      head.content_type = "text/event-stream";
      co_await exchange.start_stream(std::move(head));
      for (const char* piece : {"one ", "two ", "three"}) co_await exchange.send(piece);
      co_await exchange.end_stream();
      co_return;
    }
    if (path == "/hang") {
      asio::steady_timer timer(exchange.executor(), asio::steady_timer::time_point::max());
      exchange.on_disconnect([&timer] { timer.cancel(); });
      ++hanging_;
      co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
      exchange.on_disconnect(nullptr);
      ++left_;
      co_return;
    }
    if (path == "/flood") {
      co_await exchange.start_stream({});
      const std::string piece(64 << 10, 'x');
      for (int i = 0; i < 10000; ++i)
        if (!co_await exchange.send(piece)) break;
      ++left_;
      co_return;
    }
    co_await exchange.reply({200, exchange.request().method + " " + exchange.request().body, "text/plain"});
  }

  static void expect_soon(const std::atomic<int>& value, int wanted) {
    for (int i = 0; i < 1000 && value != wanted; ++i) std::this_thread::sleep_for(milliseconds(10));
    EXPECT_EQ(value, wanted);
  }

  RawReply ask(std::string_view bytes) {
    RawClient client(port_);
    client.send(bytes);
    return client.read_reply();
  }

  std::unique_ptr<HttpServer> server_;
  uint16_t port_ = 0;
  std::atomic<int> hanging_ = 0, left_ = 0;
};

TEST_F(HttpTest, AnswersAndKeepsTheConnection) {
  start();
  RawClient client(port_);
  for (int i = 0; i < 3; ++i) {
    client.send(post("/echo", "hello"));
    const RawReply reply = client.read_reply();
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.body, "POST hello");
  }
}

TEST_F(HttpTest, SplitsDoNotMatter) {
  start();
  constexpr uint32_t kSeed = 7;
  std::mt19937 random(kSeed);
  const std::string body(1000, 'b');
  const std::string plain = post("/echo", body);
  const std::string chunked =
      "POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n "
      "world\r\n0\r\n\r\n";
  for (int i = 0; i < 20; ++i) {
    RawClient client(port_);
    client.send_in_pieces(plain, 1 + random() % 40);
    EXPECT_EQ(client.read_reply().body, "POST " + body) << "seed " << kSeed << " round " << i;
    client.send_in_pieces(chunked, 1 + random() % 7);
    EXPECT_EQ(client.read_reply().body, "POST hello world");
  }
}

TEST_F(HttpTest, PipelinedRequestsAreAnsweredInOrder) {
  start();
  RawClient client(port_);
  client.send(post("/echo", "one") + "\r\n" + post("/echo", "two") + get("/stream") + post("/echo", "three"));
  EXPECT_EQ(client.read_reply().body, "POST one");
  EXPECT_EQ(client.read_reply().body, "POST two");
  EXPECT_EQ(client.read_reply().body, "one two three");
  EXPECT_EQ(client.read_reply().body, "POST three");
}

TEST_F(HttpTest, Http10ClosesAndIsNeverChunked) {
  start();
  RawClient client(port_);
  client.send("GET /stream HTTP/1.0\r\n\r\n");
  const RawReply reply = client.read_reply();
  EXPECT_EQ(reply.status, 200);
  EXPECT_FALSE(reply.fields.contains("transfer-encoding"));
  EXPECT_EQ(reply.body, "one two three");
  EXPECT_TRUE(client.at_end());
}

TEST_F(HttpTest, HeadHasNoBody) {
  start();
  RawClient client(port_);
  client.send("HEAD /echo HTTP/1.1\r\nHost: localhost\r\n\r\nGET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n");
  const std::string head = client.read_until("\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("Content-Length: 5"));
  EXPECT_EQ(client.read_reply().body, "GET ");
}

TEST_F(HttpTest, ExpectContinueIsAnswered) {
  start();
  RawClient client(port_);
  client.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("hello");
  EXPECT_EQ(client.read_reply().body, "POST hello");
}

struct BadRequest {
  const char* name;
  std::string bytes;
  int status;
  const char* message;
};

void PrintTo(const BadRequest& bad, std::ostream* out) {
  *out << bad.name;
}

class HttpRefusal : public HttpTest, public testing::WithParamInterface<BadRequest> {};

TEST_P(HttpRefusal, HasItsStatusAndEndsTheConnection) {
  start();
  for (const size_t size : {size_t{1} << 20, GetParam().bytes.size() / 100 + 1}) {
    RawClient client(port_);
    client.send_in_pieces(GetParam().bytes, size);
    const RawReply reply = client.read_reply();
    EXPECT_EQ(reply.status, GetParam().status);
    EXPECT_THAT(reply.body, HasSubstr(GetParam().message));
    EXPECT_EQ(reply.fields.at("connection"), "close");
    client.shutdown_send();
    EXPECT_TRUE(client.at_end());
  }
  EXPECT_EQ(ask(post("/echo", "still here")).body, "POST still here");
}

const std::string kPost = "POST /echo HTTP/1.1\r\nHost: localhost\r\n";

INSTANTIATE_TEST_SUITE_P(
    Rules, HttpRefusal,
    testing::Values(
        BadRequest{"NoHost", "GET / HTTP/1.1\r\n\r\n", 400, "Host: missing"},
        BadRequest{"TwoHosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400,
                   "Host: given more than once"},
        BadRequest{"Fold", "GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400, "folded"},
        BadRequest{"FoldFirst", "GET / HTTP/1.1\r\n Host: localhost\r\n\r\n", 400, "folded"},
        BadRequest{"SpaceBeforeColon", "GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400, "name holds"},
        BadRequest{"NoColon", "GET / HTTP/1.1\r\nHost: localhost\r\nbroken\r\n\r\n", 400, "no field name"},
        BadRequest{"EmptyName", "GET / HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n", 400, "no field name"},
        BadRequest{"LengthAndEncoding", kPost + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                   400, "Transfer-Encoding: not together"},
        BadRequest{"TwoLengths", kPost + "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400,
                   "Content-Length: given more than once"},
        BadRequest{"LengthList", kPost + "Content-Length: 5, 5\r\n\r\n", 400, "one decimal number"},
        BadRequest{"LengthSigned", kPost + "Content-Length: +5\r\n\r\n", 400, "one decimal number"},
        BadRequest{"LengthHex", kPost + "Content-Length: 0x5\r\n\r\n", 400, "one decimal number"},
        BadRequest{"LengthOverflow", kPost + "Content-Length: 99999999999999999999\r\n\r\n", 400,
                   "one decimal number"},
        BadRequest{"LengthEmpty", kPost + "Content-Length:\r\n\r\n", 400, "one decimal number"},
        BadRequest{"TooLong", kPost + "Content-Length: 33554433\r\n\r\n", 413, "larger than"},
        BadRequest{"Gzip", kPost + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "only 'chunked'"},
        BadRequest{"TwoEncodings", kPost + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                   400, "given more than once"},
        BadRequest{"ChunkedIn10", "POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400,
                   "HTTP/1.0"},
        BadRequest{"BadChunk", kPost + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "cannot be read"},
        BadRequest{"BareLf", "GET / HTTP/1.1\nHost: localhost\n\n", 400, "LF alone"},
        BadRequest{"BareCr", "GET / HTTP/1.1\r\nHost: local\rhost\r\n\r\n", 400, "CR"},
        BadRequest{"Nul", std::string("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", 28), 400, "control character"},
        BadRequest{"Tls", std::string("\x16\x03\x01\x02\x00\x01\x00", 7), 400, "not TLS"},
        BadRequest{"Http2", "PRI * HTTP/2.0\r\n\r\n", 505, "request line"},
        BadRequest{"NoVersion", "GET /\r\n\r\n", 400, "request line"},
        BadRequest{"NoPath", "GET echo HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "path"},
        BadRequest{"HugeHead", kPost + "X: " + std::string(40000, 'x'), 431, "head is larger"}),
    [](const auto& info) { return info.param.name; });

TEST_F(HttpTest, AbsoluteFormIsThePath) {
  start();
  EXPECT_EQ(ask("GET http://localhost/stream?a=b HTTP/1.1\r\nHost: localhost\r\n\r\n").body, "one two three");
}

TEST_F(HttpTest, BodyLimitHoldsForChunksToo) {
  HttpLimits limits;
  limits.body_bytes = 1000;
  start(limits);
  EXPECT_EQ(ask(post("/echo", std::string(1000, 'x'))).status, 200);
  EXPECT_EQ(ask(post("/echo", std::string(1001, 'x'))).status, 413);
  std::string chunks = kPost + "Transfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 11; ++i) chunks += "64\r\n" + std::string(100, 'x') + "\r\n";
  EXPECT_EQ(ask(chunks).status, 413);
}

// The reply must survive although the client is still sending.
TEST_F(HttpTest, LargeBodyThatIsRefusedStillReadsItsReply) {
  HttpLimits limits;
  limits.body_bytes = 1000;
  start(limits);
  EXPECT_EQ(ask(post("/echo", std::string(8 << 20, 'x'))).status, 413);
}

TEST_F(HttpTest, BodiesOfAllConnectionsTogetherAreBounded) {
  HttpLimits limits;
  limits.bodies_bytes = 1500;
  start(limits);
  RawClient first(port_);
  first.send(post("/hang", std::string(1000, 'x')));
  expect_soon(hanging_, 1);
  const RawReply refused = ask(post("/echo", std::string(1000, 'x')));
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.fields.at("retry-after"), "1");
  first.close();
  expect_soon(left_, 1);
  EXPECT_EQ(ask(post("/echo", std::string(1000, 'x'))).status, 200);
}

TEST_F(HttpTest, DeadlinesOfHeadAndBody) {
  HttpLimits limits;
  limits.head = milliseconds(100);
  limits.body = milliseconds(100);
  start(limits);
  EXPECT_EQ(ask("GET / HTTP/1.1\r\nHost:").status, 408);
  EXPECT_EQ(ask(kPost + "Content-Length: 5\r\n\r\nhel").status, 408);
}

TEST_F(HttpTest, IdleConnectionIsClosedWithoutAWord) {
  HttpLimits limits;
  limits.idle = milliseconds(100);
  start(limits);
  RawClient client(port_);
  EXPECT_TRUE(client.at_end());
}

TEST_F(HttpTest, TooManyConnectionsGet503) {
  HttpLimits limits;
  limits.connections = 1;
  start(limits);
  RawClient first(port_);
  first.send(post("/echo", "x"));
  EXPECT_EQ(first.read_reply().status, 200);
  EXPECT_EQ(ask(get("/echo")).status, 503);
}

TEST_F(HttpTest, ExceptionIs500AndTheConnectionEnds) {
  start();
  for (const char* path : {"/throw", "/silent"}) {
    RawClient client(port_);
    client.send(get(path));
    const RawReply reply = client.read_reply();
    EXPECT_EQ(reply.status, 500);
    EXPECT_THAT(reply.body, testing::Not(HasSubstr("on purpose")));
    EXPECT_TRUE(client.at_end());
  }
  EXPECT_EQ(ask(post("/echo", "on")).status, 200);
}

TEST_F(HttpTest, DisconnectIsNoticedAtOnce) {
  start();
  RawClient closes(port_), resets(port_), half(port_);
  for (RawClient* client : {&closes, &resets, &half}) client->send(get("/hang"));
  expect_soon(hanging_, 3);
  EXPECT_EQ(left_, 0);
  closes.close();
  expect_soon(left_, 1);
  resets.reset();
  expect_soon(left_, 2);
  half.shutdown_send();
  expect_soon(left_, 3);
}

TEST_F(HttpTest, DisconnectIsNoticedBehindAPipelinedRequest) {
  start();
  RawClient client(port_);
  client.send(get("/hang") + get("/echo"));
  expect_soon(hanging_, 1);
  client.close();
  expect_soon(left_, 1);
}

TEST_F(HttpTest, ClientThatDoesNotReadIsDropped) {
  HttpLimits limits;
  limits.write = milliseconds(200);
  start(limits);
  RawClient client(port_);
  client.send(get("/flood"));
  expect_soon(left_, 1);
}

TEST_F(HttpTest, StopEndsEverything) {
  start();
  RawClient hanging(port_), idle(port_);
  hanging.send(get("/hang"));
  expect_soon(hanging_, 1);
  server_->stop();
  EXPECT_EQ(left_, 1);
  EXPECT_EQ(server_->connections(), 0);
  EXPECT_TRUE(hanging.at_end());
  EXPECT_TRUE(idle.at_end());
}

TEST_F(HttpTest, CloseWhenIdleEndsIdleConnectionsAndSaysClose) {
  start();
  RawClient idle(port_);
  idle.send(get("/echo"));
  EXPECT_EQ(idle.read_reply().status, 200);
  server_->close_when_idle();
  EXPECT_TRUE(idle.at_end());
  EXPECT_EQ(ask(get("/echo")).fields.at("connection"), "close");
}

TEST_F(HttpTest, PortInUseSaysWhatToDo) {
  start();
  HttpServer second({}, nullptr, nullptr);
  const auto result = second.listen("127.0.0.1", port_);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kAddressInUse);
  EXPECT_THAT(result.error().message, HasSubstr(fmt::format("127.0.0.1:{}", port_)));
  EXPECT_THAT(result.error().message, HasSubstr("--port"));
}

TEST_F(HttpTest, HostThatIsNotOursIsAConfigurationError) {
  HttpServer server({}, nullptr, nullptr);
  for (const char* host : {"192.0.2.1", "no such host"}) {
    const auto result = server.listen(host, 0);
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::kConfig);
    EXPECT_THAT(result.error().message, HasSubstr("server.host"));
  }
}

}  // namespace
}  // namespace deepinfer::server
