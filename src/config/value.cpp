#include "config/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr size_t kShownBytes = 60;  // of a wrong value

std::string lower(std::string_view s) {
  std::string out(s);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

std::string shown(const Key& key, const RawValue& raw) {
  if (key.secret) return "a value that is not shown";
  if (raw.is_list) return fmt::format("a list of {}", raw.items.size());
  std::string text = raw.items.at(0);
  if (text.size() > kShownBytes) {
    size_t end = kShownBytes;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    text = text.substr(0, end) + "...";
  }
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  if (text.empty() || raw.quoted) return fmt::format("the text \"{}\"", text);
  return text;
}

Error refuse(const Key& key, const RawValue& raw, const std::string& where) {
  return make_error(ErrorCode::kConfig, "{}: got {}, expected {} ({})", key.path(), shown(key, raw),
                    key.expected(), where);
}

std::optional<bool> to_bool(const std::string& text) {
  const std::string s = lower(text);
  if (s == "true" || s == "yes" || s == "on" || s == "1") return true;
  if (s == "false" || s == "no" || s == "off" || s == "0") return false;
  return std::nullopt;
}

template <class T>
std::optional<T> to_number(const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stop != end || text.empty()) return std::nullopt;
  return value;
}

bool in_range(const Key& key, double v) {
  return std::isfinite(v) && v <= key.max && (key.above_min ? v > key.min : v >= key.min);
}

template <class T>
std::optional<T> number_in_range(const Key& key, const RawValue& raw) {
  if (raw.is_list || raw.quoted) return std::nullopt;
  if constexpr (std::is_integral_v<T>) {
    if (key.allow_auto && lower(raw.items[0]) == "auto") return T{0};
    const auto v = to_number<int64_t>(raw.items[0]);
    // Every range of the table is far inside what a double holds exactly.
    if (!v || !in_range(key, static_cast<double>(*v))) return std::nullopt;
    return static_cast<T>(*v);
  } else {
    const auto v = to_number<double>(raw.items[0]);
    if (!v || !in_range(key, *v)) return std::nullopt;
    return *v;
  }
}

// The spelling that Config uses, or nothing when the table does not allow the text.
std::optional<std::string> allowed_text(const Key& key, const std::string& text) {
  if (key.allowed.empty()) return text;
  const std::string s = lower(text);
  for (std::string_view a : key.allowed)
    if (s == a) return s;
  for (const auto& [other, meant] : key.alias)
    if (s == other) return std::string(meant);
  if (key.accepts != nullptr && key.accepts(s)) return s;
  return std::nullopt;
}

std::string number_text(double v) {
  return fmt::format("{}", v);
}

template <class T>
std::string scalar_text(const Key& key, const T& v) {
  if constexpr (std::is_same_v<T, bool>) {
    return v ? "true" : "false";
  } else if constexpr (std::is_integral_v<T>) {
    return key.allow_auto && v == 0 ? "auto" : fmt::format("{}", v);
  } else if constexpr (std::is_same_v<T, double>) {
    return number_text(v);
  } else if constexpr (std::is_same_v<T, std::string>) {
    return v.empty() ? "null" : yaml_scalar(v);
  } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
    std::string out = "[";
    for (const std::string& s : v) out += (out.size() > 1 ? ", " : "") + yaml_scalar(s);
    return out + "]";
  } else {
    return v ? scalar_text(key, *v) : "null";
  }
}

struct Setter {
  const Key& key;
  const RawValue& raw;
  Config& config;

  // False: wrong type or out of range.
  bool operator()(FieldOf<bool> f) const {
    if (raw.is_list || raw.quoted) return false;
    const auto v = to_bool(raw.items[0]);
    if (v) f(config) = *v;
    return v.has_value();
  }
  bool operator()(FieldOf<std::string> f) const {
    if (raw.is_list) return false;
    auto v = allowed_text(key, raw.items[0]);
    if (v) f(config) = std::move(*v);
    return v.has_value();
  }
  bool operator()(FieldOf<std::vector<std::string>> f) const {
    if (std::any_of(raw.items.begin(), raw.items.end(), [](const auto& s) { return s.empty(); }))
      return false;
    f(config) = raw.items;
    return true;
  }
  template <class T>
  bool operator()(FieldOf<T> f) const {
    const auto v = number_in_range<T>(key, raw);
    if (v) f(config) = *v;
    return v.has_value();
  }
  template <class T>
  bool operator()(FieldOf<std::optional<T>> f) const {
    const auto v = number_in_range<T>(key, raw);
    if (v) f(config) = *v;
    return v.has_value();
  }
};

}  // namespace

Result<void> set_value(const Key& key, const RawValue& raw, const std::string& where, Config& config) {
  DI_CHECK(raw.is_list || raw.items.size() == 1, "{}: {} texts", key.path(), raw.items.size());
  if (!std::visit(Setter{key, raw, config}, key.field)) return refuse(key, raw, where);
  return {};
}

std::string value_text(const Key& key, const Config& config) {
  // The fields are reached through references to a changeable Config; nothing is changed here.
  auto& c = const_cast<Config&>(config);
  return std::visit([&](auto f) { return scalar_text(key, f(c)); }, key.field);
}

std::string yaml_scalar(const std::string& text) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.' || c == '/' || c == '+';
  };
  static constexpr std::string_view kWords[] = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"};
  const std::string s = lower(text);
  const bool word = std::find(std::begin(kWords), std::end(kWords), s) != std::end(kWords);
  const bool number = to_number<double>(text).has_value();
  if (!text.empty() && std::all_of(text.begin(), text.end(), plain) && !word && !number && text[0] != '-')
    return text;
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\x{:02x}", c);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace deepinfer
