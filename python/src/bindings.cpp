// The extension module deepinfer._core: settings, engine, GPUs. What Python users see is in deepinfer/*.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <boost/json/parse.hpp>

#include "base/check.h"
#include "base/log.h"
#include "cli/program.h"
#include "config/config.h"
#include "config/nearest.h"
#include "config/value.h"
#include "deepinfer/version.h"
#include "device/gpu_detector.h"
#include "device/gpu_text.h"
#include "engine/find_device.h"
#include "server/prompts.h"
#include "session.h"

namespace nb = nanobind;

namespace deepinfer::python {
namespace {

const char* code_name(ErrorCode code) {
  static constexpr const char* kNames[] = {"invalid_argument", "context_length", "unsupported",   "not_found",
                                           "queue_full",       "unavailable",    "queue_timeout", "timeout",
                                           "cancelled",        "config",         "model",         "memory",
                                           "address_in_use",   "internal"};
  return kNames[static_cast<size_t>(code)];
}

// As one of the classes in errors.py.
[[noreturn]] void raise(const Error& error) {
  nb::object make = nb::module_::import_("deepinfer.errors").attr("from_core");
  nb::object made = make(code_name(error.code), error.message, error.param);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made.ptr())), made.ptr());
  throw nb::python_error();
}

template <class T>
T unwrap(Result<T> result) {
  if (!result) raise(result.error());
  return std::move(*result);
}
void unwrap(const Result<void>& result) {
  if (!result) raise(result.error());
}

// Settings, with where each comes from.
class Settings {
 public:
  // Environment and device count as in the program; `yaml` empty: no file.
  explicit Settings(const std::string& yaml) {
    ConfigSources sources{.environment = process_environment()};
    if (!yaml.empty()) sources.yaml = unwrap(resolve_config(yaml, prefix()));
    loaded_ = unwrap(load_config(sources));
    const Result<DeviceChoice> choice = find_device(loaded_.config.gpu.device);
    if (!choice || !choice->gpu) return;
    sources.device = describe(*choice->gpu);
    loaded_ = unwrap(load_config(sources));
  }

  nb::object get(const std::string& path) {
    return std::visit([&](auto field) { return to_python(key(path), field(loaded_.config)); },
                      key(path).field);
  }

  void set(const std::string& path, nb::handle value) {
    const Key& k = key(path);
    if (value.is_none()) return unset(k);
    unwrap(set_value(k, raw(k, value), "Python", loaded_.config));
    loaded_.origin[k.path()] = "Python";
  }

  std::string yaml() const { return print_config(loaded_); }
  const Config& config() const { return loaded_.config; }

  static std::filesystem::path prefix() {
    return nb::cast<std::string>(nb::module_::import_("sys").attr("prefix"));
  }

 private:
  static const Key& key(const std::string& path) {
    const Key* k = find_key(path);
    if (k == nullptr || k->path() != path)
      raise(make_error(ErrorCode::kConfig, "{}: there is no such setting", path));
    return *k;
  }

