// Memory statistics of libtorch's caching device allocators.

#include <ATen/core/Tensor.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <cstdint>

#include "guard.h"

using simclr::guarded;

extern "C" {

// Bytes on the device of `like`: out[0] free, out[1] the peak that the allocator reserved since simclr_device_peak_reset.
char* simclr_device_memory(const at::Tensor* like, int64_t* out) {
    return guarded([&] {
        c10::Device device = like->device();
        auto* allocator = c10::getDeviceAllocator(device.type());
        constexpr auto ALL = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
        out[0] = static_cast<int64_t>(allocator->getMemoryInfo(device.index()).first);
        out[1] = allocator->getDeviceStats(device.index()).reserved_bytes[ALL].peak;
    });
}

// Frees the allocator's unused blocks and resets the peak.
char* simclr_device_peak_reset(const at::Tensor* like) {
    return guarded([&] {
        c10::Device device = like->device();
        auto* allocator = c10::getDeviceAllocator(device.type());
        allocator->emptyCache();
        allocator->resetPeakStats(device.index());
    });
}

}  // extern "C"
