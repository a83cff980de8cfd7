// Kernels on the CPU, one thread after the other, so that they can be tested where no GPU is. Slow.
#pragma once

#include "launch.h"

namespace simclr {
namespace gpu {

// Where the running thread stands.
struct Place {
    int thread, block_x, block_y, blocks_x, blocks_y;
};
extern Place place;

// Waits until all threads of the block are here.
void barrier();

using Body = void (*)(const void* arguments);

// An entry in the list of kernels.
struct Emulated {
    Emulated(const char* name, Body body);
};

// Runs a kernel; threads and blocks come in rising order or, `backwards`, in falling order. A kernel that lacks a barrier gives
// another result in one of them.
void emulate(const char* kernel, Grid grid, const void* arguments, bool backwards);

}  // namespace gpu
}  // namespace simclr
