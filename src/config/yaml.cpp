#include "config/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>

#include "base/check.h"
#include "config/nearest.h"

namespace deepinfer {
namespace {

// yaml-cpp 0.7 recurses once a level of nesting; a configuration has two or three.
constexpr size_t kMaxBytes = size_t{1} << 20;
constexpr int kMaxOpeners = 200;  // brackets of the whole file, and markers at the start of one line
constexpr int kMaxIndents = 32;

Error error_at(const std::string& file, int line, std::string_view message) {
  return make_error(ErrorCode::kConfig, "{}:{}: {}", file, line, message);
}

// The length of the UTF-8 sequence at `s`, 0 when there is none (overlong, surrogate, cut off).
size_t utf8_length(std::string_view s) {
  const auto byte = [&](size_t i) { return i < s.size() ? static_cast<unsigned char>(s[i]) : 0u; };
  const unsigned a = byte(0), b = byte(1);
  const auto tail = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  if (a < 0x80) return 1;
  if (a >= 0xC2 && a <= 0xDF) return tail(1) ? 2 : 0;
  if (a >= 0xE0 && a <= 0xEF) {
    if (!tail(1) || !tail(2) || (a == 0xE0 && b < 0xA0) || (a == 0xED && b >= 0xA0)) return 0;
    return 3;
  }
  if (a >= 0xF0 && a <= 0xF4) {
    if (!tail(1) || !tail(2) || !tail(3) || (a == 0xF0 && b < 0x90) || (a == 0xF4 && b >= 0x90)) return 0;
    return 4;
  }
  return 0;
}

Result<void> check_bytes(std::string_view text, const std::string& file) {
  int line = 1;
  for (size_t i = 0; i < text.size();) {
    const size_t n = utf8_length(text.substr(i));
    if (n == 0)
      return error_at(file, line,
                      fmt::format("byte 0x{:02x} is no UTF-8; save the file as UTF-8",
                                  static_cast<unsigned char>(text[i])));
    const char c = text[i];
    if (c == '\n') ++line;
    if (n == 1 && static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\r' && c != '\t')
      return error_at(file, line, fmt::format("control character 0x{:02x} in a configuration", c));
    i += n;
  }
  return {};
}

// Bounds what the parser's recursion can reach, before it runs: brackets in the whole file, "- - -" and
// "? ? ?" in a line, and levels of indentation. It counts too much (brackets in texts), never too little.
Result<void> check_nesting(std::string_view text, const std::string& file) {
  int line = 0, openers = 0;
  std::vector<size_t> indents;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view row = text.substr(begin, end - begin);
    begin = end + 1;
    ++line;
    const size_t indent = row.find_first_not_of(" \r");
    if (indent == std::string_view::npos || row[indent] == '#') continue;
    if (row[indent] == '\t') return error_at(file, line, "a tab in the indentation; YAML allows spaces only");
    while (!indents.empty() && indents.back() > indent) indents.pop_back();
    if (indents.empty() || indents.back() < indent) indents.push_back(indent);
    size_t markers = 0;
    for (size_t i = indent; i < row.size(); ++i) {
      openers += row[i] == '[' || row[i] == '{';
      const bool blank_after = i + 1 == row.size() || row[i + 1] == ' ' || row[i + 1] == '\t';
      markers += (row[i] == '-' || row[i] == '?' || row[i] == ':') && blank_after;
    }
    if (openers > kMaxOpeners || markers > kMaxOpeners || indents.size() > kMaxIndents)
      return error_at(file, line, "nested too deep; a configuration has sections, keys and lists");
  }
  return {};
}

// Looks for a second document. YAML::LoadAll would, but in yaml-cpp 0.7 it never ends on some broken texts.
class SecondDocument final : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark& mark) override { line_ = mark.line + 1; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override { content_ = true; }
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {
    content_ = true;
  }
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    content_ = true;
  }
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {
    content_ = true;
  }
  void OnMapEnd() override {}

  bool content() const { return content_; }
  int line() const { return line_; }

 private:
  int line_ = 1;
  bool content_ = false;
};

// What follows the first document. Throws YAML::Exception.
Result<void> check_single(const std::string& text, const std::string& file) {
  std::istringstream in(text);
  YAML::Parser parser(in);
  SecondDocument first, second;
  if (!parser.HandleNextDocument(first) || !parser.HandleNextDocument(second) || !second.content()) return {};
  return error_at(file, second.line(), "a second document, or text after the end; a configuration is one");
}

int line_of(const YAML::Node& node) {
  return std::max(node.Mark().line, 0) + 1;
}

Error unknown_section(const std::string& file, const YAML::Node& name_node, bool has_map) {
  const std::string name = name_node.Scalar();
  const int line = line_of(name_node);
  if (const Key* key = find_key(name); key != nullptr && !has_map)
    return error_at(file, line, fmt::format("{}: this key stands under `{}:`", name, key->section));
  const std::string_view near = nearest(name, sections());
  return error_at(file, line,
                  fmt::format("unknown section `{}`, expected {}{}", name.substr(0, 80),
                              "model, gpu, cpu, server or sampling",
                              near.empty() ? "" : fmt::format("; did you mean `{}`?", near)));
}