  template <class T>
  static nb::object to_python(const Key& k, const T& value) {
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

  static std::string text(nb::handle value) {
    if (nb::isinstance<nb::bool_>(value)) return nb::cast<bool>(value) ? "true" : "false";
    return nb::cast<std::string>(nb::str(value));
  }

  static RawValue raw(const Key& k, nb::handle value) {
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

  // What the built-in values leave unset, or `auto`.
  void unset(const Key& k) {
    Config fresh;
    std::visit([&](auto field) { field(loaded_.config) = field(fresh); }, k.field);
    loaded_.origin[k.path()] = "Python";
  }

  LoadedConfig loaded_;
};

nb::object logprobs_of(const std::vector<OutputToken>& tokens) {
  nb::list out;
  for (const OutputToken& token : tokens) {
    nb::list top;
    for (const TokenLogprob& t : token.top) top.append(nb::make_tuple(t.token, t.logprob));
    out.append(nb::make_tuple(token.id, token.logprob, token.rank, top));
  }
  return out;
}

nb::object choice_of(const server::ChoiceUpdate& c) {
  nb::object stop = nb::none();
  if (!c.stop_text.empty()) stop = nb::cast(c.stop_text);
  if (c.stop_id >= 0) stop = nb::cast(c.stop_id);
  return nb::make_tuple(c.index, c.text, c.ids, logprobs_of(c.tokens), std::string(c.finish), stop);
}

// (request, choices, end), end None or a dict.
nb::object news_of(const News& n) {
  nb::list choices;
  for (const server::ChoiceUpdate& c : n.choices) choices.append(choice_of(c));
  if (!n.end) return nb::make_tuple(n.request, choices, nb::none());
  nb::dict end;
  end["error"] = nb::none();
  if (n.error) end["error"] = nb::make_tuple(code_name(n.error->code), n.error->message, n.error->param);
  end["prompt_logprobs"] = logprobs_of(n.prompt_logprobs);
  end["prompt_tokens"] = n.usage.prompt_tokens;
  end["completion_tokens"] = n.usage.completion_tokens;
  end["cached_tokens"] = n.usage.cached_tokens;
  end["queue"] = n.times.queue;
  end["first_token"] = n.times.first_token;
  end["seconds"] = n.times.end;
  return nb::make_tuple(n.request, choices, end);
}

class EngineCore {
 public:
  explicit EngineCore(const Settings& settings) : process_(getpid()) {
    const Config config = settings.config();
    auto opened = [&] {
      const nb::gil_scoped_release release;
      return Session::open(config);
    }();
    session_ = unwrap(std::move(opened));
  }

  // In a forked child the engine's threads are not there: nothing can be joined or freed.
  ~EngineCore() {
    if (getpid() != process_)
      (void)session_.release();
    else
      close();
  }

  std::pair<uint64_t, std::vector<int32_t>> submit(const std::shared_ptr<Channel>& channel,
                                                   const std::string& body, bool chat, bool stream) {
    check_process();
    auto submitted = [&]() -> Result<Submitted> {
      const nb::gil_scoped_release release;
      boost::system::error_code error;
      const boost::json::value value = boost::json::parse(body, error);
      if (error || !value.is_object())
        return make_error(ErrorCode::kInvalidArgument, "the request is no JSON object: {}", error.message());
      return session_->submit(value.get_object(), {.chat = chat, .stream = stream}, channel);
    }();
    Submitted s = unwrap(std::move(submitted));
    return {s.request, std::move(s.prompt)};
  }

  void cancel(uint64_t request) {
    check_process();
    if (!session_->closed()) session_->cancel(request);
  }

  void close() {
    if (getpid() != process_) return;
    const nb::gil_scoped_release release;
    session_->close();
  }

  bool closed() const { return session_->closed(); }

  std::vector<int32_t> encode(const std::string& text, bool add_special_tokens) const {
    const nb::gil_scoped_release release;
    const Session::Use model = use();
    return server::text_ids(*model.llm, text, add_special_tokens);
  }

  std::string decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const {
    const Session::Use model = use();
    for (const int32_t id : ids)
      if (id < 0 || id >= model->tokenizer->vocab_size())
        raise(make_error(ErrorCode::kInvalidArgument, "token id: got {}, expected 0 to {}", id,
                         model->tokenizer->vocab_size() - 1));
    return server::text_of(*model.llm, ids, skip_special_tokens);
  }

  nb::dict facts() const {
    const Session::Use model = use();
    const LoadSummary& s = model->summary;
    const EngineStats stats = model->engine->stats();
    nb::dict d;
    d["names"] = model->names;
    d["max_model_len"] = model->max_model_len;
    d["vocab_size"] = model->tokenizer->vocab_size();
    d["on_gpu"] = model->on_gpu;
    d["device"] = s.device;
    d["memory"] = s.memory;
    d["weight_bytes"] = s.weight_bytes;
    d["kv_bytes"] = s.kv_bytes;
    d["kv_dtype"] = s.kv_dtype;
    d["block_size"] = s.block_size;
    d["total_blocks"] = stats.total_blocks;
    d["free_blocks"] = stats.free_blocks;
    d["running"] = stats.running;
    d["waiting"] = stats.waiting;
    d["steps"] = stats.steps;
    d["preemptions"] = stats.preemptions;
    d["prompt_tokens"] = stats.prompt_tokens;
    d["cached_tokens"] = stats.cached_tokens;
    d["generated_tokens"] = stats.generated_tokens;
    return d;
  }

  bool reset_prefix_cache() const {
    const nb::gil_scoped_release release;
    return use()->engine->reset_prefix_cache();
  }

 private:
  void check_process() const {
    if (getpid() != process_)
      raise(
          make_error(ErrorCode::kUnavailable,
                     "this engine belongs to process {}: a forked process needs an engine of its own (start "
                     "processes with multiprocessing's 'spawn', or make the engine after the fork)",
                     process_));
  }

  Session::Use use() const {
    if (getpid() != process_) {
      const nb::gil_scoped_acquire acquire;
      check_process();
    }
    Session::Use model = session_->use();
    if (model) return model;
    const nb::gil_scoped_acquire acquire;
    raise(make_error(ErrorCode::kUnavailable, "the engine is closed"));
  }

  const pid_t process_;
  std::unique_ptr<Session> session_;
};

nb::list take(Channel& channel, double seconds) {
  std::vector<News> news;
  {
    const nb::gil_scoped_release release;
    news = channel.take(std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)));
  }
  nb::list out;
  for (const News& n : news) out.append(news_of(n));
  return out;
}

