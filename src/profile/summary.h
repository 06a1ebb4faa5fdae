// Where the time of a profile went, and what to change.
#pragma once

#include <array>
#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "profile/kernel_kind.h"
#include "profile/phase.h"

namespace deepinfer {

// Of the engine, for the advice.
struct ProfileFacts {
  std::string device;  // for people
  bool gpu = false;
  int max_num_seqs = 0;
  int64_t blocks = 0;
  std::string kv_dtype;
  bool quantized = false;
  bool graphs = false;  // of a GPU: not enforce_eager
};

struct PhaseTotals {
  int64_t count = 0;
  int64_t nanoseconds = 0;
  std::array<int64_t, 3> args{};  // their sums
};

// What a GPU was busy with, of kernels that overlap each moment once.
struct DeviceTotals {
  std::array<int64_t, kWorks> nanoseconds{};
  int64_t busy() const;
};

struct ProfileData {
  double seconds = 0;  // from start to stop
  std::array<PhaseTotals, kPhases> phases{};
  std::optional<DeviceTotals> device;
  std::string device_problem;  // why there is none, on a GPU
};

struct ProfileShare {
  std::string name;  // "attention"
  double seconds = 0;
  double percent = 0;  // of the whole time
};

struct ProfileSummary {
  double seconds = 0;
  int64_t steps = 0, tokens = 0;
  double rows = 0;                   // of a step
  std::vector<ProfileShare> shares;  // together the whole time
  std::vector<ProfileShare> parts;   // of the matrix products: qkv, project, gate_up, head
  std::vector<std::string> advice;   // one sentence each, at least one
  std::string note;                  // what could not be seen; empty: nothing

  double percent(const std::string& name) const;  // of a share; 0: there is none
};

// Exact however many events found no room: totals are kept beside them.
ProfileSummary summarize(const ProfileData& data, const ProfileFacts& facts);

// A table and the advice, several lines.
std::string to_text(const ProfileSummary& summary);
boost::json::object to_json(const ProfileSummary& summary);

}  // namespace deepinfer
