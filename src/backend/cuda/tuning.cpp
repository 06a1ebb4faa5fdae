#include "backend/cuda/tuning.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <sstream>
#include <string_view>
#include <system_error>

#include "base/check.h"
#include "base/log.h"
#include "base/paths.h"

namespace deepinfer::cuda {
namespace {

constexpr const char* kFormat = "deepinfer cublaslt 1";
constexpr size_t kMostEntries = 100'000;

// FNV-1a: the bits are handed to the library as they stand, so they must be those that were written.
uint64_t checksum(std::string_view text) {
  uint64_t h = 0xcbf29ce484222325;
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return h;
}

std::string last_line(std::string_view text) {
  return fmt::format("end {:016x}", checksum(text));
}

bool parse_line(const std::string& line, TuningKey& key, Tuned& value) {
  std::istringstream in(line);
  in >> key.n >> key.k >> key.m >> key.in >> key.out >> key.add >> value.microseconds >> std::hex;
  for (uint64_t& word : value.algo) in >> word;
  std::string rest;
  return !in.fail() && !(in >> rest) && key.n > 0 && key.k > 0 && key.m > 0;
}

}  // namespace

int64_t tuning_bucket(int64_t m) {
  // Between powers of two one step halfway: a tile count that fits one is a poor fit for the other.
  int64_t end = 16;
  while (end < m) {
    if (end + end / 2 >= m && end >= 32) return end + end / 2;
    end *= 2;
  }
  return std::min<int64_t>(end, 16384);
}

std::filesystem::path tuning_path(const std::string& subject) {
  std::string name;
  for (const char c : subject)
    name += std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '-' ? c : '_';
  return cache_dir() / "tuning" / ("cublaslt-" + name + ".txt");
}

TuningFile::TuningFile(std::filesystem::path path, std::string subject)
    : path_(std::move(path)), subject_(std::move(subject)) {
  read();
}

void TuningFile::read() {
  std::ifstream in(path_);
  if (!in) return;
  std::string line;
  if (!std::getline(in, line) || line != kFormat || !std::getline(in, line) || line != subject_) {
    log::debug("{}: made for something else, tuned again", path_.string());
    return;
  }
  std::map<TuningKey, Tuned> entries;
  std::string text;
  while (std::getline(in, line) && entries.size() < kMostEntries) {
    TuningKey key;
    Tuned value;
    if (!parse_line(line, key, value)) break;
    entries[key] = value;
    text += line + '\n';
  }
  if (line != last_line(text)) {
    log::warn("{}: broken, tuned again", path_.string());
    return;
  }
  entries_ = std::move(entries);
}

void TuningFile::put(const TuningKey& key, const Tuned& value) {
  entries_[key] = value;
  changed_ = true;
}

void TuningFile::erase(const TuningKey& key) {
  changed_ |= entries_.erase(key) > 0;
}

Result<void> TuningFile::save() {
  if (!changed_ || path_.empty()) return {};
  std::error_code error;
  std::filesystem::create_directories(path_.parent_path(), error);
  const std::filesystem::path draft = path_.string() + fmt::format(".{}", getpid());
  std::string text;
  for (const auto& [key, value] : entries_) {
    text += fmt::format("{} {} {} {} {} {} {:.2f}", key.n, key.k, key.m, key.in, key.out, key.add,
                        value.microseconds);
    for (const uint64_t word : value.algo) text += fmt::format(" {:x}", word);
    text += '\n';
  }
  std::ofstream out(draft, std::ios::trunc);
  out << kFormat << '\n' << subject_ << '\n' << text << last_line(text) << '\n';
  out.close();
  if (out) std::filesystem::rename(draft, path_, error);
  if (!out || error) {
    std::error_code ignored;
    std::filesystem::remove(draft, ignored);
    return make_error(ErrorCode::kUnavailable, "{}: cannot be written ({}): tuning starts anew next time",
                      path_.string(), error ? error.message() : "no space, or no permission");
  }
  changed_ = false;
  return {};
}

}  // namespace deepinfer::cuda
