// Ranks that are processes, on one machine or several, through Gloo's TCP transport.
#pragma once

#include <chrono>
#include <memory>

#include "comm/communicator.h"
#include "comm/rendezvous.h"
#include "deepinfer/result.h"

namespace deepinfer {

// Whether this build has Gloo.
bool has_gloo();

// Every rank of the mesh calls it with its own. Gloo's connections are made beside those of the mesh and
// compared over them: what a stranger has connected to in a peer's place is refused. The mesh's own
// connections then carry abort() and the news of a rank that is gone. kUnsupported without Gloo.
//
// Gloo does not authenticate what follows, and its frames are plain: the ranks belong on a network of their
// own.
//
// A call that waits longer than `timeout` for a peer ends the group. The destructor waits up to two seconds
// for peers that have not finished theirs.
Result<std::unique_ptr<Communicator>> gloo_communicator(Mesh mesh, std::chrono::milliseconds timeout);

}  // namespace deepinfer
