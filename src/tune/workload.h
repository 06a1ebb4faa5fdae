// What a server is tuned for: requests, and how many are under way at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/engine.h"
#include "deepinfer/result.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace deepinfer::tune {

// Lengths in tokens: log-normal around the median, cut at the ends.
struct Lengths {
  double median = 0, spread = 0;  // of the logarithm
  int low = 1, high = 1;
};

// Request i is the same in every run.
class Workload {
 public:
  // "chat", "batch" or "long-context", of random tokens. kConfig for other names.
  static Result<Workload> named(const std::string& name, bool gpu, int vocab_size, int max_model_len);

  // A line a request: {"prompt_tokens": 300, "max_tokens": 60}, or a body for the OpenAI API (prompt or
  // messages), bare or as `body` of a batch file's line. Answers are greedy. kConfig with file and line.
  static Result<Workload> from_file(const std::filesystem::path& file, const Tokenizer& tokenizer,
                                    const ChatTemplate* chat_template, int vocab_size, int max_model_len);

  const std::string& name() const { return name_; }
  int concurrency() const { return concurrency_; }
  void set_concurrency(int n) { concurrency_ = n; }
  std::string text() const;  // "chat: 32 requests at a time, prompts of 64 to 1024 tokens, ..."

  // A server in its daily life is asked now and then; the first requests of a run come all at once. They are
  // cut short differently, so that they end at different times, and their latencies do not count.
  bool steady() const { return steady_; }
  EngineRequest request(size_t index) const;

  static const std::vector<std::string_view>& names();

 private:
  struct Line {
    std::vector<int32_t> prompt;  // empty: `random` tokens
    int random = 0;
    int max_tokens = 1;
  };

  std::string name_;
  int concurrency_ = 1;
  bool steady_ = true;
  int vocab_size_ = 0, max_model_len_ = 0;
  int shared_prefix_ = 0;  // tokens that all prompts begin with: a system message
  Lengths prompt_, answer_;
  std::vector<Line> lines_;  // of a file

  friend class FileReader;
};

}  // namespace deepinfer::tune
