// All settings, as Python's Config stands on them.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "config/config.h"
#include "config/keys.h"

namespace deepinfer::python {

// Values with where each comes from. Wrong names and values raise ConfigError.
class Settings {
 public:
  // Environment and device count as in the program; `yaml` empty: no file. `gpu`: whose settings are taken,
  // by its number; -1: of the device that gpu.device means.
  explicit Settings(const std::string& yaml, int gpu);

  // None stands for `auto` and for what is unset; so it does in set(). `path`: "gpu.max_num_seqs".
  nanobind::object get(const std::string& path) const;
  void set(const std::string& path, nanobind::handle value);

  std::string yaml() const { return print_config(loaded_); }
  const Config& config() const { return loaded_.config; }
  // "built-in", "my.yaml:12", "Python" ...
  const std::string& origin(const std::string& path) const { return loaded_.origin.at(path); }

 private:
  void unset(const Key& key);

  LoadedConfig loaded_;
};

// (section, name, text, what is expected, default) of each.
nanobind::list setting_keys();

}  // namespace deepinfer::python
