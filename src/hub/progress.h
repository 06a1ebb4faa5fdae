// What a person sees while files come: a bar on a terminal, else a line each few seconds.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>

namespace deepinfer::hub {

// Its methods are called from any thread; a thread of its own writes.
class Progress {
 public:
  // `out` null: silent. A terminal gets a bar. `what` begins every line.
  Progress(std::FILE* out, std::string what);
  ~Progress();
  Progress(const Progress&) = delete;

  void expect(uint64_t files, uint64_t bytes);  // adds to what is to come
  void had(uint64_t bytes);                     // of it, there already: no speed comes from them
  void came(uint64_t bytes);
  void lost(uint64_t bytes);  // came, but must come again
  void finished_file(const std::string& name, uint64_t size);
  void note(const std::string& text);  // a line of its own

 private:
  void loop();
  void draw(bool last);                      // with mutex_ held
  void print_line(const std::string& text);  // with mutex_ held

  using Clock = std::chrono::steady_clock;
  std::FILE* out_;
  bool terminal_;
  std::string what_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false, drawn_ = false;
  uint64_t files_ = 0, files_done_ = 0;
  uint64_t total_ = 0, done_ = 0, came_ = 0;
  Clock::time_point start_ = Clock::now();
  std::thread thread_;
};

// "what: 45% of 2.7 GB, 35.0 MB/s, 0:42 left, 3 of 7 files"
struct ProgressState {
  uint64_t files = 0, files_done = 0, total = 0, done = 0;
  double bytes_per_second = 0;  // 0: unknown
};
std::string progress_text(const std::string& what, const ProgressState& state, int bar_width);

}  // namespace deepinfer::hub
