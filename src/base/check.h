// Errors: make_error for expected failures, DI_TRY to pass them on, DI_CHECK for broken invariants (throws,
// never aborts).
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

#include "deepinfer/result.h"

namespace deepinfer {

// A broken invariant. Caught at the engine loop, the HTTP handler and the edge of the program.
class InternalError : public std::logic_error {
  using std::logic_error::logic_error;
};

template <class... Args>
Error make_error(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  return Error{code, fmt::format(format, std::forward<Args>(args)...), {}};
}

namespace detail {
[[noreturn]] void check_failed(const char* condition, const char* file, int line, std::string message);
}  // namespace detail

}  // namespace deepinfer

// DI_CHECK(a == b, "a {} b {}", a, b)
#define DI_CHECK(condition, ...)                                                                     \
  do {                                                                                               \
    if (!(condition)) [[unlikely]]                                                                   \
      ::deepinfer::detail::check_failed(#condition, __FILE__, __LINE__, ::fmt::format(__VA_ARGS__)); \
  } while (false)

#define DI_CONCAT_(a, b) a##b
#define DI_CONCAT(a, b) DI_CONCAT_(a, b)
// DI_TRY(call());             returns the error of call() if it failed
// DI_ASSIGN(auto x, call());  the same, else x is its value
#define DI_TRY(expression)                                                              \
  do {                                                                                  \
    if (auto di_result = (expression); !di_result) return std::move(di_result).error(); \
  } while (false)
#define DI_ASSIGN(declaration, ...) DI_ASSIGN_(DI_CONCAT(di_result_, __LINE__), declaration, __VA_ARGS__)
#define DI_ASSIGN_(result, declaration, ...)     \
  auto result = (__VA_ARGS__);                   \
  if (!result) return std::move(result).error(); \
  declaration = std::move(result).value()
