#include "base/check.h"
#include "comm/gloo.h"

namespace deepinfer {

bool has_gloo() {
  return false;
}

Result<std::unique_ptr<Communicator>> gloo_communicator(Mesh, std::chrono::milliseconds) {
  return make_error(
      ErrorCode::kUnsupported,
      "ranks on several machines: this build has no Gloo. Install libgloo-dev and build again.");
}

}  // namespace deepinfer
