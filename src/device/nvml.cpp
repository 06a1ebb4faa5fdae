#include "device/nvml.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "base/check.h"

namespace deepinfer {
namespace {

// Layouts and values of NVML's public interface, which keeps them for as long as it keeps a function's
// version.
constexpr int kSuccess = 0;
constexpr int kInsufficientSize = 7;
constexpr int kDriverNotLoaded = 9;
constexpr int kLibraryDriverMismatch = 18;
constexpr int kNoPermission = 4;
constexpr unsigned kTemperatureOfGpu = 0;
constexpr int kClockOfMultiprocessors = 1;
constexpr int kUncorrected = 1, kSinceLoaded = 0;
constexpr unsigned long long kUnknownBytes = ~0ULL;

struct Memory {
  unsigned long long total, free, used;
};
struct Utilization {
  unsigned gpu, memory;
};
struct PciInfo {
  char legacy_id[16];
  unsigned domain, bus, device, device_id, subsystem_id;
  char id[32];
};
struct Process {
  unsigned pid;
  unsigned long long bytes;
  unsigned gpu_instance, compute_instance;
};

using Device = void*;

template <size_t N>
std::string text_of(const std::array<char, N>& buffer) {
  return {buffer.data(), std::find(buffer.begin(), buffer.end(), '\0')};
}

// NVML_ERROR_* that a user can do something about.
std::string advice(int code) {
  switch (code) {
    case kDriverNotLoaded:
      return "the NVIDIA driver is not loaded: install it or load it (modprobe nvidia); a container must be "
             "started with its GPUs (docker run --gpus all)";
    case kLibraryDriverMismatch:
      return "the NVIDIA driver in the kernel and its library are of different versions, as after an update: "
             "restart the machine";
    case kNoPermission:
      return "no permission to use the NVIDIA driver: this user needs access to /dev/nvidia*";
    default:
      return "";
  }
}

}  // namespace

struct Nvml::Functions {
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error_string)(int) = nullptr;
  int (*count)(unsigned*) = nullptr;
  int (*by_index)(unsigned, Device*) = nullptr;
  // These may be missing in an older driver; what they tell stays unknown then.
  int (*by_uuid)(const char*, Device*) = nullptr;
  int (*driver_version)(char*, unsigned) = nullptr;
  int (*cuda_version)(int*) = nullptr;
  int (*name)(Device, char*, unsigned) = nullptr;
  int (*uuid)(Device, char*, unsigned) = nullptr;
  int (*pci)(Device, PciInfo*) = nullptr;
  int (*memory)(Device, Memory*) = nullptr;
  int (*capability)(Device, int*, int*) = nullptr;
  int (*utilization)(Device, Utilization*) = nullptr;
  int (*temperature)(Device, unsigned, unsigned*) = nullptr;
  int (*power)(Device, unsigned*) = nullptr;
  int (*power_limit)(Device, unsigned*) = nullptr;
  int (*compute_processes)(Device, unsigned*, Process*) = nullptr;
  int (*graphics_processes)(Device, unsigned*, Process*) = nullptr;
  int (*throttle_reasons)(Device, unsigned long long*) = nullptr;
  int (*clock)(Device, int, unsigned*) = nullptr;
  int (*max_clock)(Device, int, unsigned*) = nullptr;
  int (*default_power_limit)(Device, unsigned*) = nullptr;
  int (*ecc_mode)(Device, int*, int*) = nullptr;
  int (*ecc_errors)(Device, int, int, unsigned long long*) = nullptr;
  int (*persistence)(Device, int*) = nullptr;
  int (*link_width)(Device, unsigned*) = nullptr;
  int (*max_link_width)(Device, unsigned*) = nullptr;

  Result<void> bind(const SharedLibrary& library);
};

namespace {

template <class Function>
Result<void> need(const SharedLibrary& library, const char* name, Function*& out) {
  DI_ASSIGN(out, library.symbol<Function>(name));
  return {};
}

template <class Function>
void want(const SharedLibrary& library, const char* name, Function*& out) {
  if (auto found = library.symbol<Function>(name)) out = *found;
}

}  // namespace