nb::dict gpu_of(const GpuInfo& gpu, const GpuReport& report) {
  nb::dict d;
  d["id"] = gpu.id;
  d["name"] = gpu.name;
  d["uuid"] = gpu.uuid;
  d["pci_bus_id"] = gpu.pci_bus_id;
  d["total_memory"] = gpu.total_bytes;
  d["free_memory"] = gpu.free_bytes;
  d["compute_capability"] = nb::none();
  if (gpu.capability) d["compute_capability"] = to_string(*gpu.capability);
  d["driver_version"] = report.driver_version;
  d["cuda_version"] = nb::none();
  if (report.cuda_version) d["cuda_version"] = cuda_version_text(*report.cuda_version);
  d["utilization"] = gpu.utilization;
  d["temperature"] = gpu.temperature;
  d["power"] = gpu.power;
  d["power_limit"] = gpu.power_limit;
  d["problem"] = gpu.problem;
  d["is_5090"] = is_rtx_5090(gpu.name);
  d["is_4090"] = is_rtx_4090(gpu.name);
  nb::dict settings;
  for (const DeviceSetting& s : device_settings(describe(gpu))) settings[s.key.c_str()] = s.value;
  d["settings"] = settings;
  return d;
}

nb::dict detect_gpus() {
  GpuReport report;
  {
    const nb::gil_scoped_release release;
    report = GpuDetector().detect();
  }
  nb::dict out;
  nb::list gpus;
  for (const GpuInfo& gpu : report.gpus) gpus.append(gpu_of(gpu, report));
  out["gpus"] = gpus;
  out["message"] = report.message;
  out["table"] = gpu_table(report);
  return out;
}

nb::list setting_keys() {
  nb::list out;
  for (const Key& k : keys())
    out.append(nb::make_tuple(std::string(k.section), std::string(k.name), std::string(k.text), k.expected(),
                              k.default_text()));
  return out;
}

int run(std::vector<std::string> arguments) {
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  argv.push_back(nullptr);
  const nb::gil_scoped_release release;
  return run_program(static_cast<int>(arguments.size()), argv.data());
}

}  // namespace

NB_MODULE(_core, m) {
  m.attr("__version__") = version();
  nb::class_<Settings>(m, "Settings")
      .def(nb::init<const std::string&>(), nb::arg("yaml") = "")
      .def("get", &Settings::get)
      .def("set", &Settings::set, nb::arg("path"), nb::arg("value").none())
      .def("yaml", &Settings::yaml);
  nb::class_<Channel>(m, "Channel")
      .def(nb::new_([] { return std::make_shared<Channel>(); }))
      .def("take", &take)
      .def("fd", &Channel::fd);
  nb::class_<EngineCore>(m, "EngineCore")
      .def(nb::init<const Settings&>())
      .def("submit", &EngineCore::submit)
      .def("cancel", &EngineCore::cancel)
      .def("close", &EngineCore::close)
      .def("closed", &EngineCore::closed)
      .def("encode", &EngineCore::encode)
      .def("decode", &EngineCore::decode)
      .def("facts", &EngineCore::facts)
      .def("reset_prefix_cache", &EngineCore::reset_prefix_cache);
  m.def("detect_gpus", &detect_gpus);
  m.def("setting_keys", &setting_keys);
  m.def("nearest", [](const std::string& word, const std::vector<std::string>& names) {
    const std::vector<std::string_view> views(names.begin(), names.end());
    return std::string(nearest(word, views));
  });
  m.def("set_log_level", [](const std::string& level) { set_log_level(level); });
  m.def("run", &run);
}

}  // namespace deepinfer::python
