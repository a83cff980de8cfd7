// Launching the kernels of this folder.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace simclr {
namespace gpu {

// Number of blocks in x and y, each of device.h's THREADS.
struct Grid {
    int32_t x, y;
};

// Whether there are kernels for the device of `tensor`: a GPU for which they were compiled, or the CPU under emulation.
bool kernels_available(const at::Tensor& tensor);

// Launches a kernel with its argument struct on libtorch's current stream of the device of `like`.
void launch(const char* kernel, Grid grid, const void* arguments, const at::Tensor& like);

}  // namespace gpu
}  // namespace simclr
