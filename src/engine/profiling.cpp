#include "engine/profiling.h"

#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "base/check.h"
#include "base/log.h"

namespace deepinfer {

namespace fs = std::filesystem;

bool profiling_wanted(const Config& config) {
  return config.server.enable_profiler || !config.server.profile_dir.empty();
}

fs::path profile_folder(const Config& config) {
  return config.server.profile_dir.empty() ? fs::path(".") : fs::path(config.server.profile_dir);
}

Result<void> check_profile_folder(const Config& config) {
  if (!profiling_wanted(config)) return {};
  const fs::path folder = profile_folder(config);
  std::error_code error;
  fs::create_directories(folder, error);
  if (!error && access(folder.c_str(), W_OK | X_OK) != 0) error.assign(errno, std::generic_category());
  if (!error) return {};
  return make_error(ErrorCode::kConfig,
                    "server.profile_dir: got {}, expected a folder for profiles that can be written: {}",
                    folder.string(), error.message());
}

std::unique_ptr<Profiler> make_profiler(const Config& config, bool gpu) {
  ProfilerOptions options{.max_events = static_cast<size_t>(config.server.profile_events), .gpu = gpu};
  if (gpu) options.cupti_folders = library_folders();
  auto profiler = std::make_unique<Profiler>(std::move(options));
  if (gpu && profiling_wanted(config)) profiler->attach_gpu();
  return profiler;
}

ProfileFacts profile_facts(const Config& config, const LoadSummary& summary, bool gpu) {
  return {.device = summary.device,
          .gpu = gpu,
          .max_num_seqs = config.gpu.max_num_seqs,
          .blocks = summary.kv_blocks,
          .kv_dtype = summary.kv_dtype,
          .quantized = !summary.weights.ends_with("float32") && !summary.weights.ends_with("float16"),
          .graphs = !config.gpu.enforce_eager};
}

void log_profile(const ProfileReport& report) {
  const std::string text = to_text(report.summary);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    log::info("{}", text.substr(begin, end - begin));
    begin = end + 1;
  }
  if (report.file.empty())
    log::error("{}", report.problem);
  else
    log::info("the profile is in {} ({} events, {} more found no room); open it in https://ui.perfetto.dev",
              report.file.string(), report.events, report.dropped);
}

void finish_profile(Profiler* profiler, const Config& config) {
  if (profiler == nullptr || !profiler->recording()) return;
  if (const Result<ProfileReport> report = profiler->stop(profiler->next_file(profile_folder(config))))
    log_profile(*report);
}

}  // namespace deepinfer
