// Copies between pinned host memory and a device. tch calls Tensor::pin_memory and is_pinned with a device, which prints a deprecation warning each time.

#include <ATen/ATen.h>

#include <cstring>

#include "guard.h"

extern "C" {

// A copy of the contiguous CPU tensor `here` in pinned memory, for asynchronous copies to a GPU.
char* simclr_pinned(const at::Tensor* here, at::Tensor** out) {
    return simclr::guarded([&] {
        at::Tensor pinned = at::empty(here->sizes(), here->options().pinned_memory(true));
        if (here->nbytes() > 0) std::memcpy(pinned.mutable_data_ptr(), here->const_data_ptr(), here->nbytes());
        *out = new at::Tensor(std::move(pinned));
    });
}

// A copy of `there` in host memory, which may not be read before the stream has passed this point: for a GPU an asynchronous copy to
// pinned memory.
char* simclr_download(const at::Tensor* there, at::Tensor** out) {
    return simclr::guarded([&] {
        auto options = there->options().device(at::kCPU).pinned_memory(there->is_cuda());
        at::Tensor here = at::empty(there->sizes(), options);
        here.copy_(there->detach(), /*non_blocking=*/true);
        *out = new at::Tensor(std::move(here));
    });
}

}  // extern "C"
