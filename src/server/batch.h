// Runs a batch of OpenAI's requests from a file: the same preparation, generation and answers as the
// server's, without HTTP (docs/BATCH.md).
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/json/object.hpp>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <variant>

#include "deepinfer/config.h"
#include "engine/llm.h"
#include "server/batch_files.h"
#include "server/generation.h"
#include "server/prepare.h"
#include "server/text_pool.h"

namespace deepinfer::server {

// What is wrong with a line of the input: no request could be made of it.
struct BatchFault {
  std::string code, message;
};

struct BatchRequest {
  std::optional<std::string> custom_id;  // empty: it could not be read
  Form form = kChat;
  std::variant<boost::json::object, BatchFault> body;
};

// {"custom_id", "method": "POST", "url", "body"}
BatchRequest parse_batch_line(const LineReader::Line& line);

// Lines of the results, with their ends. `body` is JSON.
std::string batch_reply(const std::optional<std::string>& custom_id, int status, std::string_view body);
std::string batch_failure(const std::optional<std::string>& custom_id, const BatchFault& fault);

struct BatchProgress {
  int64_t requests = 0;           // of the whole batch
  int64_t before = 0;             // results that were there
  int64_t succeeded = 0;          // since
  int64_t failed = 0;             // since
  int64_t completion_tokens = 0;  // of what succeeded since
  std::string first_failure;      // "line 7: ..."

  int64_t left() const { return requests - before - succeeded - failed; }
};

// All methods on the thread that runs `io`, which outlives this and llm.
class Batch {
 public:
  // Keeps `window` requests with the engine, whose order of ends is that of the results.
  Batch(Llm& llm, const Config& config, BatchFiles files, boost::asio::io_context& io, int window);

  // `on_end`: once, when the last result is written, or what ran is given up.
  void start(std::function<void()> on_end);
  // Gives up what runs, for the next run to do. `why`: what error() says then; none: the user wants it.
  void stop(std::optional<Error> why);

  const BatchProgress& progress() const { return progress_; }
  const std::optional<Error>& error() const { return error_; }
  void sync() { files_.output.sync(); }

 private:
  struct Ready;
  struct Answer;

  boost::asio::awaitable<void> work();
  Result<std::optional<LineReader::Line>> next_line();
  Ready read(const LineReader::Line& line) const;
  boost::asio::awaitable<Answer> answer(LineReader::Line line);
  boost::asio::awaitable<void> generate(const Ready& ready, Answer& answer);
  void record(int64_t line, const Answer& answer);

  Llm& llm_;
  const Config config_;
  BatchFiles files_;
  boost::asio::io_context& io_;
  const int window_;
  TextPool text_pool_;
  BatchProgress progress_;
  std::function<void()> on_end_;
  std::set<Generation*> running_;
  int workers_ = 0;
  bool stopped_ = false;
  std::optional<Error> error_;
};

}  // namespace deepinfer::server
