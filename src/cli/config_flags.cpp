#include "cli/config_flags.h"

#include <fmt/format.h>

#include "base/check.h"
#include "base/paths.h"
#include "config/nearest.h"

namespace deepinfer {
namespace {

std::string help_text(const Key& key) {
  const std::string value = key.default_text();
  const bool unset = value == "null" || value == "[]";
  return fmt::format("{} [{}]", key.text, unset ? std::string(key.unset) : value);
}

}  // namespace

ConfigFlags::ConfigFlags(CLI::App& command) {
  config_ = command.add_option("--config", "YAML file with settings: a path, or a name in share/deepinfer")
                ->type_name("FILE");
  for (const Key& key : keys()) {
    const std::string flag = key.flag();
    const std::string help = help_text(key);  // CLI11 takes descriptions that are const lvalues
    CLI::Option* option;
    if (key.is_bool()) {
      option = command.add_flag(fmt::format("{},!--no-{}", flag, flag.substr(2)), help);
      option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    } else {
      option = command.add_option(flag, help)->type_name(key.is_list() ? "TEXT,..." : "VALUE");
      // One value each time: `--api-key a prompt` must leave the prompt alone.
      option->expected(1);
      option->multi_option_policy(key.is_list() ? CLI::MultiOptionPolicy::TakeAll
                                                : CLI::MultiOptionPolicy::TakeLast);
    }
    option->group(fmt::format("Settings: {}", key.section));
    options_.emplace_back(&key, option);
  }
}

std::optional<std::filesystem::path> ConfigFlags::config() const {
  if (config_->count() == 0) return std::nullopt;
  return std::filesystem::path(config_->results().back());
}

std::vector<FlagValue> ConfigFlags::values() const {
  std::vector<FlagValue> out;
  for (const auto& [key, option] : options_) {
    if (option->count() == 0) continue;
    const CLI::results_t& results = option->reduced_results();
    for (const std::string& text : results) out.push_back({key->flag().substr(2), text});
  }
  return out;
}

Result<LoadedConfig> ConfigFlags::load(const DeviceDescription& device) const {
  ConfigSources sources{.environment = process_environment(), .flags = values(), .device = device};
  if (const auto path = config()) {
    DI_ASSIGN(sources.yaml, resolve_config(*path, install_prefix()));
  }
  return load_config(sources);
}

std::string flag_hint(const CLI::App& command, const std::string& unknown) {
  if (!unknown.starts_with("--")) return "";
  const std::string word = unknown.substr(0, unknown.find('='));
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  const std::vector<std::string_view> views(names.begin(), names.end());
  const std::string_view near = nearest(word, views);
  return near.empty() ? "" : fmt::format(" (did you mean {}?)", near);
}

}  // namespace deepinfer
