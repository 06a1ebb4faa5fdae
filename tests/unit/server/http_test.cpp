// HttpServer over loopback: what it accepts, what it refuses and how, and that it notices a client that
// leaves.
#include "server/http.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <filesystem>
#include <random>
#include <thread>

#include "raw_client.h"
#include "server/tls.h"

namespace deepinfer::server {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using testing::HasSubstr;

enum class Transport { kTcp, kUnix, kTls };

std::string name_of(Transport transport) {
  return transport == Transport::kTcp ? "Tcp" : transport == Transport::kUnix ? "Unix" : "Tls";
}

// A certificate that signs itself, made once.
std::shared_ptr<const TlsContext> tls_context() {
  static const std::shared_ptr<const TlsContext> kContext = [] {
    const std::string base = testing::TempDir() + fmt::format("http_test_{}", getpid());
    EVP_PKEY* key = EVP_EC_gen("P-256");
    X509* certificate = X509_new();
    X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    X509_sign(certificate, key, EVP_sha256());
    FILE* file = fopen((base + ".pem").c_str(), "w");
    PEM_write_X509(file, certificate);
    fclose(file);
    file = fopen((base + ".key").c_str(), "w");
    PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
    fclose(file);
    X509_free(certificate);
    EVP_PKEY_free(key);
    auto context = TlsContext::load(base + ".pem", base + ".key");
    EXPECT_TRUE(context.ok()) << context.error().message;
    return *context;
  }();
  return kContext;
}

class HttpBase : public testing::Test {
 protected:
  void start(HttpLimits limits = {}, Transport transport = Transport::kTcp) {
    target_.tls = transport == Transport::kTls;
    server_ = std::make_unique<HttpServer>(
        limits, [this](HttpExchange& exchange) { return serve(exchange); },
        [this](int, std::string_view message) {
          ++refusals_;
          return "refused: " + std::string(message);
        },
        target_.tls ? tls_context() : nullptr);
    if (transport == Transport::kUnix) {
      target_.uds = testing::TempDir() + fmt::format("http_test_{}.sock", getpid());
      const auto bound = server_->listen_unix(target_.uds);
      ASSERT_TRUE(bound.ok()) << bound.error().message;
    } else {
      const auto port = server_->listen("127.0.0.1", 0);
      ASSERT_TRUE(port.ok()) << port.error().message;
      target_.port = *port;
    }
    server_->start(2);
  }

  // /echo sends the body back, /stream three pieces, /hang waits for the client to leave, /late and
  // /late_stream answer after that, /throw throws.
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
    if (path == "/hang" || path.starts_with("/late")) {
      asio::steady_timer timer(exchange.executor(), asio::steady_timer::time_point::max());
      exchange.on_disconnect([&timer] { timer.cancel(); });
      ++hanging_;
      co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
      exchange.on_disconnect(nullptr);
      exchange.on_head([this](const HttpReply&) { ++heads_; });
      if (path == "/late") co_await exchange.reply({200, "too late"});
      if (path == "/late_stream") co_await exchange.start_stream({});
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
    RawClient client(target_);
    client.send(bytes);
    return client.read_reply();
  }

