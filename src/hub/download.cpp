#include "hub/download.h"

#include <algorithm>
#include <thread>

#include "base/check.h"

namespace deepinfer::hub {
namespace {

// Bytes after which a piece has made progress: the count of tries begins again.
constexpr uint64_t kProgress = 1 << 20;

// What a person can do about an error that several tries did not help.
Error gave_up(const Error& error, int attempts) {
  return make_error(error.code, "{}; gave up after {} tries: pull again, it goes on where it stopped",
                    error.message, attempts);
}

Error cancelled() {
  return make_error(ErrorCode::kCancelled, "stopped");
}

}  // namespace

Result<void> Download::run(std::vector<HttpClient*> clients) {
  const uint64_t size = source_.file().size;
  const uint64_t rest = size - writer_.size();
  if (rest == 0) return {};
  const bool whole = writer_.size() == 0 && rest <= hub_.settings().piece_bytes;
  if (!whole) {
    next_ = writer_.size();
    const uint64_t pieces = (rest - 1) / hub_.settings().piece_bytes + 1;
    clients.resize(std::min<uint64_t>(clients.size(), pieces));
    most_pieces_ = 2 * clients.size();
    std::vector<std::thread> threads;
    for (size_t i = 1; i < clients.size(); ++i)
      threads.emplace_back([this, http = clients[i]] { work(*http); });
    work(*clients[0]);
    for (std::thread& t : threads) t.join();
    for (const auto& [begin, piece] : pieces_) progress_.lost(piece.waiting.size());
    if (error_) return *error_;
  }
  return whole || range_ignored_ ? run_whole(*clients[0]) : Result<void>();
}

void Download::fail(Error error) {
  if (!error_) error_ = std::move(error);
  hub_.abandon();
  changed_.notify_all();
}

void Download::work(HttpClient& http) {
  while (const std::optional<uint64_t> piece = next_piece()) fetch_piece(http, *piece);
}

std::optional<uint64_t> Download::next_piece() {
  std::unique_lock lock(mutex_);
  const uint64_t size = source_.file().size;
  changed_.wait(lock, [&] { return ended() || next_ >= size || pieces_.size() < most_pieces_; });
  if (ended() || next_ >= size) return std::nullopt;
  const uint64_t begin = next_;
  next_ = std::min(size, begin + hub_.settings().piece_bytes);
  pieces_.emplace(begin, Piece{next_, begin, {}});
  return begin;
}

void Download::Tries::at(uint64_t position) {
  if (position - counted < kProgress) return;
  counted = position;
  count = 1;
}

void Download::fetch_piece(HttpClient& http, uint64_t piece) {
  Tries tries{.count = 1, .counted = piece};
  for (;; ++tries.count) {
    Range range;
    {
      std::lock_guard lock(mutex_);
      const auto it = pieces_.find(piece);
      if (it == pieces_.end() || it->second.position == it->second.end) return;
      range = {it->second.position, it->second.end};
    }
    Fetched fetched =
        hub_.fetch(http, source_, range, [&](std::string_view bytes) { return take(piece, bytes); });
    if (!next_try(piece, std::move(fetched), tries)) return;
  }
}

// False: the piece is complete, or the download has ended.
bool Download::next_try(uint64_t piece, Fetched fetched, Tries& tries) {
  std::unique_lock lock(mutex_);
  if (ended()) return false;
  const auto it = pieces_.find(piece);
  if (it == pieces_.end() || it->second.position == it->second.end) return false;
  if (hub_.stopped()) {
    fail(cancelled());
  } else if (fetched.end == Fetched::End::kFatal) {
    fail(std::move(fetched.error));
  } else if (fetched.end == Fetched::End::kRangeIgnored) {
    range_ignored_ = true;
    changed_.notify_all();
  } else {
    tries.at(it->second.position);
    if (tries.count >= hub_.settings().attempts)
      fail(gave_up(reason(fetched, it->second.position), tries.count));
  }
  if (ended()) return false;
  lock.unlock();
  if (hub_.wait(tries.count, fetched.wait)) return true;
  lock.lock();
  fail(cancelled());
  return false;
}

Error Download::reason(const Fetched& fetched, uint64_t position) const {
  if (fetched.end == Fetched::End::kRetry) return fetched.error;
  return make_error(ErrorCode::kModel, "{}: {}: the answer ends at byte {} of {}", source_.repo(),
                    source_.file().name, position, source_.file().size);
}

bool Download::take(uint64_t piece, std::string_view bytes) {
  std::lock_guard lock(mutex_);
  if (ended()) return false;
  const auto it = pieces_.find(piece);
  DI_CHECK(it != pieces_.end(), "bytes for the piece at {}, which is complete", piece);
  progress_.came(bytes.size());
  it->second.waiting += bytes;
  it->second.position += bytes.size();
  return write_ready();
}

bool Download::write_ready() {
  while (!pieces_.empty()) {
    Piece& first = pieces_.begin()->second;
    if (Result<void> written = writer_.append(first.waiting); !written) {
      fail(std::move(written).error());
      return false;
    }
    first.waiting.clear();
    if (first.position != first.end) break;
    pieces_.erase(pieces_.begin());
    changed_.notify_all();
  }
  return true;
}

// One connection, from the first byte on: what is there already is passed over.
Result<void> Download::run_whole(HttpClient& http) {
  Tries tries{.count = 1, .counted = writer_.size()};
  const uint64_t size = source_.file().size;
  for (;; ++tries.count) {
    uint64_t over = writer_.size();
    Result<void> written;
    const Fetched fetched = hub_.fetch(http, source_, std::nullopt, [&](std::string_view bytes) {
      const uint64_t passed = std::min<uint64_t>(over, bytes.size());
      over -= passed;
      bytes.remove_prefix(passed);
      progress_.came(bytes.size());
      written = writer_.append(bytes);
      return written.ok();
    });
    if (!written) return written;
    if (writer_.size() == size) return {};
    if (hub_.stopped()) return cancelled();
    if (fetched.end == Fetched::End::kFatal) return fetched.error;
    tries.at(writer_.size());
    if (tries.count >= hub_.settings().attempts) return gave_up(reason(fetched, writer_.size()), tries.count);
    if (!hub_.wait(tries.count, fetched.wait)) return cancelled();
  }
}

}  // namespace deepinfer::hub
