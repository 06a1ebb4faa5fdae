#include "hub/model_ref.h"

#include <algorithm>
#include <array>

#include "base/check.h"

namespace deepinfer::hub {
namespace {

constexpr size_t kMaxRepo = 96;
constexpr size_t kMaxPath = 1024;
constexpr size_t kMaxPart = 255;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_alnum(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool is_hex(std::string_view text, size_t length) {
  return text.size() == length &&
         std::all_of(text.begin(), text.end(), [](char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); });
}

bool is_name(std::string_view part) {
  if (part.empty() || part.front() == '-' || part.front() == '.' || part.back() == '-' || part.back() == '.')
    return false;
  return std::all_of(part.begin(), part.end(),
                     [](char c) { return is_alnum(c) || c == '-' || c == '_' || c == '.'; });
}

// The hub's own rules; "--" stands between the parts of a folder's name in the cache.
bool is_repo(std::string_view text) {
  const size_t slash = text.find('/');
  return slash != std::string_view::npos && text.size() <= kMaxRepo && is_name(text.substr(0, slash)) &&
         is_name(text.substr(slash + 1)) && text.find("--") == std::string_view::npos &&
         text.find("..") == std::string_view::npos && !text.ends_with(".git");
}

bool is_quantization(std::string_view word) {
  static constexpr std::array<std::string_view, 6> kPlain = {"F16", "F32", "F64", "BF16", "FP16", "FP32"};
  if (std::find(kPlain.begin(), kPlain.end(), word) != kPlain.end()) return true;
  if (word.starts_with("MXFP4") || word.starts_with("NVFP4")) return word.size() == 5 || word[5] == '_';
  if (word.starts_with("IQ") || word.starts_with("TQ")) word.remove_prefix(1);
  return word.size() >= 2 && word[0] == 'Q' && is_digit(word[1]) && (word.size() == 2 || word[2] == '_');
}

std::string_view base_name(std::string_view path) {
  return path.substr(path.rfind('/') + 1);  // npos + 1 is 0
}

}  // namespace

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  return out;
}

std::string upper(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 32);
  return out;
}

std::string printable(std::string_view text, size_t limit) {
  std::string out(text.substr(0, limit));
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 32 || c == 127) c = '?';
  return out;
}

std::string size_text(uint64_t bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 999.95 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

Result<ModelRef> parse_model_ref(std::string_view text) {
  const size_t colon = text.find(':');
  ModelRef ref{std::string(text.substr(0, colon)), ""};
  if (!is_repo(ref.repo))
    return make_error(
        ErrorCode::kNotFound,
        "'{}': not the name of a model on a hub: expected ORG/NAME, or ORG/NAME:FILE with a file or "
        "a quantization such as Q4_K_M",
        printable(text));
  if (colon == std::string_view::npos) return ref;
  ref.file = text.substr(colon + 1);
  if (ref.file.empty())
    return make_error(ErrorCode::kNotFound,
                      "'{}': nothing after the colon: expected a file or a quantization such as Q4_K_M",
                      printable(text));
  DI_TRY(check_relative_path(ref.file, fmt::format("'{}'", printable(text))));
  return ref;
}

Result<void> check_relative_path(std::string_view path, std::string_view what) {
  const auto wrong = [&](const char* why) {
    return make_error(ErrorCode::kModel, "{}: refused, {}: '{}'", what, why, printable(path));
  };
  if (path.empty() || path.size() > kMaxPath) return wrong("its name is empty or too long");
  for (const char c : path)
    if (static_cast<unsigned char>(c) < 32 || c == 127 || c == '\\')
      return wrong("its name has a control character or a backslash");
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == ".." || part.size() > kMaxPart)
      return wrong("its name leaves the folder of the model");
    begin = end + 1;
  }
  return {};
}

bool is_commit(std::string_view text) {
  return is_hex(text, 40);
}

bool is_blob_hash(std::string_view text) {
  return is_hex(text, 40) || is_hex(text, 64);
}

std::string plain_etag(std::string_view value) {
  if (value.starts_with("W/")) value.remove_prefix(2);
  if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
    value = value.substr(1, value.size() - 2);
  return std::string(value);
}

std::string split_base(std::string_view file) {
  constexpr std::string_view kPattern = "-ddddd-of-ddddd.gguf";
  if (file.size() <= kPattern.size()) return std::string(file);
  const std::string_view tail = file.substr(file.size() - kPattern.size());
  for (size_t i = 0; i < kPattern.size(); ++i)
    if (kPattern[i] == 'd' ? !is_digit(tail[i]) : tail[i] != kPattern[i]) return std::string(file);
  return std::string(file.substr(0, file.size() - kPattern.size()));
}

std::string quantization_of(std::string_view file) {
  std::string stem = upper(base_name(split_base(file)));
  if (stem.ends_with(".GGUF")) stem.resize(stem.size() - 5);
  for (size_t i = stem.size(); i-- > 0;) {
    if (i > 0 && is_alnum(stem[i - 1])) continue;
    size_t end = i;
    while (end < stem.size() && (is_alnum(stem[end]) || stem[end] == '_')) ++end;
    const std::string word = stem.substr(i, end - i);
    if (!is_quantization(word)) continue;
    const bool dynamic = i >= 3 && stem.compare(i - 3, 3, "UD-") == 0;
    return dynamic ? "UD-" + word : word;
  }
  return "";
}

}  // namespace deepinfer::hub
