// A stand-in for libnvidia-ml.so.1, built under that name: the real search and loading are what tests use.
// FAKE_NVML says what it answers, read again at each nvmlInit_v2: items separated by ';'
//   init=9                 what nvmlInit_v2 returns
//   driver=580.82.07       cuda=13000
//   gpu=NAME|UUID|TOTAL_MIB|FREE_MIB|12.0|BUSY|TEMP|MILLIWATTS|LIMIT_MILLIWATTS|PID:MIB,PID:-
//       |THROTTLE_BITS|MHZ|MAX_MHZ|DEFAULT_MILLIWATTS|ECC|ERRORS|PERSISTENCE|LANES|MAX_LANES
// "-" in a field makes the call answer "not supported"; a gpu named "lost" cannot be opened. With
// FAKE_NVML_LOG each count of the devices adds a line to that file.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr int kOk = 0, kInvalid = 2, kNotSupported = 3, kNotFound = 6, kTooSmall = 7, kLost = 15;
constexpr unsigned long long kUnknown = ~0ULL;

struct Gpu {
  std::vector<std::string> fields;
  const std::string& at(size_t i) const {
    static const std::string none = "-";
    return i < fields.size() ? fields[i] : none;
  }
};

struct State {
  int init = 0;
  std::string driver = "-", cuda = "-";
  std::vector<Gpu> gpus;
};

State& state() {
  static State s;
  return s;
}

std::vector<std::string> split(std::string_view text, char by) {
  std::vector<std::string> out;
  for (;;) {
    const size_t end = std::min(text.find(by), text.size());
    out.emplace_back(text.substr(0, end));
    if (end == text.size()) return out;
    text.remove_prefix(end + 1);
  }
}

int text_out(const std::string& value, char* buffer, unsigned size) {
  if (value == "-") return kNotSupported;
  if (value.size() + 1 > size) return kTooSmall;
  std::memcpy(buffer, value.c_str(), value.size() + 1);
  return kOk;
}

template <class T>
int number_out(const std::string& value, T* out, unsigned long long factor = 1) {
  if (value == "-") return kNotSupported;
  *out = static_cast<T>(std::strtoull(value.c_str(), nullptr, 10) * factor);
  return kOk;
}

const Gpu& gpu_of(void* device) {
  return *static_cast<Gpu*>(device);
}

}  // namespace

