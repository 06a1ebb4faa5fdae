// A client that says exactly the bytes it is told, over a real socket. Blocking, with a time limit.
#pragma once

#include <openssl/ssl.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace deepinfer::server {

struct RawReply {
  int status = 0;  // 0: the connection ended before a status line
  std::map<std::string, std::string> fields;
  std::string body;  // chunks joined
};

struct RawTarget {
  uint16_t port = 0;  // on loopback
  std::string uds;    // instead of it
  bool tls = false;   // whatever certificate the server has
};

class RawClient {
 public:
  explicit RawClient(uint16_t port) : RawClient(RawTarget{port, {}, false}) {}
  explicit RawClient(const RawTarget& target);
  ~RawClient();
  RawClient(const RawClient&) = delete;

  void send(std::string_view bytes);
  // In pieces of `size` bytes with a flush after each.
  void send_in_pieces(std::string_view bytes, size_t size);
  void shutdown_send();
  void close();
  void reset();  // RST instead of FIN

  RawReply read_reply();
  std::string read_until(std::string_view mark);  // what came, up to and with the mark, or all until the end
  bool at_end();                                  // the server has closed

 private:
  bool fill();
  std::string take(size_t bytes);
  void start_tls();

  struct Free {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };
  int socket_ = -1;
  std::unique_ptr<SSL, Free> ssl_;
  std::string buffer_;
};

// "POST /path HTTP/1.1" with Host, Content-Length and body.
std::string post(std::string_view path, std::string_view body, std::string_view fields = {});
std::string get(std::string_view path, std::string_view fields = {});

}  // namespace deepinfer::server
