// What the kernels of batch_norm.cu take. Activations are matrices of rows x channels, row after row: a channels-last image is
// one row per position. T is float or bf16, V how many channels a thread takes at once; vectors over channels are f32.
#pragma once

#include "device.h"

namespace simclr {
namespace gpu {

// How blocks cover a matrix: `lanes` threads stand side by side, V channels each; blocks across take further channels, the
// threads below each other and the blocks down take rows.
struct Cover {
    int64_t rows;
    int channels;
    int lanes;  // a power of two up to THREADS
};

// sum (x - about) and sum (x - about)^2 of every block's rows, to `partial` [blocks down][2][channels]; `about` is written.
struct Sums {
    Cover cover;
    const void* x;
    float* about;
    float* partial;
};

// Channels whose parts a block adds up.
constexpr int TOGETHER = 8;

// What a normalisation uses, from the partial sums of a batch on its own.
struct Moments {
    const float *about, *partial;
    int parts;
    int64_t rows;
    int channels;
    const float *scale, *shift;
    float *running_mean, *running_var;
    double epsilon, momentum;
    float* used;  // [4][channels]: mean, 1 / deviation, and the normalisation as x * factor + offset
    double* own;  // [2][channels]: mean and biased variance in place of all else, where others' come in; or null
};

// y = x * factor + offset, plus `residual` unless null, cut at zero if `relu`.
struct Normalise {
    Cover cover;
    const void *x, *residual;
    const float *factor, *offset;
    int relu;
    void* y;
};

// sum g and sum g (x - mean) of every block's rows, to `partial` as above. Where `y` is given, its positive elements let dy
// through and g goes to `g_out`, which may be dy; else, if `relu`, those of x * factor + offset do; else g is dy.
struct GradientSums {
    Cover cover;
    const void *x, *dy, *y;
    const float *mean, *factor, *offset;
    int relu;
    void* g_out;
    float* partial;
};

// The partial sums together: gradients of scale and shift [2][channels], and unless null, what Gradient takes.
struct GradientTotals {
    const float* partial;
    int parts;
    int64_t rows;
    int channels;
    const float *inverse, *factor;
    float* parameters;    // [2][channels]: sum g * normalised x, sum g
    float* coefficients;  // [2][channels]: q, r of this batch alone, or null
};

// dx = g * factor + (x - mean) * q + r, g as above without `y`. dx may be dy.
struct Gradient {
    Cover cover;
    const void *x, *dy;
    const float *mean, *factor, *offset, *q, *r;
    int relu;
    void* dx;
};

}  // namespace gpu
}  // namespace simclr