extern "C" {

int nvmlInit_v2() {
  State s;
  const char* text = std::getenv("FAKE_NVML");
  for (const std::string& item : split(text == nullptr ? "" : text, ';')) {
    if (item.starts_with("init=")) s.init = std::atoi(item.c_str() + 5);
    if (item.starts_with("driver=")) s.driver = item.substr(7);
    if (item.starts_with("cuda=")) s.cuda = item.substr(5);
    if (item.starts_with("gpu=")) s.gpus.push_back({split(item.substr(4), '|')});
  }
  state() = std::move(s);
  return state().init;
}

int nvmlShutdown() {
  return kOk;
}

const char* nvmlErrorString(int code) {
  return code == kLost ? "GPU is lost" : code == kNotFound ? "Not Found" : "Unknown Error";
}

int nvmlSystemGetDriverVersion(char* out, unsigned size) {
  return text_out(state().driver, out, size);
}

int nvmlSystemGetCudaDriverVersion(int* out) {
  return number_out(state().cuda, out);
}

int nvmlDeviceGetCount_v2(unsigned* out) {
  if (const char* path = std::getenv("FAKE_NVML_LOG")) {
    if (std::FILE* file = std::fopen(path, "a")) {
      std::fputs("count\n", file);
      std::fclose(file);
    }
  }
  *out = static_cast<unsigned>(state().gpus.size());
  return kOk;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned i, void** out) {
  if (i >= state().gpus.size()) return kInvalid;
  if (state().gpus[i].at(0) == "lost") return kLost;
  *out = &state().gpus[i];
  return kOk;
}

// A MIG device is a gpu whose UUID begins so; the real library counts only whole GPUs, this one both.
int nvmlDeviceGetHandleByUUID(const char* uuid, void** out) {
  for (Gpu& gpu : state().gpus) {
    if (gpu.at(1) != uuid) continue;
    *out = &gpu;
    return kOk;
  }
  return kNotFound;
}

int nvmlDeviceGetName(void* device, char* out, unsigned size) {
  return text_out(gpu_of(device).at(0), out, size);
}

int nvmlDeviceGetUUID(void* device, char* out, unsigned size) {
  return text_out(gpu_of(device).at(1), out, size);
}

int nvmlDeviceGetMemoryInfo(void* device, unsigned long long* out) {
  unsigned long long total = 0, free = 0;
  if (number_out(gpu_of(device).at(2), &total, 1 << 20) != kOk) return kNotSupported;
  if (number_out(gpu_of(device).at(3), &free, 1 << 20) != kOk) return kNotSupported;
  out[0] = total;
  out[1] = free;
  out[2] = total - free;
  return kOk;
}

int nvmlDeviceGetCudaComputeCapability(void* device, int* major, int* minor) {
  const std::string& text = gpu_of(device).at(4);
  return std::sscanf(text.c_str(), "%d.%d", major, minor) == 2 ? kOk : kNotSupported;
}

int nvmlDeviceGetUtilizationRates(void* device, unsigned* out) {
  out[1] = 0;
  return number_out(gpu_of(device).at(5), out);
}

int nvmlDeviceGetTemperature(void* device, unsigned sensor, unsigned* out) {
  return sensor == 0 ? number_out(gpu_of(device).at(6), out) : kInvalid;
}

int nvmlDeviceGetPowerUsage(void* device, unsigned* out) {
  return number_out(gpu_of(device).at(7), out);
}

int nvmlDeviceGetEnforcedPowerLimit(void* device, unsigned* out) {
  return number_out(gpu_of(device).at(8), out);
}

struct FakeProcess {
  unsigned pid;
  unsigned long long bytes;
  unsigned gpu_instance, compute_instance;
};

int nvmlDeviceGetComputeRunningProcesses_v3(void* device, unsigned* count, FakeProcess* out) {
  const std::string& text = gpu_of(device).at(9);
  if (text == "-") return kNotSupported;
  const std::vector<std::string> all = text.empty() ? std::vector<std::string>() : split(text, ',');
  const unsigned room = *count;
  *count = static_cast<unsigned>(all.size());
  if (all.size() > room) return kTooSmall;
  for (size_t i = 0; i < all.size(); ++i) {
    const std::vector<std::string> parts = split(all[i], ':');
    out[i] = {static_cast<unsigned>(std::atoi(parts[0].c_str())), kUnknown, 0, 0};
    if (parts.size() > 1) number_out(parts[1], &out[i].bytes, 1 << 20);
  }
  return kOk;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void* device, unsigned long long* out) {
  return number_out(gpu_of(device).at(10), out);
}

int nvmlDeviceGetClockInfo(void* device, int clock, unsigned* out) {
  return clock == 1 ? number_out(gpu_of(device).at(11), out) : kInvalid;
}

int nvmlDeviceGetMaxClockInfo(void* device, int clock, unsigned* out) {
  return clock == 1 ? number_out(gpu_of(device).at(12), out) : kInvalid;
}

int nvmlDeviceGetPowerManagementDefaultLimit(void* device, unsigned* out) {
  return number_out(gpu_of(device).at(13), out);
}

int nvmlDeviceGetEccMode(void* device, int* current, int* pending) {
  *pending = 0;
  return number_out(gpu_of(device).at(14), current);
}

int nvmlDeviceGetTotalEccErrors(void* device, int kind, int since, unsigned long long* out) {
  return kind == 1 && since == 0 ? number_out(gpu_of(device).at(15), out) : kInvalid;
}

int nvmlDeviceGetPersistenceMode(void* device, int* out) {
  return number_out(gpu_of(device).at(16), out);
}

int nvmlDeviceGetCurrPcieLinkWidth(void* device, unsigned* out) {
  return number_out(gpu_of(device).at(17), out);
}

int nvmlDeviceGetMaxPcieLinkWidth(void* device, unsigned* out) {
  return number_out(gpu_of(device).at(18), out);
}

}  // extern "C"
