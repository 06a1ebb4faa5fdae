// Reading fields of a JSON object with strict types. `null` is the same as leaving the field out.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "deepinfer/result.h"

namespace deepinfer::server {

// "an integer", "a string", ... and the value itself, shortened, for messages.
std::string_view kind_name(const boost::json::value& value);
std::string shown(const boost::json::value& value);

Error field_error(std::string_view param, std::string_view expected, const boost::json::value& got);
Error unsupported_error(std::string_view param, std::string_view why);

// The fields of `object`; the first fault is kept and everything read after it is empty.
class FieldReader {
 public:
  explicit FieldReader(const boost::json::object& object, std::string prefix = {})
      : object_(object), prefix_(std::move(prefix)) {}

  const boost::json::value* find(std::string_view name) const;  // null: absent or null
  std::optional<bool> boolean(std::string_view name);
  std::optional<int64_t> integer(std::string_view name, int64_t low, int64_t high);
  // Finite; `low_open`: low itself is not allowed.
  std::optional<double> number(std::string_view name, double low, double high, bool low_open = false);
  std::optional<std::string> string(std::string_view name, size_t max_bytes);
  const boost::json::array* array(std::string_view name, size_t max_size);
  const boost::json::object* object(std::string_view name, size_t max_size);

  void fail(Error error);
  bool ok() const { return !error_.has_value(); }
  Error error() const { return *error_; }
  std::string path(std::string_view name) const { return prefix_ + std::string(name); }

 private:
  const boost::json::object& object_;
  std::string prefix_;
  std::optional<Error> error_;
};

// An integer, also when written as 16.0.
std::optional<int64_t> as_integer(const boost::json::value& value);

}  // namespace deepinfer::server
