#include "server/batch_files.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/json/object.hpp>
#include <cerrno>
#include <compare>
#include <cstring>
#include <system_error>

#include "base/check.h"
#include "server/openai.h"

namespace deepinfer::server {

namespace fs = std::filesystem;

namespace {

constexpr size_t kBuffer = 256 << 10;
constexpr size_t kMaxResult = 1 << 30;  // bytes of a line of results: an answer with all its scores
constexpr size_t kMaxNamed = 8;         // duplicates that a message lists

std::string why(int code) {
  return std::generic_category().message(code);
}

Error file_error(ErrorCode code, const fs::path& path, const char* verb) {
  return make_error(code, "{}: cannot {}: {}", path.string(), verb, why(errno));
}

Result<struct stat> regular_file(const fs::path& path, int fd) {
  struct stat info{};
  if (fstat(fd, &info) != 0) return file_error(ErrorCode::kConfig, path, "look at it");
  if (!S_ISREG(info.st_mode))
    return make_error(ErrorCode::kConfig,
                      "{}: is no regular file, which a batch needs: it is read twice, or gone on with later",
                      path.string());
  return info;
}

// Of a custom_id. 128 bits of SHA-256: equal ones are equal ids.
using Key = std::array<unsigned char, 16>;

struct KeyLine {
  Key key{};
  int64_t line = 0;
  auto operator<=>(const KeyLine&) const = default;
};

Key key_of(std::string_view id) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> hash{};
  SHA256(reinterpret_cast<const unsigned char*>(id.data()), id.size(), hash.data());
  Key key{};
  std::copy_n(hash.begin(), key.size(), key.begin());
  return key;
}

std::optional<std::string> custom_id(const std::string& line) {
  const auto object = parse_body(line);
  if (!object) return {};
  const boost::json::value* id = object->if_contains("custom_id");
  if (!id || !id->is_string()) return {};
  return std::string(id->get_string());
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t") == std::string_view::npos;
}

bool begins_like_a_result(std::string_view text) {
  return text.substr(0, kResultStart.size()) == kResultStart.substr(0, text.size());
}

// The ids of the results that are whole. A torn last line is cut off.
Result<std::vector<KeyLine>> read_results(ResultFile& output) {
  DI_ASSIGN(LineReader reader, LineReader::open(output.path(), kMaxResult));
  std::vector<KeyLine> keys;
  int64_t whole = 0;
  for (;;) {
    DI_ASSIGN(const std::optional<LineReader::Line> line, reader.next());
    if (!line) return keys;
    if (!line->ended && begins_like_a_result(line->text)) {
      DI_TRY(output.cut(whole));
      return keys;
    }
    const auto id = custom_id(line->text);
    if (!id || !line->ended)
      return make_error(
          ErrorCode::kConfig,
          "{}:{}: is no line of a batch's results: give another output file, or remove this one",
          output.path().string(), line->number);
    whole += line->bytes;
    keys.push_back({key_of(*id), line->number});
  }
}

// Sorted.
Result<std::vector<KeyLine>> read_requests(LineReader& input, BatchPlan& plan) {
  std::vector<KeyLine> keys;
  plan.skipped.push_back(true);  // there is no line 0
  for (;;) {
    DI_ASSIGN(const std::optional<LineReader::Line> line, input.next());
    if (!line) break;
    const bool blank = is_blank(line->text) && !line->too_long;
    plan.skipped.push_back(blank);
    if (blank) continue;
    ++plan.requests;
    if (const auto id = custom_id(line->text)) keys.push_back({key_of(*id), line->number});
  }
  input.rewind();
  std::sort(keys.begin(), keys.end());
  return keys;
}

Result<void> check_duplicates(const LineReader& input, const std::vector<KeyLine>& keys) {
  std::vector<std::pair<int64_t, int64_t>> twice;
  for (size_t i = 1; i < keys.size(); ++i)
    if (keys[i - 1].key == keys[i].key) twice.emplace_back(keys[i - 1].line, keys[i].line);
  if (twice.empty()) return {};
  std::sort(twice.begin(), twice.end());
  std::string lines;
  for (size_t i = 0; i < std::min(twice.size(), kMaxNamed); ++i)
    lines += fmt::format("{}{} and {}", i ? ", " : "", twice[i].first, twice[i].second);
  if (twice.size() > kMaxNamed) lines += fmt::format(" and {} more", twice.size() - kMaxNamed);
  return make_error(ErrorCode::kConfig,
                    "{}: custom_id has to be another one in each line, but these lines have the same: {}",
                    input.path().string(), lines);
}

Result<void> mark_done(const ResultFile& output, const LineReader& input, const std::vector<KeyLine>& results,
                       const std::vector<KeyLine>& requests, BatchPlan& plan) {
  for (const KeyLine& result : results) {
    const auto at = std::lower_bound(requests.begin(), requests.end(), KeyLine{result.key, 0});
    if (at == requests.end() || at->key != result.key)
      return make_error(
          ErrorCode::kConfig,
          "{}:{}: has a custom_id that {} does not have, so it is another batch's: give another "
          "output file, or remove this one",
          output.path().string(), result.line, input.path().string());
    if (plan.skipped[static_cast<size_t>(at->line)]) continue;
    plan.skipped[static_cast<size_t>(at->line)] = true;
    ++plan.done;
  }
  return {};
}

// It is emptied, so it has to be what an earlier run wrote.
Result<void> empty_errors(ResultFile& errors) {
  std::array<char, kResultStart.size()> start{};
  const ssize_t n = pread(errors.fd(), start.data(), start.size(), 0);
  if (n < 0) return file_error(ErrorCode::kConfig, errors.path(), "read");
  if (!begins_like_a_result({start.data(), static_cast<size_t>(n)}))
    return make_error(ErrorCode::kConfig,
                      "{}: is no file of a batch's errors, and would be overwritten: give another one with "
                      "--errors, or remove it",
                      errors.path().string());
  return errors.cut(0);
}

Result<void> check_different(const BatchPaths& paths) {
  std::error_code missing;  // none: they are not the same
  for (const auto& [a, b] : {std::pair(&paths.input, &paths.output), std::pair(&paths.input, &paths.errors),
                             std::pair(&paths.output, &paths.errors)})
    if (*a == *b || fs::equivalent(*a, *b, missing))
      return make_error(ErrorCode::kConfig,
                        "batch: {} and {} are the same file, expected three for requests, results and errors",
                        a->string(), b->string());
  return {};
}

}  // namespace

