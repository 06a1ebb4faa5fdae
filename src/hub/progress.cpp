#include "hub/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "hub/model_ref.h"

namespace deepinfer::hub {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kRedraw{200};
constexpr milliseconds kLine{5000};

std::string time_text(double seconds) {
  const auto s = static_cast<uint64_t>(std::min(seconds, 359999.0));
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

int columns(std::FILE* out) {
  winsize size{};
  return ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string progress_text(const std::string& what, const ProgressState& s, int bar_width) {
  const double part = s.total == 0 ? 1.0 : static_cast<double>(s.done) / static_cast<double>(s.total);
  std::string out = what + ": ";
  if (bar_width > 0) {
    const int full = std::clamp(static_cast<int>(part * bar_width), 0, bar_width);
    out += "[" + std::string(full, '#') + std::string(bar_width - full, '.') + "] ";
  }
  out += fmt::format("{:.0f}% of {}", std::floor(100 * std::min(part, 1.0)), size_text(s.total));
  if (s.bytes_per_second >= 1 && s.done < s.total)
    out += fmt::format(", {}/s, {} left", size_text(static_cast<uint64_t>(s.bytes_per_second)),
                       time_text(static_cast<double>(s.total - s.done) / s.bytes_per_second));
  if (s.files > 1) out += fmt::format(", {} of {} files", s.files_done, s.files);
  return out;
}

Progress::Progress(std::FILE* out, std::string what)
    : out_(out), terminal_(out != nullptr && isatty(fileno(out)) != 0), what_(std::move(what)) {
  if (out_ != nullptr) thread_ = std::thread([this] { loop(); });
}

Progress::~Progress() {
  if (out_ == nullptr) return;
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Progress::loop() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, terminal_ ? kRedraw : kLine, [this] { return ended_; })) draw(false);
  if (drawn_) draw(true);
}

void Progress::draw(bool last) {
  if (total_ == 0) return;
  const std::chrono::duration<double> time = Clock::now() - start_;
  const ProgressState state{
      .files = files_,
      .files_done = files_done_,
      .total = total_,
      .done = std::min(done_, total_),
      .bytes_per_second = time.count() < 0.5 ? 0.0 : static_cast<double>(came_) / time.count()};
  drawn_ = true;
  if (!terminal_) {
    std::fprintf(out_, "%s\n", progress_text(what_, state, 0).c_str());
    return;
  }
  const size_t width = static_cast<size_t>(std::max(columns(out_) - 1, 20));
  std::string text = progress_text(what_, state, 24);
  if (text.size() > width) text = progress_text(what_, state, 0);
  text.resize(width, ' ');
  std::fprintf(out_, "\r%s%s", text.c_str(), last ? "\n" : "");
  std::fflush(out_);
}

void Progress::print_line(const std::string& text) {
  if (terminal_ && drawn_) std::fprintf(out_, "\r%*s\r", std::max(columns(out_) - 1, 20), "");
  std::fprintf(out_, "%s\n", text.c_str());
  std::fflush(out_);
}

void Progress::expect(uint64_t files, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  files_ += files;
  total_ += bytes;
}

void Progress::had(uint64_t bytes) {
  std::lock_guard lock(mutex_);
  done_ += bytes;
}

void Progress::came(uint64_t bytes) {
  std::lock_guard lock(mutex_);
  if (came_ == 0) start_ = Clock::now();
  done_ += bytes;
  came_ += bytes;
}

void Progress::lost(uint64_t bytes) {
  std::lock_guard lock(mutex_);
  done_ -= std::min(bytes, done_);
}

void Progress::finished_file(const std::string& name, uint64_t size) {
  std::lock_guard lock(mutex_);
  ++files_done_;
  if (out_ != nullptr) print_line(fmt::format("  {}  {}", name, size_text(size)));
}

void Progress::note(const std::string& text) {
  std::lock_guard lock(mutex_);
  if (out_ != nullptr) print_line(text);
}

}  // namespace deepinfer::hub
