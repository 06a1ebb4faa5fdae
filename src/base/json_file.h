// Small JSON files of a model's folder: read with limits, typed access with messages that name file and key.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/result.h"

namespace deepinfer {

// The whole file; kNotFound when missing, kModel when larger than `max_bytes`.
Result<std::string> read_file(const std::filesystem::path& path, uint64_t max_bytes);

// kModel with line and column. At most 64 levels deep.
Result<boost::json::value> parse_json(std::string_view text, const std::string& name);

// An object of such a file, borrowed. null counts as absent; a wrong type or range is kModel.
class JsonObject {
 public:
  JsonObject(const boost::json::object& object, std::string name)
      : object_(&object), name_(std::move(name)) {}

  const std::string& name() const { return name_; }
  const boost::json::object& object() const { return *object_; }
  const boost::json::value* find(std::string_view key) const;  // null when absent

  Result<std::optional<int64_t>> integer(std::string_view key, int64_t low, int64_t high) const;
  Result<int64_t> required_integer(std::string_view key, int64_t low, int64_t high) const;
  Result<std::optional<double>> number(std::string_view key, double low, double high) const;
  Result<std::optional<bool>> boolean(std::string_view key) const;
  Result<std::optional<std::string>> string(std::string_view key) const;
  Result<std::optional<JsonObject>> object(std::string_view key) const;
  // An integer or a list of them; empty when absent.
  Result<std::vector<int32_t>> ids(std::string_view key, int64_t low, int64_t high) const;

 private:
  Error wrong(std::string_view key, const boost::json::value& value, const std::string& expected) const;

  const boost::json::object* object_;
  std::string name_;
};

// The file as an object with its JSON, which must outlive it.
Result<JsonObject> as_object(const boost::json::value& value, const std::string& name);

}  // namespace deepinfer
