#include "profile/nvtx.h"

namespace deepinfer::nvtx {

bool listened() {
  return false;
}

void push(Phase) {}

void pop() {}

}  // namespace deepinfer::nvtx
