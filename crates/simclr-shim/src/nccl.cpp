// Device and stream used by NCCL: those that libtorch uses for a tensor.

#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/types.h>

#include "guard.h"

using simclr::guarded;

extern "C" {

// Makes the device of `like` current and returns libtorch's stream on it; null on the CPU.
char* simclr_use_device_of(const torch::Tensor* like, void** stream) {
    return guarded([&] {
        const c10::Device device = like->device();
        *stream = nullptr;
        if (device.is_cpu()) return;
        // The virtual guard resolves to libtorch_cuda's at run time; this file is compiled without CUDA.
        const c10::impl::VirtualGuardImpl guard(device.type());
        guard.setDevice(device);
        *stream = guard.getStream(device).native_handle();
    });
}

}  // extern "C"
