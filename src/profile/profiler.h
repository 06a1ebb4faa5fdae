// Records what an engine does and when, and writes it as a trace that Perfetto shows.
//
// A span costs two readings of the clock and a store into memory that was set aside: no lock, no allocation.
// While nothing is recorded, and no NVTX tool listens, a span is a look at one flag.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/arena.h"
#include "base/shared_library.h"
#include "deepinfer/result.h"
#include "profile/cupti.h"
#include "profile/phase.h"
#include "profile/summary.h"

namespace deepinfer {

struct ProfileEvent {
  int64_t start = 0;     // ns of Profiler::now()
  int64_t duration = 0;  // ns
  std::array<int32_t, 3> args{};
  Phase phase{};
};

struct ProfilerOptions {
  size_t max_events = 1'000'000;  // spans that are kept, and again as many kernels of a GPU; 32 bytes each
  bool gpu = false;               // kernels too, by CUPTI
  std::vector<LibraryFolder> cupti_folders;  // where it is looked for
};

// What stop() found and wrote.
struct ProfileReport {
  ProfileSummary summary;
  std::filesystem::path file;  // empty: it could not be written
  std::string problem;         // then why
  uint64_t events = 0;         // in the file: spans, kernels
  uint64_t dropped = 0;        // that found no room
};

// Any thread may call any method. Outlives everybody who has a pointer to it.
class Profiler {
 public:
  explicit Profiler(ProfilerOptions options);
  ~Profiler();
  Profiler(const Profiler&) = delete;

  // Steady clock, ns.
  static int64_t now();

  // Whether a span has anything to do.
  bool active() const { return active_.load(std::memory_order_relaxed); }
  bool recording() const { return recording_.load(std::memory_order_relaxed); }
  bool ranges() const { return ranges_; }  // an NVTX tool listens

  // A span of this thread. Nothing happens unless it began while recording.
  void record(Phase phase, int64_t start, int64_t end, const std::array<int32_t, 3>& args = {});

  // What is launched until leave_step() belongs to the step, so that its kernels are told as such. False:
  // nobody asks, and leave_step() is not to be called.
  bool enter_step(int32_t step);
  void leave_step();

  // kUnavailable when it records already; kMemory. A GPU without CUPTI is no error: the summary says why.
  Result<void> start();
  // Stops, sums up and writes the trace, which appears whole or not at all. kNotFound: nothing is recorded.
  Result<ProfileReport> stop(const std::filesystem::path& file);

  // What the summary is told about the engine.
  void set_facts(ProfileFacts facts);

  // Loads CUPTI and lets it see the process from now on, so that it knows what is captured before a
  // recording.
  void attach_gpu();

  // A new name in the folder: deepinfer-20260131-235959-<process>-<number>.trace.json.
  std::filesystem::path next_file(const std::filesystem::path& folder);

 private:
  struct Track;
  Track* track(Phase phase);
  Track* open_track(Phase phase);
  bool take_piece(Track& track, int64_t now);
  void start_gpu();
  ProfileData collect() const;

  const ProfilerOptions options_;
  ProfileFacts facts_;
  const bool ranges_;
  std::atomic<bool> active_ = false, recording_ = false;
  std::atomic<int> writers_ = 0;  // threads inside of record()

  // Of a recording. Threads take pieces of the memory one after another; a piece belongs to one thread.
  Buffer memory_;
  size_t pieces_ = 0;
  std::unique_ptr<uint8_t[]> piece_track_;  // [pieces_] whose it is
  std::atomic<size_t> next_piece_ = 0;
  std::unique_ptr<Track[]> tracks_;
  std::atomic<int> open_tracks_ = 0;
  std::atomic<uint64_t> trackless_ = 0;  // events of threads beyond the last track
  int64_t started_ = 0;

  std::mutex mutex_;        // of start(), stop(), next_file()
  std::mutex track_mutex_;  // of a thread's first event
  std::unique_ptr<Cupti> cupti_;
  std::atomic<const Cupti*> gpu_ = nullptr;  // cupti_, from the first recording on
  std::atomic<bool> gpu_records_ = false;
  std::string gpu_problem_;
  int files_ = 0;
};

// From its construction to its end. A null profiler: nothing.
class Span {
 public:
  Span(Profiler* profiler, Phase phase, int32_t a = 0, int32_t b = 0, int32_t c = 0)
      : profiler_(profiler != nullptr && profiler->active() ? profiler : nullptr) {
    if (profiler_ != nullptr) [[unlikely]]
      begin(phase, {a, b, c});
  }
  ~Span() {
    if (profiler_ != nullptr) [[unlikely]]
      end();
  }
  Span(const Span&) = delete;

  // For what is known only at the end.
  void set(int32_t a, int32_t b = 0, int32_t c = 0) { args_ = {a, b, c}; }

 private:
  void begin(Phase phase, const std::array<int32_t, 3>& args);
  void end();

  Profiler* profiler_;
  Phase phase_{};
  bool launches_ = false;
  int64_t start_ = 0;
  std::array<int32_t, 3> args_{};
};

}  // namespace deepinfer
