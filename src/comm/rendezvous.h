// How the ranks of several processes or machines find each other: all of them connect to rank 0, prove that
// they know the group's token, compare what they are about to run, and connect to each other.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "comm/socket.h"
#include "deepinfer/result.h"

namespace deepinfer {

struct RendezvousOptions {
  int rank = 0, size = 1;
  std::string address = "127.0.0.1";  // of rank 0, which listens there and nowhere else
  uint16_t port = 0;
  std::string token;  // the same secret on all ranks, at least kLeastTokenBytes

  // What must be the same on all ranks (build, settings, weights): names and values, as messages show them.
  std::vector<std::pair<std::string, std::string>> facts;

  std::string handout;  // of rank 0, for all: NCCL's id
  std::chrono::milliseconds timeout = std::chrono::seconds(60);
  std::function<void(uint16_t port)> on_listening;  // rank 0, once it can be reached; may be empty

  static constexpr size_t kLeastTokenBytes = 16;
};

// A connection to every other rank, authenticated; link[rank] is empty.
struct Mesh {
  int rank = 0, size = 1;
  std::vector<comm::Link> links;
  std::string handout;
};

// Blocks until all ranks are there. Ranks may come in any order. The traffic is authenticated, not encrypted:
// between machines it belongs on a network of their own. Errors: kConfig (a setting, or what differs between
// ranks), kAddressInUse, kTimeout (who did not come), kUnavailable (who left).
Result<Mesh> meet(const RendezvousOptions& options);

}  // namespace deepinfer
