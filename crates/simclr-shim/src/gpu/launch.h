// Starting the kernels of this folder.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace simclr {
namespace gpu {

// Blocks across and down, each of device.h's THREADS.
struct Grid {
    int32_t x, y;
};

// Whether kernels work on tensors of this one's device: a GPU for which they were compiled, or the CPU under emulation.
bool serves(const at::Tensor& tensor);

// Starts a kernel with its struct of arguments on the stream that libtorch uses for the device of `like`.
void launch(const char* kernel, Grid grid, const void* arguments, const at::Tensor& like);

}  // namespace gpu
}  // namespace simclr