Error unknown_key(const std::string& file, std::string_view section, const YAML::Node& name_node) {
  const std::string name = name_node.Scalar();
  std::string hint;
  if (const Key* key = find_key(name); key != nullptr && name == key->name) {
    hint = fmt::format("; it stands under `{}:`", key->section);
  } else {
    std::vector<std::string_view> names;  // this section's first: they win among equals
    for (const Key& k : keys())
      if (k.section == section) names.push_back(k.name);
    for (const Key& k : keys())
      if (k.section != section) names.push_back(k.name);
    const std::string_view near = nearest(name, names);
    if (!near.empty()) hint = fmt::format("; did you mean `{}`?", find_key(near)->path());
  }
  return error_at(
      file, line_of(name_node),
      fmt::format("{}.{}: unknown key{} (`deepinfer config` lists all)", section, name.substr(0, 80), hint));
}

bool is_quoted(const YAML::Node& node) {
  return node.Tag() == "!";
}

// A scalar or a list of scalars.
Result<RawValue> raw_value(const std::string& file, const Key& key, const YAML::Node& node, int line) {
  RawValue raw;
  if (node.IsScalar()) {
    raw.items = {node.Scalar()};
    raw.quoted = is_quoted(node);
    return raw;
  }
  if (!node.IsSequence())
    return error_at(file, line, fmt::format("{}: got a mapping, expected {}", key.path(), key.expected()));
  raw.is_list = true;
  for (const YAML::Node& item : node) {
    if (!item.IsScalar())
      return error_at(file, line,
                      fmt::format("{}: entry {} of the list is no text, expected {}", key.path(),
                                  raw.items.size() + 1, key.expected()));
    raw.items.push_back(item.Scalar());
  }
  return raw;
}

class Reader {
 public:
  explicit Reader(const std::string& file) : file_(file) {}

  Result<void> section(const YAML::Node& name, const YAML::Node& body) {
    if (!name.IsScalar()) return error_at(file_, line_of(name), "a section's name must be a text");
    const std::string section = name.Scalar();
    if (std::find(sections().begin(), sections().end(), section) == sections().end())
      return unknown_section(file_, name, body.IsMap());
    DI_TRY(once(section, line_of(name)));
    if (body.IsNull()) return {};
    if (!body.IsMap())
      return error_at(file_, line_of(name),
                      fmt::format("{}: expected `key: value` lines below it, indented", section));
    for (const auto& entry : body) DI_TRY(setting(section, entry.first, entry.second));
    return {};
  }

  std::vector<YamlSetting> take() { return std::move(out_); }

 private:
  Result<void> setting(const std::string& section, const YAML::Node& name, const YAML::Node& value) {
    if (!name.IsScalar()) return error_at(file_, line_of(name), "a key must be a text");
    const std::string path = section + "." + name.Scalar();
    const Key* key = find_key(path);
    const int line = line_of(name);
    if (key == nullptr) return unknown_key(file_, section, name);
    DI_TRY(once(path, line));
    if (value.IsNull()) return {};
    DI_ASSIGN(RawValue raw, raw_value(file_, *key, value, line));
    out_.push_back({key, std::move(raw), fmt::format("{}:{}", file_, line)});
    return {};
  }

  Result<void> once(const std::string& path, int line) {
    const auto [it, fresh] = lines_.emplace(path, line);
    if (!fresh)
      return error_at(file_, line, fmt::format("{}: given twice, first on line {}", path, it->second));
    return {};
  }

  const std::string& file_;
  std::map<std::string, int> lines_;
  std::vector<YamlSetting> out_;
};

}  // namespace

Result<std::vector<YamlSetting>> parse_yaml(std::string_view text, const std::string& file) {
  if (text.size() > kMaxBytes)
    return make_error(ErrorCode::kConfig, "{}: {} bytes, a configuration has at most {}", file, text.size(),
                      kMaxBytes);
  DI_TRY(check_bytes(text, file));
  DI_TRY(check_nesting(text, file));
  YAML::Node root;
  try {
    root = YAML::Load(std::string(text));
    DI_TRY(check_single(std::string(text), file));
  } catch (const YAML::Exception& e) {
    return error_at(file, std::max(e.mark.line, 0) + 1, fmt::format("not valid YAML: {}", e.msg));
  }
  if (root.IsNull()) return std::vector<YamlSetting>{};
  if (!root.IsMap())
    return error_at(file, line_of(root), "expected sections (`gpu:`) with `key: value` lines below them");
  Reader reader(file);
  for (const auto& entry : root) DI_TRY(reader.section(entry.first, entry.second));
  return reader.take();
}

Result<std::vector<YamlSetting>> read_yaml(const std::filesystem::path& file) {
  std::error_code ec;
  if (std::filesystem::is_directory(file, ec))
    return make_error(ErrorCode::kConfig, "{}: a folder, expected a YAML file", file.string());
  std::ifstream in(file, std::ios::binary);
  if (!in)
    return make_error(ErrorCode::kConfig, "{}: the configuration cannot be opened ({})", file.string(),
                      std::generic_category().message(errno));
  std::string text(kMaxBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  return parse_yaml(text, file.string());
}

}  // namespace deepinfer
