#include "profile/profiler.h"

#include <fmt/chrono.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <ctime>
#include <thread>
#include <utility>

#include "base/check.h"
#include "profile/nvtx.h"
#include "profile/trace_file.h"

namespace deepinfer {
namespace {

constexpr size_t kPiece = 128;  // events: a page
constexpr int kMaxTracks = 64;

const char* thread_name(Phase first) {
  if (first == Phase::kTokenize) return "text worker";
  if (first == Phase::kDetokenize) return "connections";
  return "engine";
}

// Each moment of the GPU counts once, for the kernel that began first.
DeviceTotals total_of(const DeviceTrace& trace) {
  std::vector<Work> works;
  for (const std::string& name : trace.names) works.push_back(work_of(readable_name(name)));
  std::vector<const DeviceActivity*> sorted;
  for (const DeviceActivity& a : trace.activities) sorted.push_back(&a);
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->start < b->start; });
  DeviceTotals totals;
  int64_t covered = 0;
  for (const DeviceActivity* a : sorted) {
    const int64_t begin = std::max(a->start, covered);
    if (a->end <= begin) continue;
    totals.nanoseconds[static_cast<size_t>(works[a->name])] += a->end - begin;
    covered = a->end;
  }
  return totals;
}

}  // namespace

struct alignas(64) Profiler::Track {
  std::atomic<pthread_t> owner{};  // 0: nobody's
  std::string name;
  ProfileEvent* next = nullptr;  // room of the piece at hand
  ProfileEvent* end = nullptr;
  uint64_t dropped = 0;
  int64_t dropped_from = 0;
  std::array<PhaseTotals, kPhases> totals{};
};

Profiler::Profiler(ProfilerOptions options)
    : options_(std::move(options)), ranges_(nvtx::listened()), active_(ranges_) {}

Profiler::~Profiler() = default;

int64_t Profiler::now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Result<void> Profiler::start() {
  const std::lock_guard lock(mutex_);
  if (recording_)
    return make_error(ErrorCode::kUnavailable, "a profile is being recorded already: stop it first");
  pieces_ = (options_.max_events + kPiece - 1) / kPiece;
  DI_ASSIGN(memory_, Buffer::allocate(pieces_ * kPiece * sizeof(ProfileEvent)));
  piece_track_ = std::make_unique<uint8_t[]>(pieces_);
  tracks_ = std::make_unique<Track[]>(kMaxTracks);
  next_piece_ = 0;
  open_tracks_ = 0;
  trackless_ = 0;
  if (options_.gpu) start_gpu();
  started_ = now();
  recording_ = true;
  active_ = true;
  return {};
}

// What keeps CUPTI from working may be mended before the next recording.
void Profiler::start_gpu() {
  gpu_problem_.clear();
  if (cupti_ == nullptr) {
    Result<std::unique_ptr<Cupti>> opened = Cupti::open(options_.cupti_folders);
    if (!opened) {
      gpu_problem_ = opened.error().message;
      return;
    }
    cupti_ = std::move(*opened);
    gpu_ = cupti_.get();
  }
  const Result<void> begun = cupti_->start(options_.max_events);
  if (!begun) gpu_problem_ = begun.error().message;
  gpu_records_ = begun.ok();
}

void Profiler::attach_gpu() {
  const std::lock_guard lock(mutex_);
  if (!recording_) start_gpu();
  if (!recording_ && gpu_records_.exchange(false)) (void)cupti_->stop();
}

void Profiler::set_facts(ProfileFacts facts) {
  const std::lock_guard lock(mutex_);
  facts_ = std::move(facts);
}

bool Profiler::enter_step(int32_t step) {
  if (!gpu_records_) return false;
  gpu_.load()->enter(static_cast<uint64_t>(step));
  return true;
}

void Profiler::leave_step() {
  gpu_.load()->leave();
}

Profiler::Track* Profiler::track(Phase phase) {
  const pthread_t self = pthread_self();
  const int open = open_tracks_.load(std::memory_order_acquire);
  for (int i = 0; i < open; ++i)
    if (tracks_[i].owner.load(std::memory_order_relaxed) == self) return &tracks_[i];
  return open_track(phase);
}

Profiler::Track* Profiler::open_track(Phase phase) {
  const std::lock_guard lock(track_mutex_);
  const int open = open_tracks_.load(std::memory_order_relaxed);
  if (open == kMaxTracks) return nullptr;
  Track& track = tracks_[open];
  track.name = thread_name(phase);
  track.owner.store(pthread_self(), std::memory_order_relaxed);
  open_tracks_.store(open + 1, std::memory_order_release);
  return &track;
}

