// The extension module deepinfer._core: settings, engine, GPUs. What Python users see is in deepinfer/*.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <functional>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "cli/program.h"
#include "config/nearest.h"
#include "deepinfer/version.h"
#include "device/gpu_detector.h"
#include "device/gpu_text.h"
#include "errors.h"
#include "server/params.h"
#include "server/prompts.h"
#include "session.h"
#include "settings.h"

namespace nb = nanobind;

namespace deepinfer::python {
namespace {

// None when there are none.
nb::object logprobs_of(const std::vector<OutputToken>& tokens) {
  if (tokens.empty()) return nb::none();
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

// What belongs to the process that made it cannot serve a forked one: its threads are not there, and locks
// may be held for ever.
void check_process(pid_t process) {
  if (getpid() != process)
    raise(make_error(ErrorCode::kUnavailable,
                     "this engine belongs to process {}: a forked process needs an engine of its own (start "
                     "processes with multiprocessing's 'spawn', or make the engine after the fork)",
                     process));
}

// The channel as Python holds it. Its requests hold the channel alone: a pointer that nanobind makes would
// take the GIL where the last of them ends, on the engine's own threads.
struct ChannelHandle {
  std::shared_ptr<Channel> channel = std::make_shared<Channel>();
};

// An answer is complete a moment before its engine is at rest: tries again for a tenth of a second.
bool at_rest(const std::function<bool()>& done) {
  constexpr int kTries = 50;
  for (int i = 0; i < kTries; ++i) {
    if (done()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

class EngineCore {
 public:
  // `others`: bytes of the host that other engines of this process hold.
  EngineCore(const Settings& settings, int64_t others) : process_(getpid()) {
    const Config config = settings.config();
    set_log_level(settings.origin("server.log_level") == "built-in" ? "warning" : config.server.log_level);
    auto opened = [&] {
      const nb::gil_scoped_release release;
      return Session::open(config, others);
    }();
    session_ = unwrap(std::move(opened));
  }

  // In a forked child nothing can be joined or freed.
  ~EngineCore() {
    if (getpid() != process_)
      (void)session_.release();
    else
      close();
  }

  std::pair<uint64_t, std::vector<int32_t>> submit(const ChannelHandle& channel, const std::string& body,
                                                   bool chat, bool stream) {
    check_process(process_);
    auto submitted = [&]() -> Result<Submitted> {
      const nb::gil_scoped_release release;
      boost::system::error_code error;
      const boost::json::value value = boost::json::parse(body, error);
      if (error || !value.is_object())
        return make_error(ErrorCode::kInvalidArgument, "the request is no JSON object: {}", error.message());
      return session_->submit(value.get_object(), {.chat = chat, .stream = stream}, channel.channel);
    }();
    Submitted s = unwrap(std::move(submitted));
    return {s.request, std::move(s.prompt)};
  }

  void cancel(uint64_t request) {
    if (getpid() == process_ && !session_->closed()) session_->cancel(request);
  }

  void close() {
    if (getpid() != process_) return;
    const nb::gil_scoped_release release;
    session_->close();
  }

  bool closed() const { return session_->closed(); }

  std::vector<int32_t> encode(const std::string& text, bool add_special_tokens) const {
    const Session::Use model = use();
    const nb::gil_scoped_release release;
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
    d["kv_dtype"] = s.kv_dtype;
    d["block_size"] = s.block_size;
    d["total_blocks"] = stats.total_blocks;
    d["free_blocks"] = stats.free_blocks;
    d["cached_blocks"] = stats.cached_blocks;
    d["running"] = stats.running;
    d["waiting"] = stats.waiting;
    d["steps"] = stats.steps;
    d["preemptions"] = stats.preemptions;
    d["prompt_tokens"] = stats.prompt_tokens;
    d["cached_tokens"] = stats.cached_tokens;
    d["generated_tokens"] = stats.generated_tokens;
    return d;
  }

  // Bytes, by what they are for.
  nb::dict memory() const {
    const Session::Use model = use();
    HeldMemory held;
    {
      const nb::gil_scoped_release release;
      held = model->engine->held_memory();
    }
    nb::dict d;
    d["weights"] = model->summary.weight_bytes;
    d["kv_cache"] = model->summary.kv_bytes;
    d["kv_cache_resident"] = held.cache;
    d["graphs"] = held.graphs;
    d["workspaces"] = held.workspaces;
    d["pinned"] = held.pinned;
    return d;
  }

  bool reset_prefix_cache() const {
    const Session::Use model = use();
    const nb::gil_scoped_release release;
    Engine& engine = *model->engine;
    return at_rest([&engine] { return engine.reset_prefix_cache(); });
  }

  std::optional<std::pair<int64_t, int64_t>> empty_cache() const {
    const Session::Use model = use();
    const nb::gil_scoped_release release;
    Engine& engine = *model->engine;
    std::optional<EmptiedCache> emptied;
    if (!at_rest([&] { return (emptied = engine.empty_cache()).has_value(); })) return std::nullopt;
    return std::pair(emptied->blocks, emptied->bytes);
  }

  // False: one is being recorded already.
  bool start_profile() const {
    const Session::Use model = use();
    const Result<void> started = [&] {
      const nb::gil_scoped_release release;
      return model->profiler->start();
    }();
    if (!started && started.error().code == ErrorCode::kUnavailable) return false;
    unwrap(started);
    return true;
  }

  // The report as JSON and as text; a file's name that is empty is chosen. Unset: nothing was recorded.
  std::optional<std::pair<std::string, std::string>> stop_profile(const std::string& file) const {
    const Session::Use model = use();
    const nb::gil_scoped_release release;
    Profiler& profiler = *model->profiler;
    const Result<ProfileReport> report =
        profiler.stop(file.empty() ? profiler.next_file(".") : std::filesystem::path(file));
    if (!report) return std::nullopt;
    boost::json::object out = to_json(report->summary);
    out["file"] = report->file.string();
    out["problem"] = report->problem;
    out["events"] = report->events;
    out["dropped"] = report->dropped;
    return std::pair(boost::json::serialize(out), to_text(report->summary));
  }

 private:
  Session::Use use() const {
    check_process(process_);
    // close() may hold the lock for as long as a step takes.
    Session::Use model = [&] {
      const nb::gil_scoped_release release;
      return session_->use();
    }();
    if (!model) raise(make_error(ErrorCode::kUnavailable, "the engine is closed"));
    return model;
  }

  const pid_t process_;
  std::unique_ptr<Session> session_;
};

nb::list take(const ChannelHandle& handle, double seconds) {
  Channel& channel = *handle.channel;
  check_process(channel.process());
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

// Names that a request may have; what is known and not built is refused with what to do instead.
std::vector<std::string> parameter_names() {
  std::vector<std::string> out;
  for (const server::ParamRow& row : server::param_table()) out.emplace_back(row.name);
  for (const server::RefusedRow& row : server::refused_table()) out.emplace_back(row.name);
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
  set_log_level("warning");
  nb::class_<Settings>(m, "Settings")
      .def(nb::init<const std::string&, int>(), nb::arg("yaml") = "", nb::arg("gpu") = -1)
      .def("get", &Settings::get, nb::sig("def get(self, path: str) -> typing.Any"))
      .def("set", &Settings::set, nb::arg("path"), nb::arg("value").none(),
           nb::sig("def set(self, path: str, value: typing.Any) -> None"))
      .def("yaml", &Settings::yaml);
  nb::class_<ChannelHandle>(m, "Channel")
      .def(nb::init<>())
      .def("take", &take, nb::arg("seconds"),
           nb::sig("def take(self, seconds: float) -> list[tuple[int, list[typing.Any], dict[str, "
                   "typing.Any] | None]]"))
      .def("fd", [](const ChannelHandle& handle) { return handle.channel->fd(); });
  nb::class_<EngineCore>(m, "EngineCore")
      .def(nb::init<const Settings&, int64_t>(), nb::arg("settings"), nb::arg("others") = 0)
      .def("submit", &EngineCore::submit, nb::arg("channel"), nb::arg("body"), nb::arg("chat"),
           nb::arg("stream"))
      .def("cancel", &EngineCore::cancel, nb::arg("request"))
      .def("close", &EngineCore::close)
      .def("closed", &EngineCore::closed)
      .def("encode", &EngineCore::encode, nb::arg("text"), nb::arg("add_special_tokens"))
      .def("decode", &EngineCore::decode, nb::arg("ids"), nb::arg("skip_special_tokens"))
      .def("facts", &EngineCore::facts, nb::sig("def facts(self) -> dict[str, typing.Any]"))
      .def("memory", &EngineCore::memory, nb::sig("def memory(self) -> dict[str, int]"))
      .def("reset_prefix_cache", &EngineCore::reset_prefix_cache)
      .def("empty_cache", &EngineCore::empty_cache)
      .def("start_profile", &EngineCore::start_profile)
      .def("stop_profile", &EngineCore::stop_profile, nb::arg("file"));
  m.def("detect_gpus", &detect_gpus, nb::sig("def detect_gpus() -> dict[str, typing.Any]"));
  m.def("setting_keys", &setting_keys, nb::sig("def setting_keys() -> list[tuple[str, str, str, str, str]]"));
  m.def(
      "nearest",
      [](const std::string& word, const std::vector<std::string>& names) {
        const std::vector<std::string_view> views(names.begin(), names.end());
        return std::string(nearest(word, views));
      },
      nb::arg("word"), nb::arg("names"));
  m.def("parameter_names", &parameter_names);
  m.def("version", [] { return std::string(version()); });
  m.def("run", &run, nb::arg("arguments"));
}

}  // namespace deepinfer::python
