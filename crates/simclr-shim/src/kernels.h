// The CPU's inner loops: plain C++ on raw memory, compiled once for each instruction set (kernels.cpp) and chosen at run
// time. Matrices are `rows` x `channels`, row after row; a channels-last image is one row per position.
#pragma once

#include <cstdint>

namespace simclr {

enum class Element { F32, BF16 };

// One matrix of activations, or part of its rows.
struct Matrix {
    int64_t rows;
    int64_t channels;
    Element element;
};

// One update of momentum SGD or LARS: g' = g + w * decay, s = g' * inside, v = v * momentum + s,
// w -= outside * (nesterov ? v * momentum + s : v).
struct MomentumRule {
    float decay, momentum, inside, outside;
    bool nesterov;
};

// One update of AdamW or LAMB: m = m * beta1 + g * (1 - beta1), s = s * beta2 + g^2 * (1 - beta2),
// u = (m / unbias1) / (sqrt(s / unbias2) + eps) + w * added_decay, w = w * kept - u * rate.
struct AdamRule {
    float beta1, one_less_beta1, beta2, one_less_beta2, unbias1, unbias2, eps, added_decay, kept, rate;
};

struct Kernels {
    const char* name;

    // Adds sum (x - about) and sum (x - about)^2 of every channel to `sum` and `squares`.
    void (*moments)(const Matrix& matrix, const void* x, const float* about, double* sum, double* squares);

    // y = x * factor + offset, plus `residual` unless null, cut at zero if `relu`. y may be x.
    void (*normalise)(const Matrix& matrix, const void* x, const void* residual, const float* factor,
                      const float* offset, bool relu, void* y);

    // Adds sum g and sum g (x - mean) of every channel to `sum` and `products`, where g is `dy` behind the ReLU:
    // where `y` is given its positive elements let dy through, and g is written to `g_out` (which may be dy); else, with
    // a `factor`, those of x * factor + offset do; else g is dy.
    void (*gradient_sums)(const Matrix& matrix, const void* x, const void* dy, const void* y, const float* mean,
                          const float* factor, const float* offset, void* g_out, double* sum, double* products);

    // dx = g * p + (x - mean) * q + r. With a `factor` g is dy where x * factor + offset is positive, else dy. dx may be
    // dy.
    void (*gradient)(const Matrix& matrix, const void* x, const void* dy, const float* mean, const float* factor,
                     const float* offset, const float* p, const float* q, const float* r, void* dx);

    // Adds sum w^2 and sum (g + w * decay)^2 to `sums`.
    void (*norms)(const float* w, const float* g, float decay, int64_t count, double* sums);

    void (*momentum)(const MomentumRule& rule, float* w, const float* g, float* v, int64_t count);

    // The new moments; adds sum w^2 and sum u^2 to `sums`.
    void (*adam_moments)(const AdamRule& rule, const float* w, const float* g, float* m, float* s, int64_t count,
                         double* sums);

    // The new weights, from the new moments.
    void (*adam_weights)(const AdamRule& rule, float* w, const float* m, const float* s, int64_t count);
};

// For this machine.
const Kernels& kernels();

}  // namespace simclr
