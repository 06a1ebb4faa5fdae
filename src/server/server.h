// The server: binds first, answers while the model loads, serves, drains.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "deepinfer/config.h"
#include "deepinfer/result.h"
#include "server/http.h"

namespace deepinfer {

struct Llm;

namespace server {

class Api;

// Where it serves: for people, and as a shell's word or words for curl, without a path.
struct Address {
  std::string url;   // "http://127.0.0.1:8000", "unix:/run/deepinfer.sock"
  std::string curl;  // "http://127.0.0.1:8000", "--unix-socket /run/deepinfer.sock http://localhost"
};

// A time of the settings, at most some thirty years.
std::chrono::milliseconds to_milliseconds(double seconds);

// Any thread may call its methods, except those of its own that handle requests. Order at the end: drain(),
// stop(), then the model may go, then the server: the engine's last events still find their executor.
class Server {
 public:
  // `ping`: how often a stream without news says that it lives.
  explicit Server(const Config& config, std::chrono::milliseconds ping = std::chrono::seconds(15));
  ~Server();  // stop()
  Server(const Server&) = delete;

  // Reads the files that the settings name (keys, certificate), binds server.uds, else server.host and
  // server.port, and begins to answer: healthy, not ready.
  Result<Address> start();

  void set_model(Llm& llm);  // borrowed until stop(); from now on ready

  void lose_device();  // nothing can be served any more: /health says 503 until the end

  // New requests get 503. True when all running ones have ended within the time.
  bool drain(std::chrono::milliseconds time);
  void stop();                // ends what still runs
  void remove_socket_file();  // for a process that ends without stop()

 private:
  Result<Address> listen(bool tls);

  const Config config_;
  std::unique_ptr<Api> api_;
  std::unique_ptr<HttpServer> http_;
  Llm* llm_ = nullptr;
};

}  // namespace server
}  // namespace deepinfer
