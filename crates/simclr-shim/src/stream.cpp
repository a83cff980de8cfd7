// Streams, events and CUDA graphs. Streams and events go through libtorch's device-independent interface, which resolves to
// libtorch_cuda at run time; CUDA graphs have none, so that class is looked up by its symbols.

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <memory>
#include <stdexcept>
#include <utility>

#include "guard.h"

namespace simclr {
namespace {

using c10::impl::VirtualGuardImpl;

void pack(const c10::Stream& stream, int64_t* out) {
    const auto packed = stream.pack3();
    out[0] = packed.stream_id, out[1] = packed.device_index, out[2] = static_cast<int64_t>(packed.device_type);
}

c10::Stream unpack(const int64_t* stream) {
    return c10::Stream::unpack3(stream[0], static_cast<c10::DeviceIndex>(stream[1]), static_cast<c10::DeviceType>(stream[2]));
}

c10::Stream current(c10::Device device) { return VirtualGuardImpl(device.type()).getStream(device); }

// An event recorded on the current stream; empty on the CPU.
struct CudaEvent {
    std::unique_ptr<c10::Event> event;

    explicit CudaEvent(c10::Device device) {
        if (device.is_cpu()) return;
        event = std::make_unique<c10::Event>(device.type());
        event->record(current(device));
    }

    void wait(c10::Device device) const {
        if (event) event->block(current(device));
    }

    void synchronize() const {
        if (event) event->synchronize();
    }
};

// at::cuda::CUDAGraph; its header needs the CUDA toolkit. Its members are called by their symbols in libtorch_cuda 2.11; the
// object lives in `storage`, which is larger than it.
struct CudaGraph {
    alignas(16) char storage[4096];
    bool constructed = false;

    template <typename F>
    static F function(const char* name) {
        void* found = dlsym(RTLD_DEFAULT, name);
        if (found == nullptr) throw std::runtime_error(std::string("libtorch_cuda has no ") + name);
        return reinterpret_cast<F>(found);
    }

    CudaGraph() {
        function<void (*)(void*, bool)>("_ZN2at4cuda9CUDAGraphC1Eb")(storage, false);
        constructed = true;
    }

    void capture_begin() {
        using Pool = std::pair<unsigned long long, unsigned long long>;
        constexpr int THREAD_LOCAL = 1;  // cudaStreamCaptureModeThreadLocal: other threads may use CUDA during the capture
        function<void (*)(void*, Pool, int)>("_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode")(
            storage, Pool{0, 0}, THREAD_LOCAL);
    }

    void call(const char* name) { function<void (*)(void*)>(name)(storage); }
    void capture_end() { call("_ZN2at4cuda9CUDAGraph11capture_endEv"); }
    void replay() { call("_ZN2at4cuda9CUDAGraph6replayEv"); }

    ~CudaGraph() {
        if (constructed) call("_ZN2at4cuda9CUDAGraphD1Ev");
    }
};

}  // namespace
}  // namespace simclr

using c10::impl::VirtualGuardImpl;
using simclr::guarded;

extern "C" {

// A stream of the pool of `like`'s device, packed: id, device index, device type; the type is -1 on the CPU.
char* simclr_stream_of_pool(const at::Tensor* like, int64_t* stream) {
    return guarded([&] {
        const c10::Device device = like->device();
        stream[2] = -1;
        if (device.is_cpu()) return;
        simclr::pack(VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device), stream);
    });
}

// Makes `stream` this thread's current one, if `ordered` after the work of the previous one, which is returned packed. No effect on
// the CPU.
char* simclr_stream_switch(const int64_t* stream, int ordered, int64_t* previous) {
    return guarded([&] {
        previous[2] = -1;
        if (stream[2] < 0) return;
        const c10::Stream next = simclr::unpack(stream);
        const VirtualGuardImpl guard(next.device_type());
        guard.setDevice(next.device());
        if (ordered != 0) simclr::CudaEvent(next.device()).event->block(next);
        simclr::pack(guard.exchangeStream(next), previous);
    });
}

// Records an event on the current stream of `like`'s device.
char* simclr_event_record(const at::Tensor* like, simclr::CudaEvent** out) {
    return guarded([&] { *out = new simclr::CudaEvent(like->device()); });
}

// The current stream waits for the event; the memory of `tensor`, allocated on another stream, is not reused before the current
// stream has passed this point.
char* simclr_event_wait(const simclr::CudaEvent* event, const at::Tensor* tensor) {
    return guarded([&] {
        event->wait(tensor->device());
        if (event->event) tensor->record_stream(simclr::current(tensor->device()));
    });
}

// The host waits for the event.
char* simclr_event_synchronize(const simclr::CudaEvent* event) {
    return guarded([&] { event->synchronize(); });
}

void simclr_event_free(simclr::CudaEvent* event) { delete event; }

// Begins a capture on this thread's current stream, which must not be the default one.
char* simclr_graph_begin(simclr::CudaGraph** out) {
    return guarded([&] {
        auto graph = std::make_unique<simclr::CudaGraph>();
        // A capture allocates from a pool of its own; blocks cached by earlier steps would stay unused.
        c10::getDeviceAllocator(c10::kCUDA)->emptyCache();
        graph->capture_begin();
        *out = graph.release();
    });
}

char* simclr_graph_end(simclr::CudaGraph* graph) {
    return guarded([&] { graph->capture_end(); });
}

char* simclr_graph_replay(simclr::CudaGraph* graph) {
    return guarded([&] { graph->replay(); });
}

void simclr_graph_free(simclr::CudaGraph* graph) { delete graph; }

// cuDNN: benchmark the algorithms and take the fastest, or only deterministic ones.
void simclr_cudnn(int deterministic) {
    at::globalContext().setBenchmarkCuDNN(deterministic == 0);
    at::globalContext().setDeterministicCuDNN(deterministic != 0);
}

}  // extern "C"
