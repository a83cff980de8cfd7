// The subset of CUDA that the kernels of this folder use. They are compiled twice: by NVRTC at run time for the GPU present,
// and by the C++ compiler for emulate.cpp, which runs them on the CPU so that they can be tested without a GPU.
//
// A kernel takes one plain struct and is launched with blocks of THREADS threads. It uses only what is defined here: shared
// memory, block-wide barriers, and thread and block indices.
#pragma once

#ifdef __CUDACC_RTC__
using int64_t = long long;
using uint64_t = unsigned long long;
using int32_t = int;
using uint32_t = unsigned;
using uint16_t = unsigned short;
using uint8_t = unsigned char;
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define BARRIER() __syncthreads()
#define KERNEL(name, Arguments) extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ Arguments a)
#define THREAD (static_cast<int>(threadIdx.x))
#define BLOCK_X (static_cast<int>(blockIdx.x))
#define BLOCK_Y (static_cast<int>(blockIdx.y))
#define BLOCKS_X (static_cast<int>(gridDim.x))
#define BLOCKS_Y (static_cast<int>(gridDim.y))
#else
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulate.h"
#define DEVICE static inline
#define SHARED static
#define BARRIER() simclr::gpu::barrier()
#define KERNEL(name, Arguments)                                                                                        \
    static void name(const Arguments& a);                                                                              \
    static const simclr::gpu::Emulated name##_entry(                                                                   \
        #name, [](const void* arguments) { name(*static_cast<const Arguments*>(arguments)); });                        \
    static void name(const Arguments& a)
#define THREAD (simclr::gpu::place.thread)
#define BLOCK_X (simclr::gpu::place.block_x)
#define BLOCK_Y (simclr::gpu::place.block_y)
#define BLOCKS_X (simclr::gpu::place.blocks_x)
#define BLOCKS_Y (simclr::gpu::place.blocks_y)
#endif

namespace simclr {
namespace gpu {

// Threads per block.
constexpr int THREADS = 256;

// A bfloat16 in memory.
struct Bf16 {
    uint16_t bits;
};

DEVICE float widened(float value) { return value; }

DEVICE float widened(Bf16 value) {
#ifdef __CUDACC_RTC__
    return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
#else
    uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
#endif
}

DEVICE void narrow(float value, float& out) { out = value; }

// Rounds to nearest, ties to even; NaN is preserved.
DEVICE void narrow(float value, Bf16& out) {
#ifdef __CUDACC_RTC__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
#else
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    out.bits = std::isnan(value) ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
}

// A product that is rounded before it is added to anything: the compiler fuses no operation with it.
DEVICE float product(float a, float b) {
#ifdef __CUDACC_RTC__
    return __fmul_rn(a, b);
#else
    volatile float rounded = a * b;
    return rounded;
#endif
}

DEVICE double product(double a, double b) {
#ifdef __CUDACC_RTC__
    return __dmul_rn(a, b);
#else
    volatile double rounded = a * b;
    return rounded;
#endif
}

// Adds 1 to a counter in shared memory. Integers: the sum does not depend on the order of threads.
DEVICE void count(int& counter) {
#ifdef __CUDACC_RTC__
    atomicAdd(&counter, 1);
#else
    counter++;
#endif
}

// V adjacent values, read and written in one access.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
    T at[V];
};

}  // namespace gpu
}  // namespace simclr
