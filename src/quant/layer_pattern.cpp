#define PCRE2_CODE_UNIT_WIDTH 8
#include "quant/layer_pattern.h"

#include <pcre2.h>

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/shown.h"

namespace deepinfer {
namespace {

bool layer_is_named(std::string_view layer, std::string_view name) {
  if (name.empty()) return false;
  if (layer == name) return true;
  if (layer.size() > name.size() && layer.starts_with(name) && layer[name.size()] == '.') return true;
  return layer.size() > name.size() && layer.ends_with(name) && layer[layer.size() - name.size() - 1] == '.';
}

}  // namespace

struct LayerPattern::Code {
  explicit Code(pcre2_code* compiled) : code(compiled) {}
  ~Code() { pcre2_code_free(code); }
  Code(const Code&) = delete;
  pcre2_code* code;
};

Result<LayerPattern> LayerPattern::compile(const std::string& pattern, const std::string& where) {
  int error = 0;
  size_t at = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr);
  if (code == nullptr) {
    std::array<PCRE2_UCHAR, 128> text{};
    pcre2_get_error_message(error, text.data(), text.size());
    return make_error(ErrorCode::kModel, "{}: the regular expression '{}' does not compile: {} at byte {}",
                      where, shown(pattern), reinterpret_cast<const char*>(text.data()), at);
  }
  LayerPattern out;
  out.code_ = std::make_shared<const Code>(code);
  return out;
}

bool LayerPattern::matches(std::string_view layer) const {
  constexpr uint32_t kMaxSteps = 100'000;
  const std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> limits(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> data(
      pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  pcre2_set_match_limit(limits.get(), kMaxSteps);
  return pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(layer.data()), layer.size(), 0, PCRE2_ANCHORED,
                     data.get(), limits.get()) >= 0;
}

Result<LayerList> LayerList::read(const JsonObject& config, std::initializer_list<const char*> keys) {
  LayerList out;
  for (const char* key : keys) {
    const boost::json::value* list = config.find(key);
    if (list == nullptr) continue;
    const std::string where = fmt::format("{}: {}", config.name(), key);
    if (!list->is_array()) return make_error(ErrorCode::kModel, "{} is no list of names of layers", where);
    for (const boost::json::value& item : list->get_array()) {
      if (!item.is_string())
        return make_error(ErrorCode::kModel, "{} holds something that is no name of a layer", where);
      const std::string entry(item.get_string());
      if (!entry.starts_with("re:")) {
        out.names_.push_back(entry);
        continue;
      }
      DI_ASSIGN(LayerPattern pattern, LayerPattern::compile(entry.substr(3), where));
      out.patterns_.push_back(std::move(pattern));
    }
  }
  return out;
}

bool LayerList::lists(std::string_view name) const {
  return std::find(names_.begin(), names_.end(), name) != names_.end();
}

bool LayerList::has(std::string_view layer) const {
  return std::any_of(names_.begin(), names_.end(),
                     [&](const std::string& name) { return layer_is_named(layer, name); }) ||
         std::any_of(patterns_.begin(), patterns_.end(),
                     [&](const LayerPattern& p) { return p.matches(layer); });
}

}  // namespace deepinfer
