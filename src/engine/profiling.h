// An engine's profiler: made from the settings, told about the model, and its report for the log.
#pragma once

#include <filesystem>
#include <memory>

#include "deepinfer/config.h"
#include "deepinfer/result.h"
#include "engine/load_summary.h"
#include "profile/profiler.h"

namespace deepinfer {

// Whether the settings ask for profiles, so that a server offers them.
bool profiling_wanted(const Config& config);

// Where they go: server.profile_dir, else the current folder.
std::filesystem::path profile_folder(const Config& config);

// kConfig when profiles are wanted and the folder cannot be made or written.
Result<void> check_profile_folder(const Config& config);

// Off until it is started. For a GPU it looks for CUPTI, before CUDA graphs are captured when profiles are
// wanted, since CUPTI knows best the graphs that it saw.
std::unique_ptr<Profiler> make_profiler(const Config& config, bool gpu);

ProfileFacts profile_facts(const Config& config, const LoadSummary& summary, bool gpu);

// The summary and where the trace is, or why there is none.
void log_profile(const ProfileReport& report);

// When it records: stops, writes to the folder, logs.
void finish_profile(Profiler* profiler, const Config& config);

}  // namespace deepinfer
