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

using simclr::guarded;

extern "C" {

// Makes a stream of the pool of `like`'s device this thread's current one, ordered after the previous one. `previous` [3] is
// the argument of simclr_stream_leave. No effect on the CPU.
char* simclr_stream_enter(const at::Tensor* like, int64_t* previous) {
    return guarded([&] {
        c10::Device device = like->device();
        previous[2] = -1;
        if (device.is_cpu()) return;
        c10::impl::VirtualGuardImpl guard(device.type());
        guard.setDevice(device);
        c10::Stream old = guard.getStream(device), entered = guard.getStreamFromGlobalPool(device);
        simclr::CudaEvent event(device);
        event.event->block(entered);
        guard.exchangeStream(entered);
        auto packed = old.pack3();
        previous[0] = packed.stream_id, previous[1] = packed.device_index;
        previous[2] = static_cast<int64_t>(packed.device_type);
    });
}

// Makes the previous stream current again, ordered after the one that is left.
char* simclr_stream_leave(const int64_t* previous) {
    return guarded([&] {
        if (previous[2] < 0) return;
        c10::Stream old = c10::Stream::unpack3(previous[0], static_cast<c10::DeviceIndex>(previous[1]),
                                               static_cast<c10::DeviceType>(previous[2]));
        simclr::CudaEvent event(old.device());
        event.event->block(old);
        c10::impl::VirtualGuardImpl(old.device_type()).exchangeStream(old);
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
