// CPU emulation of CUDA threads, one after the other, so that kernels can be tested without a GPU. Slow.
#pragma once

#include "launch.h"

namespace simclr {
namespace gpu {

// Indices of the running thread.
struct Place {
    int thread, block_x, block_y, blocks_x, blocks_y;
};
extern Place place;

// Waits for all threads of the block.
void barrier();

using Body = void (*)(const void* arguments);

// Registers a kernel under its name.
struct Emulated {
    Emulated(const char* name, Body body);
};

// Runs a kernel with threads and blocks in rising or, if `backwards`, in falling order. A kernel that lacks a barrier gives
// different results in the two orders.
void emulate(const char* kernel, Grid grid, const void* arguments, bool backwards);

}  // namespace gpu
}  // namespace simclr
