// Arguments of the kernels of batch_norm.cu. Activations are row-major matrices of rows x channels: a channels-last image has
// one row per position. T is float or bf16, V the channels per thread; vectors over channels are f32.
#pragma once

#include "device.h"

namespace simclr {
namespace gpu {

// How blocks cover a matrix: `lanes` threads span the channels, V each, and blocks in x further channels; the remaining threads
// of a block and blocks in y span the rows.
struct Cover {
    int64_t rows;
    int channels;
    int lanes;  // a power of two up to THREADS
};

// sum (x - about) and sum (x - about)^2 of every block's rows, to `partial` [blocks in y][2][channels]; `about` is written.
struct Sums {
    Cover cover;
    const void* x;
    float* about;
    float* partial;
};

// Channels of the partial sums that a block adds up.
constexpr int CHANNELS_PER_BLOCK = 8;

// The vectors of a normalisation, from the partial sums of a batch that shares its statistics with no other.
struct Moments {
    const float *about, *partial;
    int parts;
    int64_t rows;
    int channels;
    const float *scale, *shift;
    float *running_mean, *running_var;
    double epsilon, momentum;
    float* used;  // [4][channels]: mean, 1 / deviation, and the normalisation as x * factor + offset
    double* own;  // [2][channels]: if not null, only mean and biased variance are written, to be all-reduced
};

// y = x * factor + offset, plus `residual` unless null, cut at zero if `relu`.
struct Normalise {
    Cover cover;
    const void *x, *residual;
    const float *factor, *offset;
    int relu;
    void* y;
};

// sum g and sum g (x - mean) of every block's rows, to `partial` as above. With `y`, g = dy (+ branch unless null) where y > 0, and g is
// written to `g_out`, which may be dy; else, if `relu`, g = dy where x * factor + offset > 0; else g = dy.
struct GradientSums {
    Cover cover;
    const void *x, *dy, *branch, *y;
    const float *mean, *factor, *offset;
    int relu;
    void* g_out;
    float* partial;
};

// Totals of the partial sums: gradients of scale and shift [2][channels], and unless null, the coefficients of Gradient.
struct GradientTotals {
    const float* partial;
    int parts;
    int64_t rows;
    int channels;
    const float *inverse, *factor;
    float* parameters;    // [2][channels]: sum g * normalised x, sum g
    float* coefficients;  // [2][channels]: q, r of this batch alone, or null
};

// dx = g * factor + (x - mean) * q + r, with g as above without `y`. dx may be dy.
struct Gradient {
    Cover cover;
    const void *x, *dy;
    const float *mean, *factor, *offset, *q, *r;
    int relu;
    void* dx;
};

}  // namespace gpu
}  // namespace simclr
