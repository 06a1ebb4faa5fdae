#include "device/gpu_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <vector>

#include "device/gpu_detector.h"

namespace deepinfer {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

// JSON of a string that came from outside: what is no plain ASCII is escaped, broken UTF-8 replaced.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += fmt::format("\\{}", c);
    else if (byte < 0x20)
      out += fmt::format("\\u{:04x}", byte);
    else
      out += byte < 0x7f ? c : '?';
  }
  return out + "\"";
}

std::string text_or_null(const std::string& text) {
  return text.empty() ? "null" : quoted(text);
}

template <class T>
std::string number_or_null(const std::optional<T>& value) {
  return value ? fmt::format("{}", *value) : "null";
}

std::string watts_or_null(const std::optional<double>& value) {
  return value ? fmt::format("{:.1f}", *value) : "null";
}

std::string gb_or_null(const std::optional<uint64_t>& bytes) {
  return bytes ? fmt::format("{:.2f}", static_cast<double>(*bytes) / kGiB) : "null";
}

std::string recommended_json(const GpuInfo& gpu) {
  const RecommendedSettings r = recommended_settings(describe(gpu));
  return fmt::format(R"({{"gpu_memory_utilization":{:.2f},"max_num_seqs":{},"max_num_batched_tokens":{},)"
                     R"("nvidia_5090_optimizations":{},"source":{}}})",
                     r.gpu_memory_utilization, r.max_num_seqs, r.max_num_batched_tokens,
                     r.nvidia_5090_optimizations, quoted(r.source));
}

std::string detail_json(const GpuInfo& gpu) {
  std::string processes;
  for (const GpuProcess& p : gpu.processes)
    processes += fmt::format(R"({}{{"pid":{},"name":{},"memory_gb":{}}})", processes.empty() ? "" : ",",
                             p.pid, text_or_null(p.name), gb_or_null(p.bytes));
  return fmt::format(
      R"(,"uuid":{},"pci_bus_id":{},"power_limit":{},"processes":[{}],"problem":{},"peers":{})",
      text_or_null(gpu.uuid), text_or_null(gpu.pci_bus_id), watts_or_null(gpu.power_limit), processes,
      text_or_null(gpu.problem), gpu.peers ? fmt::format("[{}]", fmt::join(*gpu.peers, ",")) : "null");
}

std::string libraries_json(const GpuReport& report) {
  std::string out;
  for (const LibraryInfo& l : report.libraries)
    out +=
        fmt::format(R"({}{{"name":{},"version":{},"path":{},"problem":{}}})", out.empty() ? "" : ",",
                    quoted(l.name), text_or_null(l.version), text_or_null(l.path), text_or_null(l.problem));
  return fmt::format(R"(,"libraries":[{}])", out);
}

std::string one_json(const GpuInfo& gpu, const GpuReport& report, bool detail) {
  return fmt::format(
      R"({{"id":{},"name":{},"total_memory_gb":{},"free_memory_gb":{},"compute_capability":{},)"
      R"("driver_version":{},"cuda_version":{},"is_nvidia_5090":{},"is_nvidia_4090":{},"utilization":{},)"
      R"("temperature":{},"power":{},"recommended":{}{}}})",
      gpu.id, text_or_null(gpu.name), gb_or_null(gpu.total_bytes), gb_or_null(gpu.free_bytes),
      text_or_null(gpu.capability ? to_string(*gpu.capability) : ""),
      text_or_null(report.driver_version.value_or("")),
      text_or_null(report.cuda_version ? cuda_version_text(*report.cuda_version) : ""), is_rtx_5090(gpu.name),
      is_rtx_4090(gpu.name), number_or_null(gpu.utilization), number_or_null(gpu.temperature),
      watts_or_null(gpu.power), recommended_json(gpu), detail ? detail_json(gpu) : "");
}

using Cells = std::array<std::string, 8>;

std::string or_unknown(bool known, const std::string& text) {
  return known ? text : "?";
}