FileHandle::~FileHandle() {
  if (fd_ >= 0) ::close(fd_);
}

Result<LineReader> LineReader::open(const fs::path& path, size_t max_line) {
  LineReader reader;
  reader.path_ = path;
  // Not blocking: a pipe without a writer is refused, not waited for.
  reader.file_ = FileHandle(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (reader.fd() < 0) return file_error(ErrorCode::kConfig, path, "open");
  DI_ASSIGN(const struct stat info, regular_file(path, reader.fd()));
  reader.size_ = info.st_size;
  reader.max_line_ = max_line;
  return reader;
}

void LineReader::rewind() {
  position_ = number_ = 0;
  buffer_.clear();
  at_ = 0;
}

// False at the end.
Result<bool> LineReader::fill() {
  buffer_.resize(kBuffer);
  at_ = 0;
  const auto wanted = static_cast<size_t>(std::min<int64_t>(kBuffer, size_ - position_));
  ssize_t n;
  do n = pread(fd(), buffer_.data(), wanted, position_);
  while (n < 0 && errno == EINTR);
  buffer_.resize(n > 0 ? static_cast<size_t>(n) : 0);
  if (n < 0) return file_error(ErrorCode::kUnavailable, path_, "read");
  position_ += n;
  return n > 0;
}

Result<std::optional<LineReader::Line>> LineReader::next() {
  Line line{.number = number_ + 1};
  while (!line.ended) {
    if (at_ == buffer_.size()) {
      DI_ASSIGN(const bool more, fill());
      if (!more) break;
    }
    const std::string_view rest = std::string_view(buffer_).substr(at_);
    const size_t end = rest.find('\n');
    const std::string_view part = rest.substr(0, end);
    line.ended = end != std::string_view::npos;
    at_ += part.size() + (line.ended ? 1 : 0);
    line.bytes += static_cast<int64_t>(part.size()) + (line.ended ? 1 : 0);
    line.too_long = line.too_long || part.size() > max_line_ - line.text.size();
    if (line.too_long)
      line.text = {};
    else
      line.text += part;
  }
  if (line.bytes == 0) return std::optional<Line>();
  number_ = line.number;
  if (line.ended && line.text.ends_with('\r')) line.text.pop_back();
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (line.number == 1 && line.text.starts_with(kByteOrderMark)) line.text.erase(0, kByteOrderMark.size());
  return std::optional(std::move(line));
}

Result<ResultFile> ResultFile::open(const fs::path& path) {
  ResultFile file;
  file.path_ = path;
  file.file_ = FileHandle(::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666));
  if (file.fd() < 0) return file_error(ErrorCode::kConfig, path, "open for writing");
  DI_ASSIGN(const struct stat info, regular_file(path, file.fd()));
  if (flock(file.fd(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK)
      return make_error(ErrorCode::kConfig, "{}: another process writes to it: wait for its end, or end it",
                        path.string());
    return file_error(ErrorCode::kConfig, path, "lock");
  }
  file.size_ = info.st_size;
  return file;
}

Result<void> ResultFile::append(std::string_view line) {
  size_t written = 0;
  while (written < line.size()) {
    const ssize_t n = ::write(fd(), line.data() + written, line.size() - written);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      Error error = file_error(ErrorCode::kUnavailable, path_, "write");
      if (written > 0) DI_TRY(cut(size_));
      return error;
    }
    written += static_cast<size_t>(n);
  }
  size_ += static_cast<int64_t>(line.size());
  return {};
}

Result<void> ResultFile::cut(int64_t size) {
  if (ftruncate(fd(), size) != 0) return file_error(ErrorCode::kUnavailable, path_, "shorten");
  size_ = size;
  return {};
}

void ResultFile::sync() {
  (void)fdatasync(fd());  // a failed one tells of writes, which append() reports
}

Result<BatchFiles> open_batch(const BatchPaths& paths, size_t max_line) {
  BatchFiles files;
  DI_ASSIGN(files.input, LineReader::open(paths.input, max_line));
  DI_ASSIGN(const std::vector<KeyLine> requests, read_requests(files.input, files.plan));
  DI_TRY(check_duplicates(files.input, requests));
  DI_TRY(check_different(paths));
  DI_ASSIGN(files.output, ResultFile::open(paths.output));
  DI_ASSIGN(files.errors, ResultFile::open(paths.errors));
  DI_ASSIGN(const std::vector<KeyLine> results, read_results(files.output));
  DI_TRY(mark_done(files.output, files.input, results, requests, files.plan));
  DI_TRY(empty_errors(files.errors));
  return files;
}

}  // namespace deepinfer::server