Result<void> Nvml::Functions::bind(const SharedLibrary& library) {
  DI_TRY(need(library, "nvmlInit_v2", init));
  DI_TRY(need(library, "nvmlShutdown", shutdown));
  DI_TRY(need(library, "nvmlErrorString", error_string));
  DI_TRY(need(library, "nvmlDeviceGetCount_v2", count));
  DI_TRY(need(library, "nvmlDeviceGetHandleByIndex_v2", by_index));
  want(library, "nvmlDeviceGetHandleByUUID", by_uuid);
  want(library, "nvmlSystemGetDriverVersion", driver_version);
  want(library, "nvmlSystemGetCudaDriverVersion", cuda_version);
  want(library, "nvmlSystemGetCudaDriverVersion_v2", cuda_version);
  want(library, "nvmlDeviceGetName", name);
  want(library, "nvmlDeviceGetUUID", uuid);
  want(library, "nvmlDeviceGetPciInfo_v3", pci);
  want(library, "nvmlDeviceGetMemoryInfo", memory);
  want(library, "nvmlDeviceGetCudaComputeCapability", capability);
  want(library, "nvmlDeviceGetUtilizationRates", utilization);
  want(library, "nvmlDeviceGetTemperature", temperature);
  want(library, "nvmlDeviceGetPowerUsage", power);
  want(library, "nvmlDeviceGetEnforcedPowerLimit", power_limit);
  want(library, "nvmlDeviceGetComputeRunningProcesses_v3", compute_processes);
  want(library, "nvmlDeviceGetGraphicsRunningProcesses_v3", graphics_processes);
  want(library, "nvmlDeviceGetCurrentClocksThrottleReasons", throttle_reasons);
  want(library, "nvmlDeviceGetCurrentClocksEventReasons", throttle_reasons);  // its newer name
  want(library, "nvmlDeviceGetClockInfo", clock);
  want(library, "nvmlDeviceGetMaxClockInfo", max_clock);
  want(library, "nvmlDeviceGetPowerManagementDefaultLimit", default_power_limit);
  want(library, "nvmlDeviceGetEccMode", ecc_mode);
  want(library, "nvmlDeviceGetTotalEccErrors", ecc_errors);
  want(library, "nvmlDeviceGetPersistenceMode", persistence);
  want(library, "nvmlDeviceGetCurrPcieLinkWidth", link_width);
  want(library, "nvmlDeviceGetMaxPcieLinkWidth", max_link_width);
  return {};
}

Nvml::Nvml(std::unique_ptr<Functions> functions) : functions_(std::move(functions)) {}

Nvml::Nvml(Nvml&&) noexcept = default;

Nvml::~Nvml() {
  if (functions_) functions_->shutdown();
}

Result<Nvml> Nvml::open(const std::vector<LibraryFolder>& folders) {
  auto functions = std::make_unique<Functions>();
  const LibrarySpec spec{.name = "NVML",
                         .files = {"libnvidia-ml.so.1"},
                         .remedy = "It belongs to the NVIDIA driver.",
                         .check = [&](const SharedLibrary& library) { return functions->bind(library); }};
  DI_ASSIGN(const SharedLibrary library, load_library(spec, folders));
  if (const int code = functions->init(); code != kSuccess) {
    std::string text = advice(code);
    if (text.empty()) text = fmt::format("NVML cannot be initialized: {}", functions->error_string(code));
    return Error{ErrorCode::kMemory, std::move(text), {}};
  }
  return Nvml(std::move(functions));
}

Error Nvml::error(const char* what, int code) const {
  std::string text = advice(code);
  if (text.empty()) text = functions_->error_string(code);
  return make_error(ErrorCode::kMemory, "{}: {}", what, text);
}

std::optional<std::string> Nvml::driver_version() const {
  std::array<char, 128> buffer{};
  if (!functions_->driver_version || functions_->driver_version(buffer.data(), buffer.size() - 1) != kSuccess)
    return std::nullopt;
  return text_of(buffer);
}

std::optional<int> Nvml::cuda_version() const {
  int version = 0;
  if (!functions_->cuda_version || functions_->cuda_version(&version) != kSuccess || version <= 0)
    return std::nullopt;
  return version;
}

Result<int> Nvml::count() const {
  unsigned n = 0;
  if (const int code = functions_->count(&n); code != kSuccess) return error("NVML cannot count GPUs", code);
  return static_cast<int>(n);
}

Result<Nvml::Handle> Nvml::device(int index) const {
  Device device = nullptr;
  const int code = functions_->by_index(static_cast<unsigned>(index), &device);
  if (code != kSuccess) return error("NVML cannot open the GPU", code);
  return device;
}

Result<Nvml::Handle> Nvml::device(const std::string& uuid) const {
  Device device = nullptr;
  if (!functions_->by_uuid)
    return make_error(ErrorCode::kMemory, "this driver's NVML finds no device by its UUID");
  const int code = functions_->by_uuid(uuid.c_str(), &device);
  if (code != kSuccess) return error("NVML cannot open the device", code);
  return device;
}

