#include "cli/doctor_command.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "backend/cpu_kernels.h"
#include "backend/cuda_gpu.h"
#include "base/log.h"
#include "base/paths.h"
#include "cli/load_settings.h"
#include "deepinfer/version.h"
#include "device/gpu_detector.h"
#include "device/select.h"
#include "doctor/gpu.h"
#include "doctor/host.h"
#include "doctor/model.h"
#include "doctor/network.h"
#include "doctor/storage.h"
#include "engine/find_device.h"

namespace deepinfer {
namespace {

using doctor::Finding;

// What reading the model's file may take.
constexpr int64_t kReadBytes = int64_t{256} << 20;
constexpr double kReadSeconds = 2;

std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  return value && *value ? std::optional<std::string>(value) : std::nullopt;
}

class Doctor {
 public:
  Doctor(const ConfigFlags& flags, const DoctorOptions& options) : flags_(flags), options_(options) {}

  std::vector<Finding> examine() {
    add(doctor::ok("DeepInfer", version()));
    settings();
    gpus();
    model();
    host();
    storage();
    network();
    return std::move(findings_);
  }

 private:
  void add(Finding finding) { findings_.push_back(std::move(finding)); }
  void add(std::vector<Finding> findings) {
    std::move(findings.begin(), findings.end(), std::back_inserter(findings_));
  }

  void settings();
  void gpus();
  void model();
  void host();
  void storage();
  void network();

  const ConfigFlags& flags_;
  const DoctorOptions& options_;
  std::vector<Finding> findings_;
  Config config_;  // as it is in force; the built-in one when it is wrong
  hub::Settings hub_;
  GpuReport report_;
  std::optional<int> gpu_;  // that a model would run on; unset: the CPU
  doctor::ModelFacts model_;
};

void Doctor::settings() {
  const char* topic = "Settings";
  const Result<LoadedConfig> loaded = load_settings(flags_);
  if (!loaded) {
    add(doctor::problem(topic, loaded.error().message + "; what follows is for built-in settings",
                        "deepinfer config (with the same flags)"));
  } else {
    config_ = loaded->config;
    const auto file = flags_.config();
    add(doctor::ok(topic,
                   file ? file->string() + " and what stands above it" : "built-in, environment and flags"));
    for (const std::string& warning : loaded->warnings) add(doctor::warning(topic, warning));
  }
  Result<hub::Settings> hub = hub::settings_from_environment();
  if (hub)
    hub_ = std::move(*hub);
  else
    add(doctor::problem("Hub settings", hub.error().message));
}

void Doctor::gpus() {
  DetectorOptions options = DetectorOptions::from_environment();
  options.health = true;
  report_ = GpuDetector(std::move(options)).detect();
  if (!report_.nvml) report_ = without_nvml(std::move(report_), cuda::device_count());
  add_cuda_facts(report_);
  const std::string_view built_for = cuda::built_for();
  const Result<DeviceChoice> choice = choose_device(config_.gpu.device, report_, cuda::built());
  if (choice && choice->gpu) gpu_ = choice->gpu->id;
  add(doctor::check_build(built_for, report_, config_.gpu));
  add(doctor::check_driver(report_, config_.gpu));
  if (!choice && config_.gpu.device != "cuda" && !report_.gpus.empty() && cuda::built())
    add(doctor::problem("Device", choice.error().message, "deepinfer gpu-info"));
  add(doctor::check_libraries(report_));
}

void Doctor::model() {
  model_ = doctor::check_model(config_, hub_);
  add(model_.finding);
  for (const GpuInfo& gpu : report_.gpus) {
    const bool used = gpu_ == gpu.id;
    auto findings = doctor::check_gpu(gpu, cuda::built_for(), config_.gpu,
                                      used ? static_cast<size_t>(model_.weight_bytes) : 0);
    // What is wrong with a card that is not used keeps no model from running.
    for (Finding& finding : findings)
      if (!used && finding.level == doctor::Level::kProblem) finding.level = doctor::Level::kWarning;
    add(std::move(findings));
  }
}

void Doctor::host() {
  const doctor::Host host = doctor::this_host();
  const std::optional<std::string> forced = variable("DEEPINFER_CPU_ISA");
  try {
    add(doctor::check_instruction_set(host, cpu::kernels_name(), forced));
  } catch (const std::exception& wrong) {
    add(doctor::problem("CPU", wrong.what(), "unset DEEPINFER_CPU_ISA"));
  }
  add(doctor::check_threads(host, config_.cpu.threads));
  add(doctor::check_throttling(host));
  add(doctor::check_load(host));
  add(doctor::check_governor(host));
  add(doctor::check_huge_pages(host));
  const bool counts = !gpu_ && model_.path;
  add(doctor::check_memory(host, counts ? doctor::memory_needed(config_, model_.weight_bytes) : 0));
  add(doctor::check_open_files(host, config_.server.max_connections));
  add(doctor::check_locked_memory(host));
}

void Doctor::storage() {
  if (model_.path) {
    const auto speed = doctor::measure_read(*model_.path, kReadBytes, kReadSeconds);
    add(speed ? doctor::check_read_speed(*model_.path, *speed, model_.file_bytes)
              : doctor::problem("Disk speed", speed.error().message));
  }
  add(doctor::check_space("Cache", doctor::space_of(cache_dir()), "DEEPINFER_CACHE_DIR"));
  if (!hub_.cache.empty())
    add(doctor::check_space("Hub cache", doctor::space_of(hub_.cache), "HF_HUB_CACHE"));
}

void Doctor::network() {
  add(doctor::check_port(config_.server, doctor::port_holder("/", config_.server.port)));
  add(doctor::check_exposure(config_.server));
  if (options_.hub) add(doctor::check_hub(hub_));
}

}  // namespace

int doctor_command(const ConfigFlags& flags, const DoctorOptions& options) {
  set_log_level("error");
  const std::vector<Finding> findings = Doctor(flags, options).examine();
  if (options.json)
    fmt::print("{}\n", doctor::findings_json(findings));
  else
    fmt::print("{}", doctor::findings_text(findings));
  return doctor::count(findings, doctor::Level::kProblem) > 0 ? 1 : 0;
}

}  // namespace deepinfer
