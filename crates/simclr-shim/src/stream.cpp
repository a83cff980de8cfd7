// Streams of a GPU's own, events between them, and steps recorded as CUDA graphs. Streams and events go through libtorch's
// device-independent interface, which finds libtorch_cuda's at run time; graphs have none, so that class is looked up by name.

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

// A point in a stream; of the CPU, which has none, nothing.
struct Mark {
    std::unique_ptr<c10::Event> event;

    explicit Mark(c10::Device device) {
        if (device.is_cpu()) return;
        event = std::make_unique<c10::Event>(device.type());
        event->record(current(device));
    }

    void wait(c10::Device device) const {
        if (event) event->block(current(device));
    }
};

// at::cuda::CUDAGraph, whose header needs CUDA's own. Its functions by their names in libtorch_cuda 2.11; the object lives in
// `room`, of which it takes a part.
struct Recording {
    alignas(16) char room[4096];
    bool made = false;

    template <typename F>
    static F function(const char* name) {
        void* found = dlsym(RTLD_DEFAULT, name);
        if (found == nullptr) throw std::runtime_error(std::string("libtorch_cuda has no ") + name);
        return reinterpret_cast<F>(found);
    }

    Recording() {
        function<void (*)(void*, bool)>("_ZN2at4cuda9CUDAGraphC1Eb")(room, false);
        made = true;
    }

    void begin() {
        using Pool = std::pair<unsigned long long, unsigned long long>;
        constexpr int THREAD_LOCAL = 1;  // cudaStreamCaptureModeThreadLocal: loaders and uploads go on meanwhile
        function<void (*)(void*, Pool, int)>("_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode")(
            room, Pool{0, 0}, THREAD_LOCAL);
    }

    void call(const char* name) { function<void (*)(void*)>(name)(room); }
    void end() { call("_ZN2at4cuda9CUDAGraph11capture_endEv"); }
    void replay() { call("_ZN2at4cuda9CUDAGraph6replayEv"); }

    ~Recording() {
        if (made) call("_ZN2at4cuda9CUDAGraphD1Ev");
    }
};

}  // namespace
}  // namespace simclr

using simclr::guarded;

extern "C" {

// Makes a stream of the pool of `like`'s device this thread's current one; what the device was asked before comes first.
// `before` [3] is what simclr_stream_back takes. On the CPU nothing happens.
char* simclr_stream_own(const at::Tensor* like, int64_t* before) {
    return guarded([&] {
        c10::Device device = like->device();
        before[2] = -1;
        if (device.is_cpu()) return;
        c10::impl::VirtualGuardImpl guard(device.type());
        guard.setDevice(device);
        c10::Stream old = guard.getStream(device), own = guard.getStreamFromGlobalPool(device);
        simclr::Mark mark(device);
        mark.event->block(own);
        guard.exchangeStream(own);
        auto packed = old.pack3();
        before[0] = packed.stream_id, before[1] = packed.device_index;
        before[2] = static_cast<int64_t>(packed.device_type);
    });
}

// The way back: the old stream goes on where the own one has come to.
char* simclr_stream_back(const int64_t* before) {
    return guarded([&] {
        if (before[2] < 0) return;
        c10::Stream old = c10::Stream::unpack3(before[0], static_cast<c10::DeviceIndex>(before[1]),
                                               static_cast<c10::DeviceType>(before[2]));
        simclr::Mark mark(old.device());
        mark.event->block(old);
        c10::impl::VirtualGuardImpl(old.device_type()).exchangeStream(old);
    });
}

// Where the current stream of `like`'s device has come to.
char* simclr_mark(const at::Tensor* like, simclr::Mark** out) {
    return guarded([&] { *out = new simclr::Mark(like->device()); });
}

// The current stream goes on once the mark is reached; the memory of `tensor`, made on another stream, is not given away before
// the current one has come here.
char* simclr_mark_wait(const simclr::Mark* mark, const at::Tensor* tensor) {
    return guarded([&] {
        mark->wait(tensor->device());
        if (mark->event) tensor->record_stream(simclr::current(tensor->device()));
    });
}

void simclr_mark_free(simclr::Mark* mark) { delete mark; }

// A recording begins on this thread's current stream, which is not the default one.
char* simclr_graph_begin(simclr::Recording** out) {
    return guarded([&] {
        auto recording = std::make_unique<simclr::Recording>();
        // A recording takes memory of its own; what steps left in the cache would lie idle from here on.
        c10::getDeviceAllocator(c10::kCUDA)->emptyCache();
        recording->begin();
        *out = recording.release();
    });
}

char* simclr_graph_end(simclr::Recording* recording) {
    return guarded([&] { recording->end(); });
}

char* simclr_graph_replay(simclr::Recording* recording) {
    return guarded([&] { recording->replay(); });
}

void simclr_graph_free(simclr::Recording* recording) { delete recording; }

// cuDNN: time the ways to convolve and take the fastest, or only those that give the same bits every time.
void simclr_cudnn(int deterministic) {
    at::globalContext().setBenchmarkCuDNN(deterministic == 0);
    at::globalContext().setDeterministicCuDNN(deterministic != 0);
}

}  // extern "C"
