// Multi-tensor optimizer updates by the formulas of optimizer.h. Norms are summed in f32 within a thread and in f64 across
// threads, in an order that does not depend on the order in which blocks run.

#include "optimizer.h"

namespace simclr {
namespace gpu {

// The range of a parameter that a block updates.
struct Piece {
    int tensor, blocks;  // index in the launch; number of blocks of that tensor
    int64_t from, to;
};

DEVICE Piece piece(const Update& a) {
    int tensor = 0;
    while (tensor + 1 < a.count && a.tensors[tensor + 1].first_block <= BLOCK_X) tensor++;
    int next = tensor + 1 < a.count ? a.tensors[tensor + 1].first_block : BLOCKS_X;
    int64_t from = static_cast<int64_t>(BLOCK_X - a.tensors[tensor].first_block) * PIECE, to = from + PIECE;
    int64_t count = a.tensors[tensor].count;
    return {tensor, next - a.tensors[tensor].first_block, from, to < count ? to : count};
}

struct Sum2 {
    double first, second;
};

// Block-wide sum; every thread gets the result.
DEVICE Sum2 over_block(double first, double second) {
    SHARED double sums[2][THREADS];
    BARRIER();  // `sums` may still be read from an earlier call
    sums[0][THREAD] = first, sums[1][THREAD] = second;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        BARRIER();
        if (THREAD < half) {
            sums[0][THREAD] += sums[0][THREAD + half];
            sums[1][THREAD] += sums[1][THREAD + half];
        }
    }
    BARRIER();
    return {sums[0][0], sums[1][0]};
}

DEVICE void write_sums(const Update& a, float first, float second) {
    Sum2 sums = over_block(first, second);
    if (THREAD == 0) a.partial[2 * BLOCK_X] = sums.first, a.partial[2 * BLOCK_X + 1] = sums.second;
}

// The norms of a whole parameter, from the sums of its blocks.
DEVICE Sum2 norms(const Update& a, const Piece& at) {
    double first = 0, second = 0;
    const double* sums = a.partial + 2 * a.tensors[at.tensor].first_block;
    for (int block = THREAD; block < at.blocks; block += THREADS) first += sums[2 * block], second += sums[2 * block + 1];
    Sum2 squares = over_block(first, second);
    return {sqrt(squares.first), sqrt(squares.second)};
}

DEVICE bool skips_update(const Update& a) {
    // x - x is 0 for finite numbers only.
    return a.guard != nullptr && !(*a.guard - *a.guard == 0);
}

// 1 unless both are positive: a zero-initialised layer must be able to leave zero.
DEVICE double ratio_or_one(double numerator, double denominator) {
    return numerator > 0 && denominator > 0 ? numerator / denominator : 1;
}

// The first block of a tensor writes its trust ratio.
DEVICE void write_ratio(const Update& a, const Piece& at, double ratio) {
    if (a.trust_ratios != nullptr && THREAD == 0 && at.from == 0) a.trust_ratios[at.tensor] = ratio;
}

// Sums of w^2 and (g + w * decay)^2.
KERNEL(optimizer_norms, Update) {
    Piece at = piece(a);
    const Tensor& p = a.tensors[at.tensor];
    float decay = a.separate_norms || !p.decayed ? 0 : a.decay, weights = 0, gradients = 0;
    for (int64_t i = at.from + THREAD; i < at.to; i += THREADS) {
        float w = p.weight[i], g = p.gradient[i] + w * decay;
        weights += w * w;
        gradients += g * g;
    }
    write_sums(a, weights, gradients);
}

KERNEL(optimizer_momentum, Update) {
    if (skips_update(a)) return;
    Piece at = piece(a);
    const Tensor& p = a.tensors[at.tensor];
    double ratio = 1, lr = a.scalars[0];
    if (a.layerwise && p.adapted) {
        Sum2 found = norms(a, at);
        double gradient = found.second + (a.separate_norms && p.decayed ? a.decay * found.first : 0);
        ratio = ratio_or_one(a.trust * found.first, gradient);
        write_ratio(a, at, ratio);
    }
    float decay = p.decayed ? a.decay : 0;
    float inside = static_cast<float>(a.lr_in_momentum ? lr * ratio : ratio);
    float outside = static_cast<float>(a.lr_in_momentum ? 1 : lr);
    for (int64_t i = at.from + THREAD; i < at.to; i += THREADS) {
        float w = p.weight[i], step = (p.gradient[i] + w * decay) * inside, v = p.first[i] * a.momentum + step;
        p.first[i] = v;
        p.weight[i] = w - outside * (a.nesterov ? v * a.momentum + step : v);
    }
}

// u of optimizer.h, from the new moments.
DEVICE float adam_update(const Update& a, const Tensor& p, float w, float m, float s) {
    float added = a.layerwise && p.decayed ? a.decay : 0;
    float unbias1 = static_cast<float>(a.scalars[1]), unbias2 = static_cast<float>(a.scalars[2]);
    return (m / unbias1) / (sqrtf(s / unbias2) + a.eps) + w * added;
}

// The new moments, and sums of w^2 and u^2.
KERNEL(optimizer_adam_moments, Update) {
    if (skips_update(a)) return;
    Piece at = piece(a);
    const Tensor& p = a.tensors[at.tensor];
    float weights = 0, updates = 0;
    for (int64_t i = at.from + THREAD; i < at.to; i += THREADS) {
        float w = p.weight[i], g = p.gradient[i];
        float m = p.first[i] * a.beta1 + g * a.one_less_beta1, s = p.second[i] * a.beta2 + g * g * a.one_less_beta2;
        p.first[i] = m, p.second[i] = s;
        float u = adam_update(a, p, w, m, s);
        weights += w * w;
        updates += u * u;
    }
    write_sums(a, weights, updates);
}

KERNEL(optimizer_adam_weights, Update) {
    if (skips_update(a)) return;
    Piece at = piece(a);
    const Tensor& p = a.tensors[at.tensor];
    double ratio = 1, lr = a.scalars[0];
    if (a.layerwise && p.adapted) {
        Sum2 found = norms(a, at);
        ratio = ratio_or_one(found.first < a.max_norm ? found.first : a.max_norm, found.second);
        write_ratio(a, at, ratio);
    }
    float kept = a.layerwise || !p.decayed ? 1 : static_cast<float>(1 - lr * a.decay), rate = static_cast<float>(lr * ratio);
    for (int64_t i = at.from + THREAD; i < at.to; i += THREADS) {
        float w = p.weight[i];
        p.weight[i] = w * kept - adam_update(a, p, w, p.first[i], p.second[i]) * rate;
    }
}

}  // namespace gpu
}  // namespace simclr
