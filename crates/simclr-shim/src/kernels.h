// Inner loops of batch norm and pooling on the CPU: plain C++ on raw memory, compiled once per instruction set (kernels.cpp) and chosen at
// run time. Matrices are row-major `rows` x `channels`; a channels-last image has one row per position.
#pragma once

#include <cstdint>

namespace simclr {

enum class Element { F32, BF16 };

// A matrix of activations, or a range of its rows.
struct Matrix {
    int64_t rows;
    int64_t channels;
    Element element;
};

struct Kernels {
    const char* name;

    // Adds sum (x - about) and sum (x - about)^2 of every channel to `sum` and `squares`.
    void (*moments)(const Matrix& matrix, const void* x, const float* about, double* sum, double* squares);

    // y = x * factor + offset, plus `residual` unless null, then max(0, .) if `relu`. y may be x.
    void (*normalise)(const Matrix& matrix, const void* x, const void* residual, const float* factor,
                      const float* offset, bool relu, void* y);

    // Adds sum g and sum g (x - mean) of every channel to `sum` and `products`, where g is the gradient at the input of the
    // ReLU. With `y`, g = dy (+ branch unless null) where y > 0, and g is written to `g_out`, which may be dy; else, with `factor`,
    // g = dy where x * factor + offset > 0; else g = dy.
    void (*gradient_sums)(const Matrix& matrix, const void* x, const void* dy, const void* branch, const void* y,
                          const float* mean, const float* factor, const float* offset, void* g_out, double* sum,
                          double* products);

    // dx = g * p + (x - mean) * q + r, with g as above without `y`. dx may be dy.
    void (*gradient)(const Matrix& matrix, const void* x, const void* dy, const float* mean, const float* factor,
                     const float* offset, const float* p, const float* q, const float* r, void* dx);

    // One row of 2x2 pooling: `matrix` has the positions of the result; `top` and `bottom` are two rows of twice as many. y is the
    // maximum of four, a NaN if there is one; `which` unless null its number, top left 0 to bottom right 3, of the first if several are
    // equal.
    void (*max_pool)(const Matrix& matrix, const void* top, const void* bottom, void* y, uint8_t* which);

    // The gradient: dy at the position `which`, 0 at the other three.
    void (*max_pool_gradient)(const Matrix& matrix, const void* dy, const uint8_t* which, void* top, void* bottom);
};

// The kernels in use.
const Kernels& kernels();

}  // namespace simclr
