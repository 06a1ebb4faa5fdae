#include <fmt/format.h>

#include <algorithm>

#include "config/config.h"
#include "config/value.h"

namespace deepinfer {
namespace {

constexpr size_t kOriginColumn = 48;

std::string hidden_text(const Key& key, const LoadedConfig& loaded) {
  // The one secret is a list; its length says whether the keys arrived.
  auto& config = const_cast<Config&>(loaded.config);
  const auto* list = std::get_if<FieldOf<std::vector<std::string>>>(&key.field);
  const size_t n = list != nullptr ? (*list)(config).size() : 0;
  return n == 0 ? "none" : fmt::format("{} hidden", n);
}

std::string markdown_cell(std::string text) {
  for (size_t i = 0; (i = text.find('|', i)) != std::string::npos; i += 2) text.insert(i, "\\");
  return text;
}

std::string default_cell(const Key& key) {
  const std::string value = key.default_text();
  if (value == "null" || value == "[]") return std::string(key.unset);
  return fmt::format("`{}`", value);
}

constexpr std::string_view kIntroduction = R"(# Settings

Generated from the table in `src/config/keys.cpp` by `deepinfer config --markdown`; a test compares it.

A value comes from the first of these that gives it: a flag, the environment, the YAML file of `--config`,
the settings of this device, the built-in value. `deepinfer config` prints every value and where it came from.

- Flag: the key's name with dashes, `--max-num-seqs 64`; `--model` sets `model.name`. A switch is
  `--enforce-eager` or `--no-enforce-eager`. Lists: several times, or with commas.
- Environment: `DEEPINFER_GPU__MAX_NUM_SEQS`, or short `DEEPINFER_MAX_NUM_SEQS`. An empty variable counts as
  not set.
- YAML: the section, and the key below it. `null` means not set. Without `--config` no file is read;
  `--config X` is the path X, else `<prefix>/share/deepinfer/X`.
- Times are in seconds.

An unknown key, a wrong type or a value out of range ends the program with exit code 2 and names file, line,
what was found, what was expected, and the nearest known key.

The settings of a device: on the CPU `max_num_seqs` 128 and `max_num_batched_tokens` 512. On a GPU
`gpu_memory_utilization` follows its memory (8 GB 0.85, 16 GB 0.88, 24 GB 0.90, from 40 GB 0.92) and
`max_num_seqs` / `max_num_batched_tokens` are 256 / 2048, from 70 GiB (not A100) 1024 / 8192, from 160 GiB
1024 / 16384. RTX 5090: 0.95 and 512; RTX 4090: 0.92 and 384.
)";

}  // namespace

std::string print_config(const LoadedConfig& loaded) {
  std::string out;
  std::string_view section;
  for (const Key& key : keys()) {
    if (key.section != section) out += fmt::format("{}{}:\n", section.empty() ? "" : "\n", key.section);
    section = key.section;
    std::string line =
        fmt::format("  {}: {}", key.name, key.secret ? "null" : value_text(key, loaded.config));
    line.resize(std::max(line.size() + 2, kOriginColumn), ' ');
    line += "# " + loaded.origin_of(key);
    if (key.secret) line += ", " + hidden_text(key, loaded);
    if (!key.secret && line.find(": null ") != std::string::npos && !key.unset.empty())
      line += fmt::format(" ({})", key.unset);
    out += line + "\n";
  }
  return out;
}

std::string config_markdown() {
  std::string out(kIntroduction);
  std::string_view section;
  for (const Key& key : keys()) {
    if (key.section != section)
      out += fmt::format("\n## {}\n\n| key | value | default | |\n|---|---|---|---|\n", key.section);
    section = key.section;
    out += fmt::format("| `{}` | {} | {} | {} |\n", key.name, markdown_cell(key.expected()),
                       markdown_cell(default_cell(key)), markdown_cell(std::string(key.text)));
  }
  return out;
}

}  // namespace deepinfer
