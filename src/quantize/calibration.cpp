#include "quantize/calibration.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/json_file.h"
#include "base/paths.h"

namespace deepinfer::quantize {
namespace {

constexpr uint64_t kMaxBytes = 64 << 20;

Error no_text(const std::string& where) {
  return make_error(ErrorCode::kConfig,
                    "{}: expected an object with \"text\", or with \"messages\" that have \"content\"",
                    where);
}

// The text of one line of a JSONL file.
Result<std::string> text_of(std::string_view line, const std::string& where) {
  auto parsed = parse_json(line, where);
  if (!parsed) return make_error(ErrorCode::kConfig, "{}", parsed.error().message);
  if (!parsed->is_object()) return no_text(where);
  const boost::json::object& object = parsed->get_object();
  if (const auto* text = object.if_contains("text"); text != nullptr && text->is_string())
    return std::string(text->get_string());
  const auto* messages = object.if_contains("messages");
  if (messages == nullptr || !messages->is_array()) return no_text(where);
  std::string all;
  for (const boost::json::value& message : messages->get_array()) {
    const auto* content = message.is_object() ? message.get_object().if_contains("content") : nullptr;
    if (content == nullptr || !content->is_string()) return no_text(where);
    all.append(content->get_string()).append("\n\n");
  }
  return all;
}

Result<std::string> joined_lines(std::string_view file, const std::string& name) {
  std::string all;
  for (int line = 1; !file.empty(); ++line) {
    const std::string_view text = file.substr(0, file.find('\n'));
    file.remove_prefix(std::min(file.size(), text.size() + 1));
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    DI_ASSIGN(const std::string document, text_of(text, fmt::format("{}:{}", name, line)));
    all.append(document).append("\n\n");
  }
  return all;
}

}  // namespace

Result<Samples> read_calibration(const Tokenizer& tokenizer, const CalibrationSpec& spec) {
  const std::string name = spec.file.string();
  auto read = read_file(spec.file, kMaxBytes);
  if (!read) return make_error(read.error().code, "calibration: {}", read.error().message);
  std::string text = *std::move(read);
  if (spec.file.extension() == ".jsonl") {
    DI_ASSIGN(text, joined_lines(text, name));
  }
  const std::vector<int32_t> all = tokenizer.encode(text);
  const bool bos = tokenizer.add_bos() && tokenizer.bos().has_value();
  const int64_t window = spec.length - (bos ? 1 : 0);
  const int64_t windows = static_cast<int64_t>(all.size()) / window;
  if (windows < kLeastSamples)
    return make_error(
        ErrorCode::kConfig,
        "calibration: {} has {} tokens, expected at least {} ({} samples of {}): give more text, or "
        "shorter samples with --sample-tokens",
        name, all.size(), kLeastSamples * window, kLeastSamples, spec.length);
  const int64_t count = std::min(windows, spec.samples);
  Samples out{.length = spec.length, .tokens = {}};
  for (int64_t s = 0; s < count; ++s) {
    if (bos) out.tokens.push_back(*tokenizer.bos());
    const auto first = all.begin() + s * windows / count * window;
    out.tokens.insert(out.tokens.end(), first, first + window);
  }
  return out;
}

std::filesystem::path default_calibration() {
  return share_dir() / "calibration.txt";
}

}  // namespace deepinfer::quantize
