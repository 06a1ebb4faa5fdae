// Expected failures as values: bad input, files, configuration, capacity. Broken invariants throw instead
// (base/check.h).
#pragma once

#include <cassert>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>

namespace deepinfer {

// What kind of failure it is: the server chooses the HTTP status and the program its exit code from it.
enum class ErrorCode : uint8_t {
  kInvalidArgument,  // a parameter of a request or call                       400
  kContextLength,    // prompt longer than the context                         400 context_length_exceeded
  kUnsupported,      // understood, but not built                              400 unsupported_parameter
  kNotFound,         // unknown model name, unknown file                       404
  kQueueFull,        //                                                        429
  kUnavailable,      // loading or draining                                    503
  kQueueTimeout,     // waited longer than server.queue_timeout                503 queue_timeout
  kTimeout,          // longer than server.timeout in all                      504
  kCancelled,        // by its client                                          499
  kConfig,           // settings and usage                                     exit 2
  kModel,            // a model file or folder                                 exit 3
  kMemory,           // device or memory                                       exit 4, 503 while serving
  kAddressInUse,     //                                                        exit 5
  kInternal,         // a fault of ours                                        500
};

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;  // what, where, got, expected, what to do
  std::string param;    // the name of the parameter at fault, or empty
};

// A value or an Error. Reading the value of an error is a programming fault.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : v_(std::in_place_index<0>, std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Result(Error error)
      : v_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return v_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & {
    assert(ok());
    return *std::get_if<0>(&v_);
  }
  const T& value() const& {
    assert(ok());
    return *std::get_if<0>(&v_);
  }
  T&& value() && {
    assert(ok());
    return std::move(*std::get_if<0>(&v_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const& {
    assert(!ok());
    return *std::get_if<1>(&v_);
  }
  Error&& error() && {
    assert(!ok());
    return std::move(*std::get_if<1>(&v_));
  }

 private:
  std::variant<T, Error> v_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), ok_(false) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return ok_; }
  explicit operator bool() const { return ok_; }
  const Error& error() const& {
    assert(!ok_);
    return error_;
  }
  Error&& error() && {
    assert(!ok_);
    return std::move(error_);
  }

 private:
  Error error_;
  bool ok_ = true;
};

}  // namespace deepinfer
