// Streams, events and kernel launches of the CUDA runtime.
#include <algorithm>

#include "emulation/runtime.h"

namespace em = deepinfer::emulation;

namespace deepinfer::emulation {
namespace {

Event* event_of(cudaEvent_t handle) {
  return reinterpret_cast<Event*>(handle);
}

cudaError_t add_stream(cudaStream_t* stream, unsigned flags) {
  if (flags & ~static_cast<unsigned>(cudaStreamNonBlocking)) return cudaErrorInvalidValue;
  *stream = reinterpret_cast<cudaStream_t>(machine().add_stream(!(flags & cudaStreamNonBlocking)));
  return cudaSuccess;
}

// An operation may join the stream: its capture stands, or no capture forbids the legacy stream.
cudaError_t check_stream(Stream* stream) {
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (stream->capture) return stream->capture->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
  if (stream == machine().stream(nullptr) && machine().legacy_blocked_by_capture())
    return cudaErrorStreamCaptureImplicit;
  return cudaSuccess;
}

cudaError_t record(Event& event, Stream& stream) {
  if (stream.capture) {
    event.capture = stream.capture;
    event.tail = stream.tail;
    event.op.reset();
    return cudaSuccess;
  }
  event.capture.reset();
  auto time = std::make_shared<double>(-1);
  machine().submit(stream, {.other = [time] { *time = machine().microseconds; }});
  event.op = stream.last;
  event.time = time;
  return cudaSuccess;
}

cudaError_t wait_event(Stream& stream, const Event& event) {
  if (event.capture) {
    if (stream.capture && stream.capture != event.capture) {
      stream.capture->invalid = true;
      return cudaErrorStreamCaptureMerge;
    }
    // The wait takes the stream into the capture.
    stream.capture = event.capture;
    for (const size_t node : event.tail)
      if (std::find(stream.tail.begin(), stream.tail.end(), node) == stream.tail.end())
        stream.tail.push_back(node);
    return cudaSuccess;
  }
  if (!event.op) return cudaSuccess;
  if (stream.capture) {
    stream.capture->invalid = true;
    return cudaErrorStreamCaptureIsolation;
  }
  machine().submit_op(stream, {}, {event.op});
  return cudaSuccess;
}

// For host calls that look at an event.
cudaError_t check_event(Event* event) {
  if (!event) return cudaErrorInvalidResourceHandle;
  if (!event->capture) return machine().unsafe_in_capture();
  event->capture->invalid = true;
  return cudaErrorCapturedEvent;
}

cudaError_t check_host_wait(Stream* stream) {
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (!stream->capture) return cudaSuccess;
  stream->capture->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}

bool legal(const KernelLaunch& k) {
  const dim3 g = k.grid, b = k.block;
  return g.x && g.y && g.z && b.x && b.y && b.z && g.x <= 0x7fffffffu && g.y <= 65535 && g.z <= 65535 &&
         b.x <= 1024 && b.y <= 1024 && b.z <= 64 && static_cast<uint64_t>(b.x) * b.y * b.z <= 1024;
}

}  // namespace

cudaError_t enqueue_kernel(KernelLaunch kernel, cudaStream_t handle) {
  return runtime_call([&] {
    Stream* stream = machine().stream(handle);
    if (const cudaError_t error = check_stream(stream)) return error;
    if (!legal(kernel)) return cudaErrorInvalidConfiguration;
    if (kernel.smem > machine().shared_limit(kernel.function)) return cudaErrorInvalidValue;
    // Before 9.0 the attribute is accepted and does nothing.
    if (machine().config.major < 9) kernel.pdl = false;
    if (kernel.pdl && machine().code_architecture() < 90)
      throw_failure(
          "a kernel may overtake the one before it, but its code, from PTX of compute_80, has no wait");
    machine().functions.insert(kernel.function);
    machine().submit(*stream, {.kernel = std::move(kernel)});
    return cudaSuccess;
  });
}

cudaError_t enqueue_held(std::function<void(OpPtr)> work, cudaStream_t handle) {
  return runtime_call([&] {
    Stream* stream = machine().stream(handle);
    if (const cudaError_t error = check_stream(stream)) return error;
    machine().submit(*stream, {.held = std::move(work)});
    return cudaSuccess;
  });
}

cudaError_t enqueue_work(std::function<void()> work, cudaStream_t handle) {
  return runtime_call([&] {
    Stream* stream = machine().stream(handle);
    if (const cudaError_t error = check_stream(stream)) return error;
    machine().submit(*stream, {.other = std::move(work)});
    return cudaSuccess;
  });
}

}  // namespace deepinfer::emulation

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return em::runtime_call([&] { return em::add_stream(stream, 0); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  return em::runtime_call([&] { return em::add_stream(stream, flags); });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int flags, int) {
  return em::runtime_call([&] { return em::add_stream(stream, flags); });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return em::runtime_call([&] {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
  });
}

// What the stream holds still runs.
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return em::runtime_call([&] {
    em::Stream* stream = em::machine().stream(handle);
    if (!stream || stream == em::machine().stream(nullptr)) return cudaErrorInvalidResourceHandle;
    if (stream->capture) stream->capture->invalid = true;
    em::machine().remove_stream(stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return em::runtime_call([&] {
    em::Stream* stream = em::machine().stream(handle);
    if (const cudaError_t error = em::check_host_wait(stream)) return error;
    em::machine().wait(stream->last);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  bool done = true;
  const cudaError_t error = em::runtime_call([&] {
    em::Stream* stream = em::machine().stream(handle);
    if (const cudaError_t why = em::check_host_wait(stream)) return why;
    em::machine().run_some();
    done = !stream->last || stream->last->done;
    return cudaSuccess;
  });
  return error == cudaSuccess && !done ? cudaErrorNotReady : error;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned int) {
  return em::runtime_call([&] {
    em::Stream* stream = em::machine().stream(handle);
    if (const cudaError_t error = em::check_stream(stream)) return error;
    return event ? em::wait_event(*stream, *em::event_of(event)) : cudaErrorInvalidResourceHandle;
  });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  return em::runtime_call([&] {
    em::Stream* stream = em::machine().stream(handle);
    if (const cudaError_t error = em::check_stream(stream)) return error;
    em::machine().submit(*stream, {.other = [=] { function(data); }});
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  return em::runtime_call([&] {
    *event = reinterpret_cast<cudaEvent_t>(new em::Event{.timing = !(flags & cudaEventDisableTiming)});
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

// Frees the event in any state of the machine: also where the context is broken.
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard lock(em::machine_mutex());
  delete em::event_of(event);
  return em::machine().sticky(em::current_device());
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  return em::runtime_call([&] {
    em::Stream* stream = em::machine().stream(handle);
    if (const cudaError_t error = em::check_stream(stream)) return error;
    return event ? em::record(*em::event_of(event), *stream) : cudaErrorInvalidResourceHandle;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return em::runtime_call([&] {
    if (const cudaError_t error = em::check_event(em::event_of(event))) return error;
    em::machine().wait(em::event_of(event)->op);
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  bool done = true;
  const cudaError_t error = em::runtime_call([&] {
    if (const cudaError_t why = em::check_event(em::event_of(event))) return why;
    em::machine().run_some();
    done = !em::event_of(event)->op || em::event_of(event)->op->done;
    return cudaSuccess;
  });
  return error == cudaSuccess && !done ? cudaErrorNotReady : error;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  bool ready = true;
  const cudaError_t error = em::runtime_call([&] {
    em::Event *a = em::event_of(start), *b = em::event_of(end);
    if (!a || !b || !a->timing || !b->timing || !a->op || !b->op) return cudaErrorInvalidResourceHandle;
    ready = a->op->done && b->op->done;
    if (ready) *milliseconds = static_cast<float>((*b->time - *a->time) / 1000);
    return cudaSuccess;
  });
  return error == cudaSuccess && !ready ? cudaErrorNotReady : error;
}

cudaError_t cudaDeviceSynchronize() {
  return em::runtime_call([&] {
    if (const cudaError_t error = em::machine().unsafe_in_capture()) return error;
    em::machine().wait_all();
    return cudaSuccess;
  });
}

}  // extern "C"
