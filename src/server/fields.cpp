#include "server/fields.h"

#include <boost/json/serialize.hpp>
#include <cmath>

#include "base/check.h"
#include "text/utf8.h"

namespace deepinfer::server {

namespace json = boost::json;

std::string_view kind_name(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return "a boolean";
    case json::kind::int64:
    case json::kind::uint64:
      return "an integer";
    case json::kind::double_:
      return "a number";
    case json::kind::string:
      return "a string";
    case json::kind::array:
      return "an array";
    case json::kind::object:
      return "an object";
  }
  return "something else";
}

std::string shown(const json::value& value) {
  if (value.is_array() || value.is_object()) return std::string(kind_name(value));
  constexpr size_t kShown = 60;
  if (const json::string* text = value.if_string(); text && text->size() > kShown)
    return fmt::format("a string of {} bytes", text->size());
  return json::serialize(value);
}

Error field_error(std::string_view param, std::string_view expected, const json::value& got) {
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("{}: got {}, expected {}", param, shown(got), expected), std::string(param)};
}

Error unsupported_error(std::string_view param, std::string_view why) {
  return Error{ErrorCode::kUnsupported, fmt::format("{}: {}", param, why), std::string(param)};
}

std::optional<int64_t> as_integer(const json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (const double* number = value.if_double())
    if (std::nearbyint(*number) == *number && std::abs(*number) < 9.0e15)
      return static_cast<int64_t>(*number);
  return std::nullopt;
}

const json::value* FieldReader::find(std::string_view name) const {
  if (error_) return nullptr;
  const json::value* value = object_.if_contains(name);
  return value && !value->is_null() ? value : nullptr;
}

void FieldReader::fail(Error error) {
  if (!error_) error_ = std::move(error);
}

std::optional<bool> FieldReader::boolean(std::string_view name) {
  const json::value* value = find(name);
  if (!value) return std::nullopt;
  if (value->is_bool()) return value->get_bool();
  fail(field_error(path(name), "true or false", *value));
  return std::nullopt;
}

std::optional<int64_t> FieldReader::integer(std::string_view name, int64_t low, int64_t high) {
  const json::value* value = find(name);
  if (!value) return std::nullopt;
  const auto number = as_integer(*value);
  if (number && *number >= low && *number <= high) return number;
  fail(field_error(path(name), fmt::format("an integer from {} to {}", low, high), *value));
  return std::nullopt;
}

std::optional<double> FieldReader::number(std::string_view name, double low, double high, bool low_open) {
  const json::value* value = find(name);
  if (!value) return std::nullopt;
  if (value->is_number()) {
    const double number = value->to_number<double>();
    if (std::isfinite(number) && number >= low && number <= high && !(low_open && number == low))
      return number;
  }
  fail(field_error(path(name), fmt::format("a number {} {} up to {}", low_open ? "above" : "from", low, high),
                   *value));
  return std::nullopt;
}

std::optional<std::string> FieldReader::string(std::string_view name, size_t max_bytes) {
  const json::value* value = find(name);
  if (!value) return std::nullopt;
  if (const json::string* text = value->if_string(); text && text->size() <= max_bytes)
    return std::string(text->data(), text->size());
  fail(field_error(path(name), fmt::format("a string of at most {} bytes", max_bytes), *value));
  return std::nullopt;
}

const json::array* FieldReader::array(std::string_view name, size_t max_size) {
  const json::value* value = find(name);
  if (!value) return nullptr;
  if (const json::array* array = value->if_array(); array && array->size() <= max_size) return array;
  fail(field_error(path(name), fmt::format("an array of at most {} items", max_size), *value));
  return nullptr;
}

const json::object* FieldReader::object(std::string_view name, size_t max_size) {
  const json::value* value = find(name);
  if (!value) return nullptr;
  if (const json::object* object = value->if_object(); object && object->size() <= max_size) return object;
  fail(field_error(path(name), fmt::format("an object of at most {} fields", max_size), *value));
  return nullptr;
}

}  // namespace deepinfer::server
