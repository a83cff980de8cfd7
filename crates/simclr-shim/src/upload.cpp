// Pinned host memory. tch calls Tensor::pin_memory and is_pinned with a device, which prints a deprecation warning each time.

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

}  // extern "C"
