#include "base/check.h"

#include "deepinfer/version.h"

namespace deepinfer {

const char* version() {
  return DEEPINFER_VERSION;
}

namespace detail {

void check_failed(const char* condition, const char* file, int line, std::string message) {
  throw InternalError(fmt::format("{} ({} at {}:{})", message, condition, file, line));
}

}  // namespace detail
}  // namespace deepinfer
