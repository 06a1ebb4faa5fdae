#include "model/gguf_metadata.h"

#include <cstring>
#include <limits>
#include <type_traits>

#include "base/check.h"
#include "base/shown.h"

namespace deepinfer {
namespace {

std::string describe(const GgufValue& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, GgufArray>) {
          return fmt::format("an array of {} values", v.count);
        } else if constexpr (std::is_same_v<T, std::string_view>) {
          return fmt::format("the text '{}'", shown(v));
        } else {
          return fmt::format("{}", v);
        }
      },
      value);
}

std::optional<int64_t> as_integer(const GgufValue& value) {
  if (const auto* u = std::get_if<uint64_t>(&value)) {
    if (*u <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return static_cast<int64_t>(*u);
  } else if (const auto* i = std::get_if<int64_t>(&value)) {
    return *i;
  } else if (const auto* a = std::get_if<GgufArray>(&value)) {
    const bool wide = a->type == GgufType::kU32 || a->type == GgufType::kI32;
    if (!wide || a->count == 0) return {};
    int32_t first = 0;
    std::memcpy(&first, a->data, sizeof first);
    for (uint64_t k = 1; k < a->count; ++k)
      if (std::memcmp(a->data, a->data + k * sizeof first, sizeof first) != 0) return {};
    return first;
  }
  return {};
}

}  // namespace

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto it = file_.metadata.find(key);
  return it == file_.metadata.end() ? nullptr : &it->second;
}

Result<std::optional<int64_t>> GgufMetadata::integer(std::string_view key, int64_t low, int64_t high) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<int64_t>();
  const std::optional<int64_t> n = as_integer(*value);
  if (!n || *n < low || *n > high)
    return make_error(ErrorCode::kModel, "{}: {} is {}, expected an integer from {} to {}", name_, key,
                      describe(*value), low, high);
  return n;
}

Result<int64_t> GgufMetadata::required_integer(std::string_view key, int64_t low, int64_t high) const {
  DI_ASSIGN(const std::optional<int64_t> n, integer(key, low, high));
  if (!n)
    return make_error(
        ErrorCode::kModel,
        "{}: the key {} is missing, expected an integer from {} to {}; a vocabulary-only or adapter "
        "file is not a model",
        name_, key, low, high);
  return *n;
}

Result<std::optional<double>> GgufMetadata::number(std::string_view key, double low, double high) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<double>();
  std::optional<double> x;
  if (const auto* d = std::get_if<double>(value)) x = *d;
  if (const std::optional<int64_t> n = as_integer(*value)) x = static_cast<double>(*n);
  if (!x || !(*x >= low && *x <= high))  // NaN fails too
    return make_error(ErrorCode::kModel, "{}: {} is {}, expected a number from {} to {}", name_, key,
                      describe(*value), low, high);
  return x;
}

Result<std::optional<bool>> GgufMetadata::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<bool>();
  if (const bool* b = std::get_if<bool>(value)) return std::optional(*b);
  return make_error(ErrorCode::kModel, "{}: {} is {}, expected true or false", name_, key, describe(*value));
}

Result<std::optional<std::string_view>> GgufMetadata::string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<std::string_view>();
  if (const auto* s = std::get_if<std::string_view>(value)) return std::optional(*s);
  return make_error(ErrorCode::kModel, "{}: {} is {}, expected text", name_, key, describe(*value));
}

Result<const GgufArray*> GgufMetadata::array(std::string_view key, GgufType type) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return static_cast<const GgufArray*>(nullptr);
  const auto* a = std::get_if<GgufArray>(value);
  if (a == nullptr || a->type != type)
    return make_error(ErrorCode::kModel, "{}: {} is {}, expected an array of {}", name_, key,
                      describe(*value), type == GgufType::kString ? "texts" : "numbers");
  return a;
}

}  // namespace deepinfer
