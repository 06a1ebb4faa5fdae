// Errors of the engine as exceptions of Python. The GIL is held.
#pragma once

#include <utility>

#include "deepinfer/result.h"

namespace deepinfer::python {

const char* code_name(ErrorCode code);

// As one of the classes in errors.py.
[[noreturn]] void raise(const Error& error);

template <class T>
T unwrap(Result<T> result) {
  if (!result) raise(result.error());
  return std::move(*result);
}
inline void unwrap(const Result<void>& result) {
  if (!result) raise(result.error());
}

}  // namespace deepinfer::python
