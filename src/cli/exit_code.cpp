#include "cli/exit_code.h"

#include <cstdio>

namespace deepinfer {

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kConfig:
    case ErrorCode::kInvalidArgument:
      return 2;
    case ErrorCode::kModel:
    case ErrorCode::kNotFound:
      return 3;
    case ErrorCode::kMemory:
      return 4;
    case ErrorCode::kAddressInUse:
      return 5;
    default:
      return 1;
  }
}

int report(const Error& error) {
  std::fprintf(stderr, "deepinfer: %s\n", error.message.c_str());
  return exit_code(error.code);
}

}  // namespace deepinfer
