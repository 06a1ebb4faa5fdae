// CPU, memory and limits of the machine, read from /proc and /sys below a root folder that a test may play.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "doctor/finding.h"

namespace deepinfer::doctor {

struct Host {
  std::filesystem::path root = "/";
  std::vector<int> cpus;  // that this process may use
};

// This process's machine.
Host this_host();

// `kernels`: those that were chosen; `forced`: DEEPINFER_CPU_ISA.
Finding check_instruction_set(const Host& host, std::string_view kernels,
                              const std::optional<std::string>& forced);
// `threads`: cpu.threads, 0 for auto.
Finding check_threads(const Host& host, int threads);
// Whether the scheduler has taken time from this cgroup.
Finding check_throttling(const Host& host);
Finding check_load(const Host& host);
Finding check_governor(const Host& host);
Finding check_huge_pages(const Host& host);
// `needed`: bytes that the model will take of it; 0: unknown, or it lies on a GPU.
Finding check_memory(const Host& host, int64_t needed);
Finding check_open_files(const Host& host, int max_connections);
// Of pages that may not be moved. Matters for InfiniBand between GPUs.
Finding check_locked_memory(const Host& host);

}  // namespace deepinfer::doctor