Cells cells_of(const GpuInfo& gpu) {
  const RecommendedSettings r = recommended_settings(describe(gpu));
  const auto gib = [](const std::optional<uint64_t>& bytes) {
    return bytes ? fmt::format("{:.1f}", static_cast<double>(*bytes) / kGiB) : "?";
  };
  const auto watts = [](const std::optional<double>& value) {
    return value ? fmt::format("{:.0f}", *value) : "?";
  };
  return {std::to_string(gpu.id),
          gpu.name.empty() ? "?" : gpu.name,
          fmt::format("{} of {} GiB", gib(gpu.free_bytes), gib(gpu.total_bytes)),
          gpu.capability ? to_string(*gpu.capability) : "?",
          or_unknown(gpu.utilization.has_value(), fmt::format("{} %", gpu.utilization.value_or(0))),
          or_unknown(gpu.temperature.has_value(), fmt::format("{} C", gpu.temperature.value_or(0))),
          fmt::format("{} of {} W", watts(gpu.power), watts(gpu.power_limit)),
          fmt::format("{:.2f} of memory, {} sequences, {} tokens a step", r.gpu_memory_utilization,
                      r.max_num_seqs, r.max_num_batched_tokens)};
}

// How the GPUs reach each other's memory; empty for one, or where nobody asked.
std::string peers_text(const GpuReport& report) {
  if (report.gpus.size() < 2) return "";
  const size_t others = report.gpus.size() - 1;
  std::string out;
  bool all = true, none = true;
  for (const GpuInfo& gpu : report.gpus) {
    if (!gpu.peers) return "";
    all &= gpu.peers->size() == others;
    none &= gpu.peers->empty();
    out += fmt::format("    GPU {} reads the memory of {}\n", gpu.id,
                       gpu.peers->empty() ? "no other" : fmt::format("GPU {}", fmt::join(*gpu.peers, ", ")));
  }
  if (all) return "Peer access: between all GPUs.\n";
  if (none)
    return "Peer access: none, all that GPUs exchange goes through the host. For a model that fits one card, "
           "start a server on each.\n";
  return "Peer access:\n" + out;
}

std::string row_text(const Cells& cells, const std::array<size_t, 8>& widths) {
  std::string line;
  for (size_t i = 0; i < cells.size(); ++i)
    line += i + 1 == cells.size() ? cells[i] : fmt::format("{:<{}}  ", cells[i], widths[i]);
  return line + "\n";
}

}  // namespace

std::string gpu_json(const GpuReport& report, bool detail) {
  std::string gpus;
  for (const GpuInfo& gpu : report.gpus) gpus += (gpus.empty() ? "" : ",") + one_json(gpu, report, detail);
  return fmt::format(R"({{"gpu_count":{},"gpus":[{}],"message":{}{}}})", report.gpus.size(), gpus,
                     text_or_null(report.message), detail ? libraries_json(report) : "");
}

std::string gpu_table(const GpuReport& report) {
  std::string out;
  if (report.driver_version || report.cuda_version)
    out = fmt::format("NVIDIA driver {}, CUDA up to {}\n", report.driver_version.value_or("?"),
                      report.cuda_version ? cuda_version_text(*report.cuda_version) : "?");
  if (!report.gpus.empty()) {
    std::vector<Cells> rows = {
        {"id", "name", "memory free", "capability", "busy", "temp", "power", "recommended"}};
    for (const GpuInfo& gpu : report.gpus) rows.push_back(cells_of(gpu));
    std::array<size_t, 8> widths{};
    for (const Cells& row : rows)
      for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    for (size_t i = 0; i < rows.size(); ++i) {
      out += row_text(rows[i], widths);
      if (i == 0) continue;
      const GpuInfo& gpu = report.gpus[i - 1];
      if (!gpu.problem.empty()) out += fmt::format("    cannot be used: {}\n", gpu.problem);
      if (!gpu.processes.empty()) out += fmt::format("    memory is held by {}\n", processes_text(gpu));
    }
  }
  out += peers_text(report);
  for (const LibraryInfo& l : report.libraries)
    out += l.problem.empty() ? fmt::format("{} {} ({})\n", l.name, l.version, l.path) : l.problem + "\n";
  if (report.gpus.empty()) out += fmt::format("No GPU: {}.\nModels run on the CPU.\n", report.message);
  return out;
}

std::string processes_text(const GpuInfo& gpu, size_t most) {
  std::string out;
  for (size_t i = 0; i < std::min(most, gpu.processes.size()); ++i) {
    const GpuProcess& p = gpu.processes[i];
    out += fmt::format(
        "{}{}{}", out.empty() ? "" : ", ",
        p.name.empty() ? fmt::format("pid {}", p.pid) : fmt::format("{} (pid {})", p.name, p.pid),
        p.bytes ? fmt::format(" {:.1f} GiB", static_cast<double>(*p.bytes) / kGiB) : " (size unknown)");
  }
  if (gpu.processes.size() > most) out += fmt::format(" and {} more", gpu.processes.size() - most);
  return out;
}

}  // namespace deepinfer
