// Reading JSON of unknown make: each field by name and type, with the path in the message of an error.
#pragma once

#include <boost/json/value.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "deepinfer/result.h"

namespace deepinfer {

// kNotFound, kModel with the path and the place of the fault.
Result<boost::json::value> parse_json_file(const std::filesystem::path& path);

// One object of a document, borrowed, with its path ("model.vocab") for messages.
class JsonFields {
 public:
  JsonFields(const boost::json::object& object, std::string path)
      : object_(&object), path_(std::move(path)) {}
  static Result<JsonFields> of(const boost::json::value& value, std::string path);

  const std::string& path() const { return path_; }
  const boost::json::object& raw() const { return *object_; }
  std::string path_of(std::string_view key) const;

  // Null and absent are the same. The getters below give kModel for another type than theirs.
  const boost::json::value* find(std::string_view key) const;
  Result<bool> boolean(std::string_view key, bool otherwise) const;
  Result<std::optional<std::string_view>> string(std::string_view key) const;
  Result<std::string_view> required_string(std::string_view key) const;
  Result<std::optional<int64_t>> integer(std::string_view key) const;
  Result<const boost::json::array*> array(std::string_view key) const;  // nullptr: absent
  Result<std::optional<JsonFields>> object(std::string_view key) const;

 private:
  const boost::json::object* object_;
  std::string path_;
};

std::string_view json_kind(const boost::json::value& value);

}  // namespace deepinfer
