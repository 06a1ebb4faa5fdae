#include "settings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <variant>

#include "base/check.h"
#include "base/paths.h"
#include "config/value.h"
#include "device/gpu_detector.h"
#include "engine/find_device.h"
#include "errors.h"

namespace nb = nanobind;

namespace deepinfer::python {
namespace {

const Key& key_of(const std::string& path) {
  const Key* k = find_key(path);
  if (k == nullptr || k->path() != path)
    raise(make_error(ErrorCode::kConfig, "{}: there is no such setting", path));
  return *k;
}

template <class T>
nb::object to_python(const Key& k, const T& value) {
  if constexpr (std::is_same_v<T, int> || std::is_same_v<T, int64_t>) {
    if (k.allow_auto && value == 0) return nb::none();
    return nb::cast(value);
  } else if constexpr (std::is_same_v<T, std::string>) {
    return value.empty() ? nb::object(nb::none()) : nb::object(nb::cast(value));
  } else if constexpr (std::is_same_v<T, std::optional<int>> || std::is_same_v<T, std::optional<double>>) {
    return value ? nb::object(nb::cast(*value)) : nb::object(nb::none());
  } else {
    return nb::cast(value);
  }
}

std::string text(nb::handle value) {
  if (nb::isinstance<nb::bool_>(value)) return nb::cast<bool>(value) ? "true" : "false";
  return nb::cast<std::string>(nb::str(value));
}

RawValue raw(const Key& k, nb::handle value) {
  RawValue out;
  if (nb::isinstance<nb::list>(value) || nb::isinstance<nb::tuple>(value)) {
    out.is_list = true;
    for (nb::handle item : value) out.items.push_back(text(item));
    return out;
  }
  out.items.push_back(text(value));
  out.is_list = k.is_list();
  // A number in quotes is a text, but `auto` is a word.
  out.quoted = nb::isinstance<nb::str>(value) && !(k.allow_auto && out.items[0] == "auto");
  return out;
}

}  // namespace

Settings::Settings(const std::string& yaml, int gpu) {
  ConfigSources sources{.environment = process_environment()};
  if (!yaml.empty()) sources.yaml = unwrap(resolve_config(yaml, install_prefix()));
  loaded_ = unwrap(load_config(sources));
  if (gpu >= 0) {
    const GpuReport report = GpuDetector().detect();
    if (static_cast<size_t>(gpu) >= report.gpus.size())
      raise(make_error(ErrorCode::kMemory, "GPU {}: not there any more: {}", gpu, report.message));
    sources.device = describe(report.gpus[static_cast<size_t>(gpu)]);
  } else {
    const Result<DeviceChoice> choice = find_device(loaded_.config.gpu.device);
    if (!choice || !choice->gpu) return;
    sources.device = describe(*choice->gpu);
  }
  loaded_ = unwrap(load_config(sources));
}

nb::object Settings::get(const std::string& path) const {
  const Key& k = key_of(path);
  // The table's functions give a reference to what may be changed.
  auto& config = const_cast<Config&>(loaded_.config);
  return std::visit([&](auto field) { return to_python(k, field(config)); }, k.field);
}

void Settings::set(const std::string& path, nb::handle value) {
  const Key& k = key_of(path);
  if (value.is_none()) return unset(k);
  unwrap(set_value(k, raw(k, value), "Python", loaded_.config));
  loaded_.origin[k.path()] = "Python";
}

// What the built-in values leave unset, or `auto`.
void Settings::unset(const Key& k) {
  Config fresh;
  std::visit([&](auto field) { field(loaded_.config) = field(fresh); }, k.field);
  loaded_.origin[k.path()] = "Python";
}

nb::list setting_keys() {
  nb::list out;
  for (const Key& k : keys())
    out.append(nb::make_tuple(std::string(k.section), std::string(k.name), std::string(k.text), k.expected(),
                              k.default_text()));
  return out;
}

}  // namespace deepinfer::python
