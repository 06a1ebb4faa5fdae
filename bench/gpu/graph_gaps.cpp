// How long a card waits between CUDA graphs. A library that CUDA loads into a process by itself:
//   CUDA_INJECTION64_PATH=.../libdi_graph_gaps.so DI_GRAPH_GAPS=out.json deepinfer bench ...
// CUPTI reports when each graph started and ended on the card; at the end of the process the gaps between
// one's end and the next one's start are written to the file.
#include <cupti.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace {

// A gap longer than this is between two runs, not between two steps.
constexpr uint64_t kPause = 5'000'000;  // ns
constexpr size_t kBufferBytes = 1 << 20;

template <class Function>
Function* load(const char* name) {
  static void* const library = [] {
    void* found = dlopen("libcupti.so.13", RTLD_NOW);
    return found != nullptr ? found : dlopen("libcupti.so", RTLD_NOW);
  }();
  return library == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(library, name));
}

struct Log {
  std::mutex mutex;
  std::vector<std::pair<uint64_t, uint64_t>> graphs;  // start, end
};
// CUPTI's callbacks carry no argument of ours.
Log& log() {
  static Log* const all = new Log;  // outlives what runs at the end of the process
  return *all;
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* size, size_t* records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, kBufferBytes));
  *size = *buffer == nullptr ? 0 : kBufferBytes;
  *records = 0;
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  static auto* const next = load<decltype(cuptiActivityGetNextRecord)>("cuptiActivityGetNextRecord");
  const std::lock_guard lock(log().mutex);
  for (CUpti_Activity* record = nullptr; next != nullptr && next(buffer, valid, &record) == CUPTI_SUCCESS;) {
    if (record->kind != CUPTI_ACTIVITY_KIND_GRAPH_TRACE) continue;
    const auto* graph = reinterpret_cast<const CUpti_ActivityGraphTrace2*>(record);
    if (graph->start != 0 && graph->end >= graph->start) log().graphs.emplace_back(graph->start, graph->end);
  }
  std::free(buffer);
}

void write_gaps() {
  if (auto* flush = load<decltype(cuptiActivityFlushAll)>("cuptiActivityFlushAll")) flush(1);
  const std::lock_guard lock(log().mutex);
  auto& graphs = log().graphs;
  std::sort(graphs.begin(), graphs.end());
  std::vector<double> gaps;
  double busy = 0;
  for (size_t i = 0; i < graphs.size(); ++i) {
    busy += static_cast<double>(graphs[i].second - graphs[i].first);
    if (i == 0) continue;
    const uint64_t before = graphs[i - 1].second, start = graphs[i].first;
    const uint64_t gap = start > before ? start - before : 0;
    if (gap < kPause) gaps.push_back(static_cast<double>(gap) * 1e-3);
  }
  std::sort(gaps.begin(), gaps.end());
  const char* path = std::getenv("DI_GRAPH_GAPS");
  const std::unique_ptr<FILE, int (*)(FILE*)> file(
      std::fopen(path == nullptr ? "graph_gaps.json" : path, "w"), std::fclose);
  if (!file) return;
  const auto at = [&](double share) {
    return gaps.empty() ? 0.0 : gaps[static_cast<size_t>(share * static_cast<double>(gaps.size() - 1))];
  };
  std::fprintf(file.get(),
               "{\"graphs\": %zu, \"gaps\": %zu, \"median_microseconds\": %.3f, \"p95_microseconds\": %.3f, "
               "\"most_microseconds\": %.3f, \"busy_milliseconds\": %.3f}\n",
               graphs.size(), gaps.size(), at(0.5), at(0.95), at(1), busy * 1e-6);
}

}  // namespace

// CUDA calls it before the first context is made.
extern "C" __attribute__((visibility("default"))) int InitializeInjection() {
  auto* callbacks = load<decltype(cuptiActivityRegisterCallbacks)>("cuptiActivityRegisterCallbacks");
  auto* enable = load<decltype(cuptiActivityEnable)>("cuptiActivityEnable");
  if (callbacks == nullptr || enable == nullptr) {
    std::fprintf(stderr, "graph_gaps: no CUPTI: %s\n", dlerror());
    return 1;
  }
  if (callbacks(give_buffer, take_buffer) != CUPTI_SUCCESS ||
      enable(CUPTI_ACTIVITY_KIND_GRAPH_TRACE) != CUPTI_SUCCESS)
    std::fprintf(stderr, "graph_gaps: CUPTI refused\n");
  else
    std::atexit(write_gaps);
  return 1;
}
