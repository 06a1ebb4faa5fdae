// What a span is of: the names that traces, NVTX ranges and the summary share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace deepinfer {

enum class Phase : uint8_t {
  // The engine's thread. kLoop holds those up to kDeliver, kForward and kSampling hold the operations.
  kLoop,      // one round of the loop
  kIdle,      // asleep: nothing to do
  kRequests,  // new requests, cancellations, deadlines
  kSchedule,
  kForward,
  kSampling,
  kWait,  // for the device
  kCommit,
  kDeliver,  // of tokens to those who asked
  // Operations; on a GPU the time that their launch takes.
  kEmbed,
  kRope,
  kQkv,
  kAttention,
  kProject,
  kGateUp,
  kHead,
  kSample,
  kScore,
  kCopyBlocks,
  // The server's threads.
  kTokenize,  // a request's JSON, its chat template and its tokens
  kDetokenize,
  kStep,      // from launch to commit; several may overlap, so they stand in lanes of their own
  kCounters,  // no span: sequences that run and wait, free blocks
};
inline constexpr size_t kPhases = 23;

struct PhaseInfo {
  const char* name;
  const char* category;             // "engine", "model", "server"
  std::array<const char*, 3> args;  // names of the numbers of a span; null: it has none there
};

const PhaseInfo& info(Phase phase);

}  // namespace deepinfer