bool Profiler::take_piece(Track& track, int64_t now) {
  // Looked at first, so that the number stays small however long the memory is full.
  size_t piece = next_piece_.load(std::memory_order_relaxed);
  if (piece < pieces_) piece = next_piece_.fetch_add(1, std::memory_order_relaxed);
  if (piece >= pieces_) {
    if (track.dropped++ == 0) track.dropped_from = now;
    return false;
  }
  piece_track_[piece] = static_cast<uint8_t>(&track - tracks_.get());
  track.next = reinterpret_cast<ProfileEvent*>(memory_.data()) + piece * kPiece;
  track.end = track.next + kPiece;
  return true;
}

// stop() clears the flag first and then waits until no writer is inside, so either a writer sees the flag
// cleared, or stop() sees the writer. A thread that is inside owns its track.
void Profiler::record(Phase phase, int64_t start, int64_t end, const std::array<int32_t, 3>& args) {
  writers_.fetch_add(1);
  if (recording_.load() && start >= started_) {
    if (Track* t = track(phase); t == nullptr) {
      trackless_.fetch_add(1, std::memory_order_relaxed);
    } else {
      PhaseTotals& totals = t->totals[static_cast<size_t>(phase)];
      ++totals.count;
      totals.nanoseconds += end - start;
      for (size_t i = 0; i < args.size(); ++i) totals.args[i] += args[i];
      if (t->next != t->end || take_piece(*t, end)) *t->next++ = {start, end - start, args, phase};
    }
  }
  writers_.fetch_sub(1);
}

ProfileData Profiler::collect() const {
  ProfileData data;
  for (int i = 0; i < open_tracks_; ++i)
    for (size_t p = 0; p < kPhases; ++p) {
      const PhaseTotals& from = tracks_[i].totals[p];
      PhaseTotals& to = data.phases[p];
      to.count += from.count;
      to.nanoseconds += from.nanoseconds;
      for (size_t a = 0; a < from.args.size(); ++a) to.args[a] += from.args[a];
    }
  data.device_problem = gpu_problem_;
  return data;
}

Result<ProfileReport> Profiler::stop(const std::filesystem::path& file) {
  const std::lock_guard lock(mutex_);
  if (!recording_) return make_error(ErrorCode::kNotFound, "no profile is being recorded: start one first");
  recording_ = false;
  active_ = ranges_;
  while (writers_.load() != 0) std::this_thread::yield();
  TraceInput input{.start = started_, .end = now(), .device = facts_.device};
  DeviceTrace device;
  ProfileData data = collect();
  if (gpu_records_.exchange(false)) {
    device = cupti_->stop();
    data.device = total_of(device);
    input.gpu = &device;
    input.dropped += device.dropped;
  }
  data.seconds = static_cast<double>(input.end - input.start) * 1e-9;
  input.dropped += trackless_;
  input.tracks.resize(static_cast<size_t>(open_tracks_.load()));
  for (size_t i = 0; i < input.tracks.size(); ++i) {
    input.tracks[i].name = tracks_[i].name;
    input.tracks[i].dropped = tracks_[i].dropped;
    input.tracks[i].dropped_from = tracks_[i].dropped_from;
    input.dropped += tracks_[i].dropped;
  }
  const auto* events = reinterpret_cast<const ProfileEvent*>(memory_.data());
  for (size_t p = 0; p < std::min(next_piece_.load(), pieces_); ++p) {
    const ProfileEvent* begin = events + p * kPiece;
    const Track& t = tracks_[piece_track_[p]];
    const ProfileEvent* end = t.end == begin + kPiece ? t.next : begin + kPiece;
    input.tracks[piece_track_[p]].pieces.emplace_back(begin, end);
  }
  ProfileReport report{.summary = summarize(data, facts_), .dropped = input.dropped};
  input.summary = boost::json::serialize(to_json(report.summary));
  const Result<uint64_t> written = write_trace(input, file);
  if (written) {
    report.file = file;
    report.events = *written;
  } else {
    report.problem = written.error().message;
  }
  memory_ = {};
  piece_track_.reset();
  tracks_.reset();
  return report;
}

std::filesystem::path Profiler::next_file(const std::filesystem::path& folder) {
  const std::lock_guard lock(mutex_);
  return folder / fmt::format("deepinfer-{:%Y%m%d-%H%M%S}-{}-{}.trace.json",
                              fmt::localtime(std::time(nullptr)), getpid(), ++files_);
}

void Span::begin(Phase phase, const std::array<int32_t, 3>& args) {
  phase_ = phase;
  args_ = args;
  if (phase == Phase::kForward || phase == Phase::kSampling) launches_ = profiler_->enter_step(args[0]);
  if (profiler_->ranges()) nvtx::push(phase);
  start_ = Profiler::now();
}

void Span::end() {
  profiler_->record(phase_, start_, Profiler::now(), args_);
  if (profiler_->ranges()) nvtx::pop();
  if (launches_) profiler_->leave_step();
}

}  // namespace deepinfer
