// What the kernels of optimizer.cu take: as many parameters at once as fit into the arguments of a launch.
#pragma once

#include "device.h"

namespace simclr {
namespace gpu {

// A parameter's numbers, all in one order.
struct Tensor {
    float *weight, *first, *second;
    const float* gradient;
    int64_t count;
    int first_block;  // of this launch; as many follow as it has pieces
    short decayed, adapted;
};

// Numbers that a block takes.
constexpr int PIECE = 16384;

// Parameters of a launch: below 4 KiB with all that is beside them, which every driver takes.
constexpr int TOGETHER_AT_MOST = 72;

struct Update {
    Tensor tensors[TOGETHER_AT_MOST];
    int count;
    int layerwise, nesterov, lr_in_momentum, separate_norms;
    // Two sums of squares of every block of this launch.
    double* partial;
    // In memory of the device, so that a recorded step can be given new ones: learning rate, and Adam's 1 - beta^steps.
    const double* now;
    // Nothing is updated unless this is a finite number; or null.
    const double* guard;
    // One for every tensor of this launch; those of adapted tensors are written. Or null.
    double* trust_ratios;
    float decay, momentum, beta1, one_less_beta1, beta2, one_less_beta2, eps;
    double trust, max_norm;
};

static_assert(sizeof(Update) <= 4096, "the arguments of a launch");

}  // namespace gpu
}  // namespace simclr
