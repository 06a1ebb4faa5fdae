#include "text/json_fields.h"

#include <boost/json/stream_parser.hpp>

#include "base/check.h"
#include "base/mapped_file.h"

namespace deepinfer {
namespace {

Error wrong_type(const std::string& path, const boost::json::value& value, std::string_view expected) {
  return make_error(ErrorCode::kModel, "{}: got {}, expected {}", path, json_kind(value), expected);
}

}  // namespace

std::string_view json_kind(const boost::json::value& value) {
  switch (value.kind()) {
    case boost::json::kind::null:
      return "null";
    case boost::json::kind::bool_:
      return "a boolean";
    case boost::json::kind::int64:
    case boost::json::kind::uint64:
      return "an integer";
    case boost::json::kind::double_:
      return "a number";
    case boost::json::kind::string:
      return "a string";
    case boost::json::kind::array:
      return "a list";
    case boost::json::kind::object:
      return "an object";
  }
  return "?";
}

Result<boost::json::value> parse_json_file(const std::filesystem::path& path) {
  DI_ASSIGN(const MappedFile file, MappedFile::open(path));
  boost::json::error_code error;
  boost::json::stream_parser parser({}, boost::json::parse_options{.max_depth = 64});
  const auto bytes = file.bytes();
  const size_t read = parser.write_some(reinterpret_cast<const char*>(bytes.data()), bytes.size(), error);
  if (!error) parser.finish(error);
  if (!error && read < bytes.size()) error = boost::json::error::extra_data;
  if (error)
    return make_error(ErrorCode::kModel, "{}: not JSON at byte {} of {}: {}", path.string(), read,
                      bytes.size(), error.message());
  return parser.release();
}

Result<JsonFields> JsonFields::of(const boost::json::value& value, std::string path) {
  if (!value.is_object()) return wrong_type(path, value, "an object");
  return JsonFields(value.get_object(), std::move(path));
}

std::string JsonFields::path_of(std::string_view key) const {
  return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
}

const boost::json::value* JsonFields::find(std::string_view key) const {
  const boost::json::value* value = object_->if_contains(key);
  return value && !value->is_null() ? value : nullptr;
}

Result<bool> JsonFields::boolean(std::string_view key, bool otherwise) const {
  const boost::json::value* value = find(key);
  if (!value) return otherwise;
  if (!value->is_bool()) return wrong_type(path_of(key), *value, "true or false");
  return value->get_bool();
}

Result<std::optional<std::string_view>> JsonFields::string(std::string_view key) const {
  const boost::json::value* value = find(key);
  if (!value) return std::optional<std::string_view>();
  if (!value->is_string()) return wrong_type(path_of(key), *value, "a string");
  return std::optional<std::string_view>(std::string_view(value->get_string()));
}

Result<std::string_view> JsonFields::required_string(std::string_view key) const {
  DI_ASSIGN(const auto value, string(key));
  if (!value) return make_error(ErrorCode::kModel, "{}: missing, expected a string", path_of(key));
  return *value;
}

Result<std::optional<int64_t>> JsonFields::integer(std::string_view key) const {
  const boost::json::value* value = find(key);
  if (!value) return std::optional<int64_t>();
  if (!value->is_int64()) return wrong_type(path_of(key), *value, "an integer");
  return std::optional<int64_t>(value->get_int64());
}

Result<const boost::json::array*> JsonFields::array(std::string_view key) const {
  const boost::json::value* value = find(key);
  if (!value) return static_cast<const boost::json::array*>(nullptr);
  if (!value->is_array()) return wrong_type(path_of(key), *value, "a list");
  return &value->get_array();
}

Result<std::optional<JsonFields>> JsonFields::object(std::string_view key) const {
  const boost::json::value* value = find(key);
  if (!value) return std::optional<JsonFields>();
  DI_ASSIGN(JsonFields object, JsonFields::of(*value, path_of(key)));
  return std::optional<JsonFields>(std::move(object));
}

}  // namespace deepinfer