std::string Nvml::uuid(Handle device) const {
  std::array<char, 97> buffer{};
  if (!functions_->uuid || functions_->uuid(device, buffer.data(), buffer.size() - 1) != kSuccess) return "";
  return text_of(buffer);
}

std::vector<GpuProcess> Nvml::processes(Handle device) const {
  std::map<unsigned, GpuProcess> found;  // one that computes and draws is in both lists
  for (const auto list : {functions_->compute_processes, functions_->graphics_processes}) {
    if (!list) continue;
    std::vector<Process> buffer(64);
    auto n = static_cast<unsigned>(buffer.size());
    int code = list(device, &n, buffer.data());
    for (int tries = 0; code == kInsufficientSize && tries < 3; ++tries) {  // it may grow meanwhile
      buffer.resize(std::min<size_t>(size_t{n} + 16, 1 << 16));
      n = static_cast<unsigned>(buffer.size());
      code = list(device, &n, buffer.data());
    }
    if (code != kSuccess) continue;
    for (size_t i = 0; i < std::min<size_t>(n, buffer.size()); ++i) {
      const Process& p = buffer[i];
      GpuProcess& out = found[p.pid];
      out.pid = p.pid;
      if (p.bytes != kUnknownBytes) out.bytes = std::max<uint64_t>(out.bytes.value_or(0), p.bytes);
    }
  }
  std::vector<GpuProcess> out;
  for (auto& [pid, process] : found) out.push_back(std::move(process));
  std::sort(out.begin(), out.end(), [](const GpuProcess& a, const GpuProcess& b) {
    return std::pair(b.bytes.value_or(0), a.pid) < std::pair(a.bytes.value_or(0), b.pid);
  });
  return out;
}

GpuInfo Nvml::info(Handle device) const {
  const Functions& f = *functions_;
  GpuInfo out;
  std::array<char, 97> name{};
  if (f.name && f.name(device, name.data(), name.size() - 1) == kSuccess) out.name = text_of(name);
  out.uuid = uuid(device);
  PciInfo pci{};
  if (f.pci && f.pci(device, &pci) == kSuccess)
    out.pci_bus_id.assign(pci.id, std::find(pci.id, pci.id + sizeof pci.id, '\0'));
  if (Memory memory{}; f.memory && f.memory(device, &memory) == kSuccess) {
    out.total_bytes = memory.total;
    out.free_bytes = memory.free;
  }
  int major = 0, minor = 0;
  if (f.capability && f.capability(device, &major, &minor) == kSuccess)
    out.capability = ComputeCapability{major, minor};
  if (Utilization u{}; f.utilization && f.utilization(device, &u) == kSuccess)
    out.utilization = static_cast<int>(u.gpu);
  unsigned value = 0;
  if (f.temperature && f.temperature(device, kTemperatureOfGpu, &value) == kSuccess)
    out.temperature = static_cast<int>(value);
  if (f.power && f.power(device, &value) == kSuccess) out.power = value / 1000.0;
  if (f.power_limit && f.power_limit(device, &value) == kSuccess) out.power_limit = value / 1000.0;
  out.processes = processes(device);
  return out;
}

GpuHealth Nvml::health(Handle device) const {
  const Functions& f = *functions_;
  GpuHealth out;
  if (unsigned long long bits = 0; f.throttle_reasons && f.throttle_reasons(device, &bits) == kSuccess)
    out.throttle_reasons = bits;
  unsigned value = 0;
  if (f.clock && f.clock(device, kClockOfMultiprocessors, &value) == kSuccess)
    out.clock = static_cast<int>(value);
  if (f.max_clock && f.max_clock(device, kClockOfMultiprocessors, &value) == kSuccess)
    out.max_clock = static_cast<int>(value);
  if (f.default_power_limit && f.default_power_limit(device, &value) == kSuccess)
    out.default_power_limit = value / 1000.0;
  int now = 0, pending = 0;
  if (f.ecc_mode && f.ecc_mode(device, &now, &pending) == kSuccess) out.ecc = now != 0;
  if (unsigned long long errors = 0;
      f.ecc_errors && f.ecc_errors(device, kUncorrected, kSinceLoaded, &errors) == kSuccess)
    out.uncorrected_errors = errors;
  if (f.persistence && f.persistence(device, &now) == kSuccess) out.persistence = now != 0;
  if (f.link_width && f.link_width(device, &value) == kSuccess) out.link_width = static_cast<int>(value);
  if (f.max_link_width && f.max_link_width(device, &value) == kSuccess)
    out.max_link_width = static_cast<int>(value);
  return out;
}

}  // namespace deepinfer
