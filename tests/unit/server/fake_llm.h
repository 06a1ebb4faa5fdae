// A model that says what the test tells it to, under the real engine, tokenizer and template: tokens are
// bytes.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "deepinfer/config.h"
#include "engine/llm.h"

namespace deepinfer::server {

struct FakeModel {
  std::string says = "Hello there.";  // then the end of sequence
  std::chrono::microseconds step_time{0};
  int max_model_len = 256;
  int num_blocks = 64;
  int max_num_seqs = 8;
  int max_queue = 32;
  int fails_at = -1;  // the position at which a step throws, with a text that no client must see
};

inline constexpr int32_t kFakeStart = 256;  // <|im_start|>
inline constexpr int32_t kFakeEnd = 257;    // <|im_end|>, the end of sequence

// Steps wait while it is closed.
class Gate {
 public:
  void close();
  void open();
  void pass();
  void wait_for_step();  // returns when a step stands before the closed gate

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  int waiting_ = 0;
};

// `gate` may be null; it must outlive the Llm.
std::unique_ptr<Llm> make_fake_llm(const Config& config, FakeModel model, Gate* gate = nullptr);

}  // namespace deepinfer::server
