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

// Any thread may call its methods, except those of its own that handle requests. Order at the end: drain(),
// stop(), then the model may go, then the server: the engine's last events still find their executor.
class Server {
 public:
  explicit Server(const Config& config, HttpLimits limits = {});
  ~Server();  // stop()
  Server(const Server&) = delete;

  // Binds server.host and server.port and begins to answer: healthy, not ready. Returns the URL without a
  // path.
  Result<std::string> start();

  void set_model(Llm& llm);  // borrowed until stop(); from now on ready

  // New requests get 503. True when all running ones have ended within the time.
  bool drain(std::chrono::milliseconds time);
  void stop();  // ends what still runs

 private:
  const Config config_;
  std::unique_ptr<Api> api_;
  std::unique_ptr<HttpServer> http_;
  Llm* llm_ = nullptr;
};

}  // namespace server
}  // namespace deepinfer
