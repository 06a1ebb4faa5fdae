// A file of settings, any bytes: it is read or refused with its place, and what is accepted can be printed.
#include <string>

#include "base/check.h"
#include "config/yaml.h"
#include "deepinfer/config.h"

using namespace deepinfer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto settings = parse_yaml(text, "fuzz.yaml");
  if (!settings) {
    DI_CHECK(settings.error().code == ErrorCode::kConfig, "{}", settings.error().message);
    DI_CHECK(settings.error().message.starts_with("fuzz.yaml:"), "no place: {}", settings.error().message);
    return 0;
  }
  Config config;
  for (const YamlSetting& setting : *settings) {
    DI_CHECK(setting.key != nullptr && setting.where.starts_with("fuzz.yaml:"), "a setting from nowhere");
    const auto set = set_value(*setting.key, setting.value, setting.where, config);
    if (set) {
      DI_CHECK(!value_text(*setting.key, config).empty(), "{} prints nothing", setting.key->path());
    } else {
      DI_CHECK(set.error().code == ErrorCode::kConfig, "{}", set.error().message);
      DI_CHECK(set.error().message.find(setting.key->name) != std::string::npos, "no name: {}",
               set.error().message);
    }
  }
  return 0;
}
