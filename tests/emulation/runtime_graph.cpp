// Capture and graphs of the CUDA runtime. A graph holds the work as it was recorded: arguments are those of
// the capture, memory is read when the graph runs.
#include <algorithm>

#include "emulation/runtime.h"

namespace em = deepinfer::emulation;

namespace deepinfer::emulation {
namespace {

Graph* graph_of(cudaGraph_t handle) {
  return reinterpret_cast<Graph*>(handle);
}
const Graph* graph_of(cudaGraphExec_t handle) {
  return reinterpret_cast<const Graph*>(handle);
}

// Nodes that nothing in the graph follows and that are not behind the origin's end: work of a stream that
// never came back.
bool unjoined(const Capture& capture) {
  const auto& nodes = capture.graph.nodes;
  std::vector<bool> reached(nodes.size(), false);
  for (const size_t node : capture.origin->tail) reached[node] = true;
  for (size_t i = nodes.size(); i-- > 0;)
    if (reached[i])
      for (const size_t before : nodes[i].after) reached[before] = true;
  return std::find(reached.begin(), reached.end(), false) != reached.end();
}

cudaError_t end_capture(Stream& stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const std::shared_ptr<Capture> capture = stream.capture;
  if (!capture) return cudaErrorIllegalState;
  if (capture->origin != &stream) return cudaErrorStreamCaptureUnmatched;
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
    return cudaErrorStreamCaptureWrongThread;
  const bool open_ends = unjoined(*capture);
  machine().release_capture(*capture);
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (open_ends) return cudaErrorStreamCaptureUnjoined;
  *graph = reinterpret_cast<cudaGraph_t>(new Graph(capture->graph));
  return cudaSuccess;
}

}  // namespace
}  // namespace deepinfer::emulation

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return em::runtime_call([&] {
    em::Stream* stream = em::machine().stream(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (stream == em::machine().stream(nullptr)) return cudaErrorStreamCaptureUnsupported;
    if (stream->capture) return cudaErrorIllegalState;
    stream->capture = std::make_shared<em::Capture>(
        em::Capture{.mode = mode, .thread = std::this_thread::get_id(), .origin = stream, .graph = {}});
    stream->tail.clear();
    em::machine().captures.push_back(stream->capture);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return em::runtime_call([&] {
    em::Stream* stream = em::machine().stream(handle);
    return stream ? em::end_capture(*stream, graph) : cudaErrorInvalidResourceHandle;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return em::runtime_call([&] {
    em::Stream* stream = em::machine().stream(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    *status = !stream->capture           ? cudaStreamCaptureStatusNone
              : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return em::runtime_call([&] {
    *mode = cudaStreamCaptureModeGlobal;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return em::runtime_call([&] {
    if (!graph) return cudaErrorInvalidValue;
    auto made = std::make_unique<em::Graph>(*em::graph_of(graph));
    made->bytes = made->nodes.size() * em::machine().config.bytes_of_node;
    made->device = em::current_device();
    if (!em::machine().take_bytes(made->device, made->bytes)) return cudaErrorMemoryAllocation;
    *exec = reinterpret_cast<cudaGraphExec_t>(made.release());
    return cudaSuccess;
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t handle) {
  return em::runtime_call([&] {
    em::Stream* stream = em::machine().stream(handle);
    if (!exec || !stream) return cudaErrorInvalidResourceHandle;
    return stream->capture ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  return em::runtime_call([&] {
    em::Stream* stream = em::machine().stream(handle);
    if (!exec || !stream) return cudaErrorInvalidResourceHandle;
    if (stream->capture) {  // a graph in a graph: not emulated
      stream->capture->invalid = true;
      return cudaErrorStreamCaptureUnsupported;
    }
    // Whether a driver looks at the limit again is not told: who lowers it must not rely on that.
    for (const em::Node& node : em::graph_of(exec)->nodes) {
      const em::KernelLaunch& kernel = node.work->kernel;
      if (kernel.body && kernel.smem > em::machine().shared_limit(kernel.function))
        return cudaErrorInvalidValue;
    }
    em::machine().launch_graph(*stream, *em::graph_of(exec));
    return cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return em::runtime_call([&] {
    const auto& all = em::graph_of(graph)->nodes;
    if (nodes)
      for (size_t i = 0; i < std::min(*count, all.size()); ++i)
        nodes[i] = reinterpret_cast<cudaGraphNode_t>(const_cast<em::Node*>(&all[i]));
    *count = all.size();
    return cudaSuccess;
  });
}

// Frees the graph in any state of the machine. Launches in flight have what they need.
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const std::lock_guard lock(em::machine_mutex());
  delete em::graph_of(graph);
  return em::machine().sticky(em::current_device());
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const std::lock_guard lock(em::machine_mutex());
  const em::Graph* graph = em::graph_of(exec);
  if (graph) em::machine().give_bytes(graph->device, graph->bytes);
  delete graph;
  return em::machine().sticky(em::current_device());
}

}  // extern "C"
