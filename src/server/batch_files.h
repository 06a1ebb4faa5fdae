// The files of a batch (docs/BATCH.md): a request a line in, a result a line out, and which of them are
// done.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "deepinfer/result.h"

namespace deepinfer::server {

// A file's descriptor; closes it.
class FileHandle {
 public:
  FileHandle() = default;
  explicit FileHandle(int fd) : fd_(fd) {}
  FileHandle(FileHandle&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileHandle& operator=(FileHandle&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileHandle();
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

// Lines of a regular file, of which one at a time is in memory. What is added to the file after open() is not
// read.
class LineReader {
 public:
  struct Line {
    int64_t number = 0;     // from 1
    std::string text;       // without its end, also "\r\n"
    int64_t bytes = 0;      // with its end
    bool ended = false;     // false: the file's last line lacks its end
    bool too_long = false;  // longer than `max_line`; text is empty
  };

  // kNotFound, kConfig for what is no regular file.
  static Result<LineReader> open(const std::filesystem::path& path, size_t max_line);

  Result<std::optional<Line>> next();
  void rewind();
  const std::filesystem::path& path() const { return path_; }
  int fd() const { return file_.get(); }

 private:
  Result<bool> fill();

  std::filesystem::path path_;
  FileHandle file_;
  size_t max_line_ = 0;
  int64_t size_ = 0;      // when opened
  int64_t position_ = 0;  // in the file, of the buffer's end
  int64_t number_ = 0;
  std::string buffer_;
  size_t at_ = 0;
};

// A file that grows by whole lines. Locked: no other process writes results to it meanwhile.
class ResultFile {
 public:
  // Creates it where it is missing. kConfig for what is no regular file, and while another process has it.
  static Result<ResultFile> open(const std::filesystem::path& path);

  // The line with its end, or nothing of it. kUnavailable: the disk is full, or worse.
  Result<void> append(std::string_view line);
  Result<void> cut(int64_t size);
  void sync();  // onto the disk
  int64_t size() const { return size_; }
  const std::filesystem::path& path() const { return path_; }
  int fd() const { return file_.get(); }

 private:
  std::filesystem::path path_;
  FileHandle file_;
  int64_t size_ = 0;
};

struct BatchPaths {
  std::filesystem::path input, output, errors;
};

// What is to do. Takes a bit for each line of the input, and 24 bytes for each request while it is made.
struct BatchPlan {
  int64_t requests = 0;       // lines that are not empty
  int64_t done = 0;           // of them, with a result in the output
  std::vector<bool> skipped;  // by line number: done, or empty
};

struct BatchFiles {
  LineReader input;
  ResultFile output, errors;
  BatchPlan plan;
};

// Every line of a result begins so.
inline constexpr std::string_view kResultStart = R"({"id":"batch_req_)";

// Opens all, reads input and output once, drops the output's last line if it is torn, and empties the errors:
// what failed before is run again. `max_line`: bytes of one request. kConfig: a custom_id that stands in the
// input twice, an output that holds something else than this batch's results.
Result<BatchFiles> open_batch(const BatchPaths& paths, size_t max_line);

}  // namespace deepinfer::server
