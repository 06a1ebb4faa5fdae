// The engine as the Python package uses it: requests in, their news out. No Python in here.
#pragma once

#include <unistd.h>

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "deepinfer/config.h"
#include "engine/llm.h"
#include "server/generation.h"
#include "server/prepare.h"

namespace deepinfer::python {

// Seconds from submit() on.
struct Times {
  std::optional<double> queue, first_token;
  double end = 0;
};

struct News {
  uint64_t request = 0;
  // Streams: what is new. Others: each choice's whole answer, with the end.
  std::vector<server::ChoiceUpdate> choices;
  bool end = false;
  // With the end:
  std::optional<Error> error;
  std::vector<OutputToken> prompt_logprobs;
  server::Usage usage;
  Times times;
};

// Where the news of some requests gather. Any thread.
class Channel {
 public:
  Channel() = default;
  Channel(const Channel&) = delete;
  ~Channel();

  void push(News news);
  // What there is; waits up to `time` for something.
  std::vector<News> take(std::chrono::milliseconds time);
  // A file that is readable while there is news, for event loops. Made when first asked for; -1: none to be
  // had.
  int fd();
  // That made it.
  pid_t process() const { return process_; }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<News> news_;
  int fd_ = -1;
  const pid_t process_ = getpid();
};

struct SubmitOptions {
  bool chat = false;
  bool stream = false;
};

struct Submitted {
  uint64_t request = 0;
  std::vector<int32_t> prompt;  // token ids
};

// Any thread. The thread of its own that it has turns tokens into text.
class Session {
 public:
  // Finds the model (fetching it when it is one of a hub), packs the weights, starts the engine. `others`:
  // bytes of the host that other engines of this process hold or may come to hold. kMemory when this one is
  // too much besides.
  static Result<std::unique_ptr<Session>> open(Config config, int64_t others);
  ~Session();  // close()
  Session(const Session&) = delete;

  // `body`: the parameters as the server's API names them, with `prompt` or `messages`. One prompt a request.
  Result<Submitted> submit(const boost::json::object& body, SubmitOptions options,
                           std::shared_ptr<Channel> channel);
  void cancel(uint64_t request);

  // Ends at once what runs; each request still gets its end. The weights are given back.
  void close();
  bool closed() const { return closed_; }

  // The model, which close() waits for while this lives; null after close().
  struct Use {
    std::shared_lock<std::shared_mutex> lock;
    Llm* llm = nullptr;
    explicit operator bool() const { return llm != nullptr; }
    Llm* operator->() const { return llm; }
  };
  Use use() const;

 private:
  struct Running;

  Session(Config config, std::unique_ptr<Llm> llm);
  boost::asio::awaitable<void> follow(std::shared_ptr<Running> running);
  boost::asio::awaitable<std::optional<Error>> run(Running& running);
  void end(Running& running, std::optional<Error> error);

  const Config config_;
  std::unique_ptr<Llm> llm_;
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_{io_.get_executor()};
  std::thread thread_;  // io_'s

  mutable std::shared_mutex open_;  // shared: the model is in use
  std::atomic<bool> closed_ = false;
  std::atomic<uint64_t> last_ = 0;
  std::map<uint64_t, std::shared_ptr<Running>> running_;  // io_'s thread alone
};

}  // namespace deepinfer::python
