// Algorithms found best by timing them, kept in <cache>/tuning: a text file for each card, driver and library
// version. A file that cannot be read or was made for something else counts as empty.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "deepinfer/result.h"

namespace deepinfer::cuda {

struct TuningKey {
  int64_t n = 0, k = 0, m = 0;  // m: the bucket's upper end
  int in = 0, out = 0;          // DType
  int add = 0;
  auto operator<=>(const TuningKey&) const = default;
};

// cublasLtMatmulAlgo_t as it stands in memory: valid for one library version.
using AlgoBits = std::array<uint64_t, 8>;

struct Tuned {
  AlgoBits algo{};
  float microseconds = 0;
};

// The end of the bucket of m tokens: shapes up to it share an algorithm.
int64_t tuning_bucket(int64_t m);

class TuningFile {
 public:
  TuningFile() = default;
  // `subject` names card, driver and library version.
  TuningFile(std::filesystem::path path, std::string subject);

  const std::map<TuningKey, Tuned>& entries() const { return entries_; }
  void put(const TuningKey& key, const Tuned& value);
  void erase(const TuningKey& key);
  // Replaces the file as a whole, if something changed. An error says what the system refused.
  Result<void> save();

 private:
  void read();

  std::filesystem::path path_;
  std::string subject_;
  std::map<TuningKey, Tuned> entries_;
  bool changed_ = false;
};

// <cache>/tuning/cublaslt-<subject>.txt with the subject's awkward characters replaced.
std::filesystem::path tuning_path(const std::string& subject);

}  // namespace deepinfer::cuda