  std::unique_ptr<HttpServer> server_;
  RawTarget target_;
  std::atomic<int> hanging_ = 0, left_ = 0, heads_ = 0, refusals_ = 0;
};

// Over each kind of stream.
class HttpTest : public HttpBase, public testing::WithParamInterface<Transport> {
 protected:
  void start(HttpLimits limits = {}) { HttpBase::start(limits, GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(Streams, HttpTest,
                         testing::Values(Transport::kTcp, Transport::kUnix, Transport::kTls),
                         [](const auto& info) { return name_of(info.param); });

TEST_P(HttpTest, AnswersAndKeepsTheConnection) {
  start();
  RawClient client(target_);
  for (int i = 0; i < 3; ++i) {
    client.send(post("/echo", "hello"));
    const RawReply reply = client.read_reply();
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.body, "POST hello");
  }
}

TEST_P(HttpTest, SplitsDoNotMatter) {
  start();
  constexpr uint32_t kSeed = 7;
  std::mt19937 random(kSeed);
  const std::string body(1000, 'b');
  const std::string plain = post("/echo", body);
  const std::string chunked =
      "POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n "
      "world\r\n0\r\n\r\n";
  for (int i = 0; i < 20; ++i) {
    RawClient client(target_);
    client.send_in_pieces(plain, 1 + random() % 40);
    EXPECT_EQ(client.read_reply().body, "POST " + body) << "seed " << kSeed << " round " << i;
    client.send_in_pieces(chunked, 1 + random() % 7);
    EXPECT_EQ(client.read_reply().body, "POST hello world");
  }
}

TEST_P(HttpTest, PipelinedRequestsAreAnsweredInOrder) {
  start();
  RawClient client(target_);
  client.send(post("/echo", "one") + "\r\n" + post("/echo", "two") + get("/stream") + post("/echo", "three"));
  EXPECT_EQ(client.read_reply().body, "POST one");
  EXPECT_EQ(client.read_reply().body, "POST two");
  EXPECT_EQ(client.read_reply().body, "one two three");
  EXPECT_EQ(client.read_reply().body, "POST three");
}

TEST_P(HttpTest, Http10ClosesAndIsNeverChunked) {
  start();
  RawClient client(target_);
  client.send("GET /stream HTTP/1.0\r\n\r\n");
  const RawReply reply = client.read_reply();
  EXPECT_EQ(reply.status, 200);
  EXPECT_FALSE(reply.fields.contains("transfer-encoding"));
  EXPECT_EQ(reply.body, "one two three");
  EXPECT_TRUE(client.at_end());
}

TEST_P(HttpTest, HeadHasNoBody) {
  start();
  RawClient client(target_);
  client.send("HEAD /echo HTTP/1.1\r\nHost: localhost\r\n\r\nGET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n");
  const std::string head = client.read_until("\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("Content-Length: 5"));
  EXPECT_EQ(client.read_reply().body, "GET ");
}

TEST_P(HttpTest, ExpectContinueIsAnswered) {
  start();
  RawClient client(target_);
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

class HttpRefusal : public HttpBase, public testing::WithParamInterface<std::tuple<Transport, BadRequest>> {};

TEST_P(HttpRefusal, HasItsStatusAndEndsTheConnection) {
  const auto& [transport, bad] = GetParam();
  start({}, transport);
  for (const size_t size : {size_t{1} << 20, bad.bytes.size() / 100 + 1}) {
    RawClient client(target_);
    client.send_in_pieces(bad.bytes, size);
    const RawReply reply = client.read_reply();
    EXPECT_EQ(reply.status, bad.status);
    EXPECT_THAT(reply.body, HasSubstr(bad.message));
    EXPECT_EQ(reply.fields.at("connection"), "close");
    client.shutdown_send();
    EXPECT_TRUE(client.at_end());
  }
  EXPECT_EQ(ask(post("/echo", "still here")).body, "POST still here");
}

const std::string kPost = "POST /echo HTTP/1.1\r\nHost: localhost\r\n";

INSTANTIATE_TEST_SUITE_P(
    Rules, HttpRefusal,
    testing::Combine(
        testing::Values(Transport::kTcp, Transport::kTls),
        testing::Values(
            BadRequest{"NoHost", "GET / HTTP/1.1\r\n\r\n", 400, "Host: missing"},
            BadRequest{"TwoHosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400,
                       "Host: given more than once"},
            BadRequest{"Fold", "GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400, "folded"},
            BadRequest{"FoldFirst", "GET / HTTP/1.1\r\n Host: localhost\r\n\r\n", 400, "folded"},
            BadRequest{"SpaceBeforeColon", "GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400, "name holds"},
            BadRequest{"NoColon", "GET / HTTP/1.1\r\nHost: localhost\r\nbroken\r\n\r\n", 400,
                       "no field name"},
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
            BadRequest{"TwoEncodings",
                       kPost + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400,
                       "given more than once"},
            BadRequest{"ChunkedIn10", "POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400,
                       "HTTP/1.0"},
            BadRequest{"BadChunk", kPost + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "cannot be read"},
            BadRequest{"BareLf", "GET / HTTP/1.1\nHost: localhost\n\n", 400, "LF alone"},
            BadRequest{"BareCr", "GET / HTTP/1.1\r\nHost: local\rhost\r\n\r\n", 400, "CR"},
            BadRequest{"Nul", std::string("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", 28), 400,
                       "control character"},
            BadRequest{"Tls", std::string("\x16\x03\x01\x02\x00\x01\x00", 7), 400, "not TLS"},
            BadRequest{"Http2", "PRI * HTTP/2.0\r\n\r\n", 505, "request line"},
            BadRequest{"NoVersion", "GET /\r\n\r\n", 400, "request line"},
            BadRequest{"NoPath", "GET echo HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "path"},
            BadRequest{"HugeHead", kPost + "X: " + std::string(40000, 'x'), 431, "head is larger"})),
    [](const auto& info) { return name_of(std::get<0>(info.param)) + std::get<1>(info.param).name; });

TEST_P(HttpTest, AbsoluteFormIsThePath) {
  start();
  EXPECT_EQ(ask("GET http://localhost/stream?a=b HTTP/1.1\r\nHost: localhost\r\n\r\n").body, "one two three");
}

TEST_P(HttpTest, BodyLimitHoldsForChunksToo) {
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
TEST_P(HttpTest, LargeBodyThatIsRefusedStillReadsItsReply) {
  HttpLimits limits;
  limits.body_bytes = 1000;
  start(limits);
  EXPECT_EQ(ask(post("/echo", std::string(8 << 20, 'x'))).status, 413);
}

TEST_P(HttpTest, BodiesOfAllConnectionsTogetherAreBounded) {
  HttpLimits limits;
  limits.bodies_bytes = 1500;
  start(limits);
  RawClient first(target_);
  first.send(post("/hang", std::string(1000, 'x')));
  expect_soon(hanging_, 1);
  const RawReply refused = ask(post("/echo", std::string(1000, 'x')));
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.fields.at("retry-after"), "1");
  first.close();
  // The body goes with its connection, a moment after its handler.
  int status = 0;
  for (int i = 0; i < 500 && status != 200; ++i) {
    status = ask(post("/echo", std::string(1000, 'x'))).status;
    if (status != 200) std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_EQ(status, 200);
}

TEST_P(HttpTest, DeadlinesOfHeadAndBody) {
  HttpLimits limits;
  limits.head = milliseconds(100);
  limits.body = milliseconds(100);
  start(limits);
  EXPECT_EQ(ask("GET / HTTP/1.1\r\nHost:").status, 408);
  EXPECT_EQ(ask(kPost + "Content-Length: 5\r\n\r\nhel").status, 408);
}

// Its bytes are always there: no read waits for them.
TEST_F(HttpBase, DeadlinesHoldForAFastSenderToo) {
  HttpLimits limits;
  limits.body = milliseconds(100);
  limits.body_bytes = limits.bodies_bytes = size_t{8} << 30;
  start(limits);
  RawClient client(target_);
  std::atomic<bool> done = false;
  std::thread sender([&] {
    client.send(kPost + "Content-Length: 8000000000\r\n\r\n");
    const std::string piece(1 << 20, 'x');
    const auto end = std::chrono::steady_clock::now() + milliseconds(8000);
    while (!done && std::chrono::steady_clock::now() < end) client.send(piece);
  });
  EXPECT_EQ(client.read_reply().status, 408);
  const auto told = std::chrono::steady_clock::now();
  while (server_->connections() > 0 && std::chrono::steady_clock::now() < told + milliseconds(8000))
    std::this_thread::sleep_for(milliseconds(10));
  EXPECT_LT(std::chrono::steady_clock::now() - told, milliseconds(5000));  // it lingers for two seconds
  done = true;
  sender.join();
}

TEST_P(HttpTest, IdleConnectionIsClosedWithoutAWord) {
  HttpLimits limits;
  limits.idle = milliseconds(100);
  start(limits);
  RawClient client(target_);
  EXPECT_TRUE(client.at_end());
}

TEST_P(HttpTest, TooManyConnectionsGet503) {
  HttpLimits limits;
  limits.connections = 1;
  start(limits);
  RawClient first(target_);
  first.send(post("/echo", "x"));
  EXPECT_EQ(first.read_reply().status, 200);
  EXPECT_EQ(ask(get("/echo")).status, 503);
}

TEST_P(HttpTest, ExceptionIs500AndTheConnectionEnds) {
  start();
  for (const char* path : {"/throw", "/silent"}) {
    RawClient client(target_);
    client.send(get(path));
    const RawReply reply = client.read_reply();
    EXPECT_EQ(reply.status, 500);
    EXPECT_THAT(reply.body, testing::Not(HasSubstr("on purpose")));
    EXPECT_TRUE(client.at_end());
  }
  EXPECT_EQ(ask(post("/echo", "on")).status, 200);
}

TEST_P(HttpTest, DisconnectIsNoticedAtOnce) {
  start();
  RawClient closes(target_), resets(target_), half(target_);
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

TEST_P(HttpTest, NobodyIsToldOfAReplyWhoseClientIsGone) {
  start();
  int gone = 0;
  for (const char* path : {"/late", "/late_stream", "/hang"}) {
    RawClient client(target_);
    client.send(get(path));
    expect_soon(hanging_, ++gone);
    client.close();
    expect_soon(left_, gone);
  }
  server_->stop();
  EXPECT_EQ(heads_, 0);
  EXPECT_EQ(refusals_, 0);
}

TEST_P(HttpTest, DisconnectIsNoticedBehindAPipelinedRequest) {
  start();
  RawClient client(target_);
  client.send(get("/hang") + get("/echo"));
  expect_soon(hanging_, 1);
  client.close();
  expect_soon(left_, 1);
}

TEST_P(HttpTest, ClientThatDoesNotReadIsDropped) {
  HttpLimits limits;
  limits.write = milliseconds(200);
  start(limits);
  RawClient client(target_);
  client.send(get("/flood"));
  expect_soon(left_, 1);
}

TEST_P(HttpTest, StopEndsEverything) {
  start();
  RawClient hanging(target_), idle(target_);
  hanging.send(get("/hang"));
  expect_soon(hanging_, 1);
  server_->stop();
  EXPECT_EQ(left_, 1);
  EXPECT_EQ(server_->connections(), 0);
  EXPECT_TRUE(hanging.at_end());
  EXPECT_TRUE(idle.at_end());
}

TEST_P(HttpTest, CloseWhenIdleEndsIdleConnectionsAndSaysClose) {
  start();
  RawClient idle(target_);
  idle.send(get("/echo"));
  EXPECT_EQ(idle.read_reply().status, 200);
  server_->close_when_idle();
  EXPECT_TRUE(idle.at_end());
  EXPECT_EQ(ask(get("/echo")).fields.at("connection"), "close");
}

TEST_F(HttpBase, PortInUseSaysWhatToDo) {
  start();
  HttpServer second({}, nullptr, nullptr);
  const auto result = second.listen("127.0.0.1", target_.port);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kAddressInUse);
  EXPECT_THAT(result.error().message, HasSubstr(fmt::format("127.0.0.1:{}", target_.port)));
  EXPECT_THAT(result.error().message, HasSubstr("--port"));
}

TEST_F(HttpBase, HostThatIsNotOursIsAConfigurationError) {
  HttpServer server({}, nullptr, nullptr);
  for (const char* host : {"192.0.2.1", "no such host"}) {
    const auto result = server.listen(host, 0);
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::kConfig);
    EXPECT_THAT(result.error().message, HasSubstr("server.host"));
  }
}

// More than a record, and more than the socket's buffers.
TEST_P(HttpTest, LargeBodiesBothWays) {
  start();
  std::string body(5 << 20, 'x');
  for (size_t i = 0; i < body.size(); i += 997) body[i] = static_cast<char>('a' + i % 26);
  RawClient client(target_);
  for (int i = 0; i < 2; ++i) {
    client.send(post("/echo", body));
    EXPECT_EQ(client.read_reply().body, "POST " + body);
  }
}

TEST_F(HttpBase, HandshakeHasTheTimeOfAHeadAndItsOwnWords) {
  HttpLimits limits;
  limits.head = milliseconds(200);
  start(limits, Transport::kTls);
  const RawTarget plain{target_.port, {}, false};
  RawClient silent(plain), half(plain), garbage(plain), http(plain);
  half.send(std::string_view("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11));
  garbage.send("\x01\x02\x03\x04\x05\x06\x07");
  http.send(get("/echo"));
  const RawReply told = http.read_reply();
  EXPECT_EQ(told.status, 400);
  EXPECT_THAT(told.body, HasSubstr("https://"));
  EXPECT_TRUE(silent.at_end());
  EXPECT_TRUE(half.at_end());
  garbage.read_until("\n");  // an alert, or nothing
  EXPECT_TRUE(garbage.at_end());
  EXPECT_EQ(ask(get("/echo")).status, 200);
}

TEST_F(HttpBase, StopEndsAHandshakeToo) {
  start({}, Transport::kTls);
  RawClient silent(RawTarget{target_.port, {}, false});
  while (server_->connections() == 0) std::this_thread::sleep_for(milliseconds(1));
  server_->stop();
  EXPECT_TRUE(silent.at_end());
}

TEST_F(HttpBase, SocketFileOfAnotherServerStays) {
  start({}, Transport::kUnix);
  struct stat info{};
  ASSERT_EQ(stat(target_.uds.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0660u);
  HttpServer second({}, nullptr, nullptr);
  const auto taken = second.listen_unix(target_.uds);
  ASSERT_FALSE(taken.ok());
  EXPECT_EQ(taken.error().code, ErrorCode::kAddressInUse);
  // Somebody removes the file and another server comes: the first one must not remove that one's.
  std::filesystem::remove(target_.uds);
  ASSERT_TRUE(second.listen_unix(target_.uds).ok());
  server_->stop();
  EXPECT_TRUE(std::filesystem::exists(target_.uds));
  second.remove_socket_file();
  EXPECT_FALSE(std::filesystem::exists(target_.uds));
}

TEST_F(HttpBase, ConnectionsFarBeyondTheLimitAreClosedWithoutAWord) {
  HttpLimits limits;
  limits.connections = 1;
  start(limits);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 300; ++i) clients.push_back(std::make_unique<RawClient>(target_));
  EXPECT_TRUE(clients.back()->at_end());
  EXPECT_LE(server_->connections(), 300);
}

}  // namespace
}  // namespace deepinfer::server
