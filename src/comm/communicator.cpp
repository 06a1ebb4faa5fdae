#include "comm/communicator.h"

#include <fmt/format.h>

#include <utility>

namespace deepinfer {

CommError::CommError(int rank, int size, std::string call, std::string reason)
    : std::runtime_error(fmt::format("rank {} of {}: {}: {}", rank, size, call, reason)),
      rank_(rank),
      call_(std::move(call)),
      reason_(std::move(reason)) {}

}  // namespace deepinfer
