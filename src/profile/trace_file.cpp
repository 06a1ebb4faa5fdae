#include "profile/trace_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <iterator>
#include <map>
#include <memory>
#include <system_error>

#include "base/check.h"
#include "base/log_format.h"
#include "deepinfer/version.h"
#include "profile/kernel_kind.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;

constexpr size_t kFlushBytes = 1 << 20;
constexpr int kHostProcess = 1, kGpuProcess = 100;  // ids of the trace: a GPU is a process of its own
constexpr int kStepThread = 1000;                   // the first lane of steps
constexpr size_t kMostLanes = 16;

// What overlaps cannot stand on one line of a trace, where spans nest: each goes to the first lane that is
// free.
class Lanes {
 public:
  size_t place(int64_t start, int64_t end) {
    size_t lane = 0;
    while (lane < ends_.size() && ends_[lane] > start) ++lane;
    if (lane == ends_.size() && lane < kMostLanes) ends_.push_back(0);
    lane = std::min(lane, ends_.size() - 1);
    ends_[lane] = end;
    return lane;
  }
  size_t size() const { return ends_.size(); }

 private:
  std::vector<int64_t> ends_;  // until when each is taken
};

std::string lane_name(const std::string& name, size_t lane) {
  return lane == 0 ? name : fmt::format("{}, overlapping {}", name, lane);
}

class Writer {
 public:
  Writer(const TraceInput& input, std::FILE* file) : input_(input), file_(file) {}

  // False: errno says why.
  bool write() {
    text_ = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
    name("process_name", kHostProcess, 0, "deepinfer " + input_.device);
    for (size_t i = 0; i < input_.tracks.size(); ++i) write_track(i);
    for (size_t lane = 0; lane < steps_.size(); ++lane)
      name("thread_name", kHostProcess, kStepThread + static_cast<int>(lane), lane_name("steps", lane));
    if (input_.gpu != nullptr) write_gpu(*input_.gpu);
    text_ += "\n],\"otherData\":{\"version\":";
    append_json_string(text_, version());
    text_ += fmt::format(",\"events\":{},\"dropped_events\":{},\"dropped_note\":", events_, input_.dropped);
    append_json_string(text_, input_.dropped == 0
                                  ? "nothing was dropped"
                                  : "the buffer was full: later events are missing; "
                                    "server.profile_events is its size. The summary is of all");
    text_ += ",\"summary\":" + (input_.summary.empty() ? std::string("{}") : input_.summary) + "}}\n";
    return flush() && ok_;
  }

  uint64_t events() const { return events_; }

 private:
  auto out() { return std::back_inserter(text_); }

  void begin_event() {
    if (!first_) text_ += ",\n";
    first_ = false;
    if (text_.size() > kFlushBytes) flush();
  }

  bool flush() {
    ok_ = ok_ && std::fwrite(text_.data(), 1, text_.size(), file_) == text_.size();
    text_.clear();
    return ok_;
  }

  // Of times in the trace, which are microseconds.
  double at(int64_t time) const { return static_cast<double>(time - input_.start) * 1e-3; }

  void name(const char* what, int process, int thread, const std::string& text) {
    begin_event();
    fmt::format_to(out(), R"({{"ph":"M","name":"{}","pid":{},"tid":{},"args":{{"name":)", what, process,
                   thread);
    append_json_string(text_, text);
    text_ += "}}";
  }

  void write_track(size_t index) {
    const TraceTrack& track = input_.tracks[index];
    const int thread = static_cast<int>(index) + 1;
    const auto same =
        std::count_if(input_.tracks.begin(), input_.tracks.begin() + static_cast<int64_t>(index),
                      [&](const TraceTrack& t) { return t.name == track.name; });
    name("thread_name", kHostProcess, thread,
         same == 0 ? track.name : fmt::format("{} {}", track.name, same + 1));
    for (const auto& piece : track.pieces)
      for (const ProfileEvent& event : piece) write_event(event, thread);
    if (track.dropped == 0) return;
    begin_event();
    fmt::format_to(
        out(),
        R"({{"ph":"i","s":"g","name":"buffer full: {} events of this thread are missing from here on",)"
        R"("cat":"profiler","pid":{},"tid":{},"ts":{:.3f}}})",
        track.dropped, kHostProcess, thread, at(track.dropped_from));
  }

