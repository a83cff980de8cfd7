// Operators on 8-bit levels, as by Pillow: simclr-data/src/augment/levels.rs, enhance.rs. They repeat the CPU's arithmetic, so
// equal levels give equal levels.
#pragma once

#include "views.h"

namespace simclr {
namespace gpu {

// Number of pixels of every level.
using Histogram = int[THREADS];
static_assert(THREADS == 256, "a thread per level");

// The nearest level; halves are rounded up.
DEVICE int level(float value) { return static_cast<int>(within(value * 255 + 0.5f, 0.0f, 255.0f)); }
DEVICE float of_level(int level) { return static_cast<float>(level) / 255.0f; }

DEVICE int lowest(const Histogram& counts) {
    int at = 0;
    while (at < THREADS - 1 && counts[at] == 0) at++;
    return at;
}

DEVICE int highest(const Histogram& counts) {
    int at = THREADS - 1;
    while (at > 0 && counts[at] == 0) at--;
    return at;
}

// `ImageOps.equalize`; `pixels` is the sum of the counts.
DEVICE int equalized(const Histogram& counts, int pixels, int level) {
    int step = (pixels - counts[highest(counts)]) / 255, below = step / 2;
    for (int i = 0; i < level; i++) below += counts[i];
    return step == 0 ? level : smaller(below / step, 255);
}

// `ImageOps.autocontrast` without a cutoff.
DEVICE int stretched(const Histogram& counts, int level) {
    int low = lowest(counts), high = highest(counts);
    if (high <= low) return level;
    double scale = 255.0 / (high - low), value = product(level, scale) - product(low, scale);
    return static_cast<int>(value < 0 ? 0.0 : value > 255 ? 255.0 : value);
}

// The mean of the levels, rounded.
DEVICE int mean(const Histogram& counts, int pixels) {
    int64_t sum = 0;
    for (int i = 0; i < THREADS; i++) sum += static_cast<int64_t>(i) * counts[i];
    return static_cast<int>(static_cast<double>(sum) / pixels + 0.5);
}

// f x + (1 - f) d, truncated (`Blend.c`).
DEVICE int blended(int degenerate, int level, float factor) {
    float change = product(factor, static_cast<float>(level - degenerate));
    return static_cast<int>(within(static_cast<float>(degenerate) + change, 0.0f, 255.0f));
}

// The level of a grey image: luma in 16-bit fixed point (`Convert.c`) for three channels, else the rounded mean.
DEVICE int gray_level(const float* pixel, int channels) {
    if (channels == 3) {
        return (19595 * level(pixel[0]) + 38470 * level(pixel[1]) + 7471 * level(pixel[2]) + 0x8000) >> 16;
    }
    int sum = 0;
    for (int c = 0; c < channels; c++) sum += level(pixel[c]);
    return (2 * sum + channels) / (2 * channels);
}

}  // namespace gpu
}  // namespace simclr
