// Some ranks of a group as a group of their own.
#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"

namespace deepinfer {

// `ranks` of `world`, ascending, of which this rank is one; every one of them calls it with the same. It
// talks through world's messages and does not own it: world outlives it, is used by the same thread, and ends
// with it when one of its calls fails. Between two of its ranks, world's other messages must keep their order
// among these calls. abort() ends the whole of world.
std::unique_ptr<Communicator> subgroup(Communicator& world, std::vector<int> ranks);

}  // namespace deepinfer
