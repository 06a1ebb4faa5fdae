// Gloo's connections between the ranks of a mesh. Only the files gloo*.cpp see Gloo's headers.
#pragma once

#include <gloo/transport/context.h>

#include <chrono>
#include <memory>

#include "comm/rendezvous.h"
#include "deepinfer/result.h"

namespace deepinfer::comm {

// Connected pairs to all other ranks, each known to lead to that rank's process.
Result<std::shared_ptr<::gloo::transport::Context>> connect_gloo(Mesh& mesh,
                                                                 std::chrono::milliseconds timeout);

}  // namespace deepinfer::comm