  void write_event(const ProfileEvent& event, int thread) {
    ++events_;
    if (event.phase == Phase::kCounters) return write_counters(event);
    if (event.phase == Phase::kStep)
      thread = kStepThread + static_cast<int>(steps_.place(event.start, event.start + event.duration));
    const PhaseInfo& phase = info(event.phase);
    begin_event();
    fmt::format_to(out(), R"({{"ph":"X","name":"{}","cat":"{}","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f})",
                   phase.name, phase.category, kHostProcess, thread, at(event.start),
                   static_cast<double>(event.duration) * 1e-3);
    if (phase.args[0] != nullptr) {
      const char* before = ",\"args\":{";
      for (size_t i = 0; i < phase.args.size() && phase.args[i] != nullptr; ++i) {
        fmt::format_to(out(), "{}\"{}\":{}", before, phase.args[i], event.args[i]);
        before = ",";
      }
      text_ += '}';
    }
    text_ += '}';
  }

  void write_counters(const ProfileEvent& event) {
    begin_event();
    fmt::format_to(
        out(),
        R"({{"ph":"C","name":"sequences","pid":{0},"tid":0,"ts":{1:.3f},"args":{{"running":{2},"waiting":{3}}}}},)"
        "\n"
        R"({{"ph":"C","name":"free blocks","pid":{0},"tid":0,"ts":{1:.3f},"args":{{"free":{4}}}}})",
        kHostProcess, at(event.start), event.args[0], event.args[1], event.args[2]);
  }

  void write_gpu(const DeviceTrace& gpu) {
    std::vector<std::string> names;  // with quotes
    for (const std::string& mangled : gpu.names)
      append_json_string(names.emplace_back(), readable_name(mangled));
    std::vector<const DeviceActivity*> sorted;
    for (const DeviceActivity& a : gpu.activities)
      if (a.end >= input_.start && a.start <= input_.end) sorted.push_back(&a);
    std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->start < b->start; });
    std::map<std::pair<uint32_t, uint32_t>, Lanes> streams;  // of devices
    for (const DeviceActivity* a : sorted) {
      const size_t lane = streams[{a->device, a->stream}].place(a->start, a->end);
      write_activity(*a, names[a->name], stream_thread(a->stream, lane));
    }
    for (const auto& [stream, lanes] : streams) {
      const int process = kGpuProcess + static_cast<int>(stream.first);
      name("process_name", process, 0, fmt::format("GPU {}", stream.first));
      for (size_t lane = 0; lane < lanes.size(); ++lane)
        name("thread_name", process, stream_thread(stream.second, lane),
             lane_name(fmt::format("stream {}", stream.second), lane));
    }
  }

  static int stream_thread(uint32_t stream, size_t lane) {
    return static_cast<int>(stream * kMostLanes + lane) + 1;
  }

  void write_activity(const DeviceActivity& a, const std::string& quoted, int thread) {
    ++events_;
    begin_event();
    fmt::format_to(out(),
                   R"({{"ph":"X","name":{},"cat":"gpu","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},)"
                   R"("args":{{"correlation":{})",
                   quoted, kGpuProcess + a.device, thread, at(a.start),
                   static_cast<double>(a.end - a.start) * 1e-3, a.correlation);
    if (a.step >= 0) fmt::format_to(out(), ",\"step\":{}", a.step);
    if (a.bytes > 0) fmt::format_to(out(), ",\"bytes\":{}", a.bytes);
    text_ += "}}";
  }

  const TraceInput& input_;
  std::FILE* file_;
  std::string text_;
  Lanes steps_;
  uint64_t events_ = 0;
  bool first_ = true, ok_ = true;
};

Error unwritable(const fs::path& file, int error) {
  return make_error(ErrorCode::kConfig, "the profile cannot be written to {}: {}", file.string(),
                    std::generic_category().message(error));
}

}  // namespace

Result<uint64_t> write_trace(const TraceInput& input, const fs::path& file) {
  std::error_code error;
  if (file.has_parent_path()) fs::create_directories(file.parent_path(), error);
  if (error) return unwritable(file, error.value());
  fs::path partial = file;
  partial += fmt::format(".{}.partial", getpid());
  struct Close {
    void operator()(std::FILE* f) const { std::fclose(f); }
  };
  errno = 0;
  std::unique_ptr<std::FILE, Close> out(std::fopen(partial.c_str(), "we"));
  if (out == nullptr) return unwritable(file, errno);
  Writer writer(input, out.get());
  bool whole = writer.write();
  whole = std::fflush(out.get()) == 0 && whole;
  int why = errno;
  whole = std::fclose(out.release()) == 0 && whole;
  if (whole && std::rename(partial.c_str(), file.c_str()) == 0) return writer.events();
  if (whole) why = errno;
  fs::remove(partial, error);
  return unwritable(file, why);
}

}  // namespace deepinfer
