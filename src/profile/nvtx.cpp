#include "profile/nvtx.h"

#include <nvtx3/nvToolsExt.h>

#include <array>
#include <cstdlib>

namespace deepinfer::nvtx {
namespace {

// A domain of our own, in which each name is registered once: a push then copies no text. Registered when the
// first range is pushed, so that a process to which nobody listens never loads anything.
struct Names {
  Names() : domain(nvtxDomainCreateA("deepinfer")) {
    for (size_t i = 0; i < kPhases; ++i)
      handles[i] = nvtxDomainRegisterStringA(domain, info(static_cast<Phase>(i)).name);
  }
  nvtxDomainHandle_t domain;
  std::array<nvtxStringHandle_t, kPhases> handles{};
};

const Names& names() {
  static const Names kNames;
  return kNames;
}

}  // namespace

bool listened() {
  const char* library = std::getenv("NVTX_INJECTION64_PATH");
  return library != nullptr && *library != '\0';
}

void push(Phase phase) {
  const Names& all = names();
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
  attributes.message.registered = all.handles[static_cast<size_t>(phase)];
  nvtxDomainRangePushEx(all.domain, &attributes);
}

void pop() {
  nvtxDomainRangePop(names().domain);
}

}  // namespace deepinfer::nvtx
