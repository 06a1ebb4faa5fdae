#include "base/json_file.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <boost/json/stream_parser.hpp>
#include <cmath>
#include <fstream>

#include "base/check.h"
#include "base/shown.h"

namespace deepinfer {
namespace json = boost::json;

Result<std::string> read_file(const std::filesystem::path& path, uint64_t max_bytes) {
  std::error_code ec;
  if (!std::filesystem::exists(path, ec))
    return make_error(ErrorCode::kNotFound, "{}: no such file", path.string());
  std::ifstream in(path, std::ios::binary);
  const uint64_t size = std::filesystem::file_size(path, ec);
  if (!in || ec)
    return make_error(ErrorCode::kModel, "{}: cannot be read{}{}", path.string(), ec ? ": " : "",
                      ec ? ec.message() : std::string());
  if (size > max_bytes)
    return make_error(ErrorCode::kModel, "{}: {} bytes, expected at most {}", path.string(), size, max_bytes);
  std::string text(size, '\0');
  in.read(text.data(), static_cast<std::streamsize>(size));
  if (static_cast<uint64_t>(in.gcount()) != size)
    return make_error(ErrorCode::kModel, "{}: read {} of {} bytes", path.string(), in.gcount(), size);
  return text;
}

Result<json::value> parse_json(std::string_view text, const std::string& name) {
  json::parse_options options;
  options.max_depth = 64;
  json::stream_parser parser({}, options);
  json::error_code ec;
  size_t at = parser.write_some(text.data(), text.size(), ec);
  if (!ec && at < text.size()) ec = json::error::extra_data;
  if (!ec) parser.finish(ec);
  if (ec) {
    at = std::min(at, text.size());
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(at), '\n');
    const size_t start = at == 0 ? std::string_view::npos : text.rfind('\n', at - 1);
    const size_t column = 1 + at - (start == std::string_view::npos ? 0 : start + 1);
    return make_error(ErrorCode::kModel, "{}: not valid JSON: {} at line {}, column {}", name, ec.message(),
                      line, column);
  }
  return parser.release();
}

Result<JsonObject> as_object(const json::value& value, const std::string& name) {
  if (!value.is_object()) return make_error(ErrorCode::kModel, "{}: expected a JSON object", name);
  return JsonObject(value.get_object(), name);
}

Error JsonObject::wrong(std::string_view key, const json::value& value, const std::string& expected) const {
  return make_error(ErrorCode::kModel, "{}: {} is {}, expected {}", name_, key,
                    value.is_object() ? "an object" : shown(json::serialize(value)), expected);
}

const json::value* JsonObject::find(std::string_view key) const {
  const json::value* v = object_->if_contains(json::string_view(key.data(), key.size()));
  return v == nullptr || v->is_null() ? nullptr : v;
}

namespace {

std::optional<int64_t> as_integer(const json::value& v) {
  if (v.is_int64()) return v.get_int64();
  if (v.is_double() && std::abs(v.get_double()) < 1e15 && std::floor(v.get_double()) == v.get_double())
    return static_cast<int64_t>(v.get_double());  // 8192.0
  return {};
}

}  // namespace

Result<std::optional<int64_t>> JsonObject::integer(std::string_view key, int64_t low, int64_t high) const {
  const json::value* v = find(key);
  if (v == nullptr) return std::optional<int64_t>();
  const std::optional<int64_t> n = as_integer(*v);
  if (!n || *n < low || *n > high) return wrong(key, *v, fmt::format("an integer from {} to {}", low, high));
  return n;
}

Result<int64_t> JsonObject::required_integer(std::string_view key, int64_t low, int64_t high) const {
  DI_ASSIGN(const std::optional<int64_t> n, integer(key, low, high));
  if (!n)
    return make_error(ErrorCode::kModel, "{}: {} is missing, expected an integer from {} to {}", name_, key,
                      low, high);
  return *n;
}

Result<std::optional<double>> JsonObject::number(std::string_view key, double low, double high) const {
  const json::value* v = find(key);
  if (v == nullptr) return std::optional<double>();
  if (v->is_number()) {
    const double x = v->to_number<double>();
    if (x >= low && x <= high) return std::optional(x);
  }
  return wrong(key, *v, fmt::format("a number from {} to {}", low, high));
}

Result<std::optional<bool>> JsonObject::boolean(std::string_view key) const {
  const json::value* v = find(key);
  if (v == nullptr) return std::optional<bool>();
  if (!v->is_bool()) return wrong(key, *v, "true or false");
  return std::optional(v->get_bool());
}

Result<std::optional<std::string>> JsonObject::string(std::string_view key) const {
  const json::value* v = find(key);
  if (v == nullptr) return std::optional<std::string>();
  if (!v->is_string()) return wrong(key, *v, "a string");
  return std::optional(std::string(v->get_string()));
}

Result<std::optional<JsonObject>> JsonObject::object(std::string_view key) const {
  const json::value* v = find(key);
  if (v == nullptr) return std::optional<JsonObject>();
  if (!v->is_object()) return wrong(key, *v, "an object");
  return std::optional(JsonObject(v->get_object(), fmt::format("{}: {}", name_, key)));
}

Result<std::vector<int32_t>> JsonObject::ids(std::string_view key, int64_t low, int64_t high) const {
  std::vector<int32_t> out;
  const json::value* v = find(key);
  if (v == nullptr) return out;
  const auto add = [&](const json::value& item) {
    const std::optional<int64_t> n = as_integer(item);
    if (!n || *n < low || *n > high) return false;
    if (std::find(out.begin(), out.end(), *n) == out.end()) out.push_back(static_cast<int32_t>(*n));
    return true;
  };
  bool good = true;
  if (v->is_array()) {
    for (const json::value& item : v->get_array()) good = good && add(item);
  } else {
    good = add(*v);
  }
  if (!good) return wrong(key, *v, fmt::format("a token id from {} to {}, or a list of them", low, high));
  return out;
}

}  // namespace deepinfer
