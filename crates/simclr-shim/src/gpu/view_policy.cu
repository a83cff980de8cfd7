// AutoAugment's operations: simclr-data/src/augment/policy.rs, affine.rs, enhance.rs, levels.rs. A view with operations takes two
// passes, values to other memory and back, of which the second copies if there is one operation only.

#include "levels.h"

namespace simclr {
namespace gpu {

// The operation of this pass, or 0.
DEVICE int operation(const Policy& a, const View& view) {
    return a.number < view.steps ? view.step[a.number].operation : 0;
}

// What a level becomes; `counts` is the histogram of the channel, or of the grey image for MEAN_CONTRAST.
DEVICE int mapped(const Step& step, const Histogram& counts, int pixels, int level) {
    switch (step.operation) {
        case BRIGHTNESS: return blended(0, level, step.value);
        case MEAN_CONTRAST: return blended(mean(counts, pixels), level, step.value);
        case POSTERIZE: return level & (0xff << (8 - static_cast<int>(within(step.value, 0.0f, 8.0f))));
        case SOLARIZE: return static_cast<float>(level) < step.value ? level : 255 - level;
        case AUTOCONTRAST: return stretched(counts, level);
        case EQUALIZE: return equalized(counts, pixels, level);
        default: return level;
    }
}

// The table of a channel: a block per channel of a view.
KERNEL(view_policy_table, Policy) {
    SHARED Histogram counts;
    int number = BLOCK_X / a.channels, channel = BLOCK_X % a.channels, area = a.side * a.side;
    const View& view = a.views[number];
    int does = operation(a, view);
    if (does < BRIGHTNESS) return;
    const float* in = a.in + static_cast<int64_t>(number) * area * a.channels;
    counts[THREAD] = 0;
    BARRIER();
    bool counted = does == MEAN_CONTRAST || does == AUTOCONTRAST || does == EQUALIZE;
    for (int at = THREAD; at < area && counted; at += THREADS) {
        const float* pixel = in + static_cast<int64_t>(at) * a.channels;
        count(counts[does == MEAN_CONTRAST ? gray_level(pixel, a.channels) : level(pixel[channel])]);
    }
    BARRIER();
    uint8_t* table = a.tables + static_cast<int64_t>(BLOCK_X) * THREADS;
    table[THREAD] = static_cast<uint8_t>(mapped(view.step[a.number], counts, area, THREAD));
}

// The pixel that moves to (x, y), or a null pointer outside.
DEVICE const float* source(const Policy& a, const Step& step, const float* in, int x, int y) {
    int64_t from[2];
    for (int axis = 0; axis < 2; axis++) {
        from[axis] = (step.start[axis] + static_cast<int64_t>(step.across[axis]) * x +
                      static_cast<int64_t>(step.down[axis]) * y) >> 16;
        if (from[axis] < 0 || from[axis] >= a.side) return nullptr;
    }
    return in + (from[1] * a.side + from[0]) * a.channels;
}

// The mean of 3 x 3 levels of which the centre counts five times (`ImageFilter.SMOOTH`), rounded; a border pixel itself.
DEVICE int smoothed(const Policy& a, const float* pixel, int x, int y) {
    if (x == 0 || y == 0 || x == a.side - 1 || y == a.side - 1) return level(*pixel);
    int sum = 4 * level(*pixel);
    for (int i = 0; i < 9; i++) sum += level(pixel[((i / 3 - 1) * a.side + i % 3 - 1) * a.channels]);
    return (2 * sum + 13) / 26;
}

KERNEL(view_policy_step, Policy) {
    int number = BLOCK_X / a.blocks, block = BLOCK_X % a.blocks, area = a.side * a.side;
    const View& view = a.views[number];
    if (view.steps == 0) return;
    int does = operation(a, view);
    const Step& step = view.step[a.number];
    const float* in = a.in + static_cast<int64_t>(number) * area * a.channels;
    const uint8_t* tables = a.tables + static_cast<int64_t>(number) * a.channels * THREADS;
    for (int at = block * THREADS + THREAD; at < area; at += a.blocks * THREADS) {
        int x = at % a.side, y = at / a.side;
        const float* pixel = does == GATHER ? source(a, step, in, x, y) : in + static_cast<int64_t>(at) * a.channels;
        int gray = does == COLOR ? gray_level(pixel, a.channels) : 0;
        float* out = a.out + (static_cast<int64_t>(number) * area + at) * a.channels;
        for (int c = 0; c < a.channels; c++) {
            int own = pixel == nullptr ? 0 : level(pixel[c]);
            if (does == COLOR) own = blended(gray, own, step.value);
            if (does == SHARPNESS) own = blended(smoothed(a, pixel + c, x, y), own, step.value);
            if (does >= BRIGHTNESS) own = tables[c * THREADS + own];
            out[c] = of_level(own);
        }
    }
}

}  // namespace gpu
}  // namespace simclr
