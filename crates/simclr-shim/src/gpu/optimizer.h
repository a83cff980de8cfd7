// Arguments of the kernels of optimizer.cu: as many parameters as fit into the arguments of a launch.
//
// Momentum SGD and LARS: g' = g + w * decay, s = g' * inside, v = v * momentum + s,
// w -= outside * (nesterov ? v * momentum + s : v).
// AdamW and LAMB: m = m * beta1 + g * (1 - beta1), s = s * beta2 + g^2 * (1 - beta2),
// u = (m / unbias1) / (sqrt(s / unbias2) + eps) + w * added_decay, w = w * kept - u * rate.
#pragma once

#include "device.h"

namespace simclr {
namespace gpu {

// The values of a parameter, its state and its gradient, all in the same memory layout.
struct Tensor {
    float *weight, *first, *second;
    const float* gradient;
    int64_t count;
    int first_block;  // of this launch; the tensor has one block per piece
    short decayed, adapted;
};

// Values per block.
constexpr int PIECE = 16384;

// Tensors per launch: with the other arguments they stay below 4 KiB, the limit of every driver.
constexpr int MAX_TENSORS = 72;

struct Update {
    Tensor tensors[MAX_TENSORS];
    int count;
    int layerwise, nesterov, lr_in_momentum, separate_norms;
    // Two sums of squares of every block of this launch.
    double* partial;
    // In device memory, so that a captured step reads new values: learning rate, and Adam's 1 - beta^steps for both betas.
    const double* scalars;
    // Nothing is updated unless this is finite; or null.
    const double* guard;
    // One for every tensor of this launch; those of adapted tensors are written. Or null.
    double* trust_ratios;
    float decay, momentum, beta1, one_less_beta1, beta2, one_less_beta2, eps;
    double trust, max_norm;
};

static_assert(sizeof(Update) <= 4096, "the arguments of a launch");

}  // namespace gpu
}  // namespace simclr
