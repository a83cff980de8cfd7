// Gaussian blur of views: simclr-data/src/augment/blur.rs; pixels outside the view are zero.

#include "views.h"

namespace simclr {
namespace gpu {

// Weights of a Gaussian, at most THREADS, padded with RUN zeros on both sides; `radius` excludes outer weights below 1e-9,
// which change no value by more than a fiftieth of an f32 rounding step at 1.
struct Gaussian {
    float weights[THREADS + 2 * RUN];
    int radius;
};

DEVICE float share(const Gaussian& gaussian, int tap) { return gaussian.weights[RUN + tap]; }

DEVICE void fill(Gaussian& gaussian, float sigma, int side) {
    SHARED double raw[THREADS];
    int radius = larger(side / 10 / 2, 1), x = THREAD - radius;
    // As on the CPU: exp(-(x * x) / (2 sigma sigma)) in f64.
    raw[THREAD] = exp(-static_cast<double>(x * x) / (2.0 * sigma * sigma));
    BARRIER();
    double sum = 0;
    for (int tap = 0; tap <= 2 * radius; tap++) sum += raw[tap];
    int outer = 0;
    while (outer < radius && static_cast<float>(raw[outer] / sum) < 1e-9f) outer++;
    int left = radius - outer;
    for (int i = THREAD; i < THREADS + 2 * RUN; i += THREADS) {
        int tap = i - RUN;
        bool inside = tap >= 0 && tap <= 2 * left;
        gaussian.weights[i] = inside ? static_cast<float>(raw[tap + outer] / sum) : 0.0f;
    }
    if (THREAD == 0) gaussian.radius = left;
    BARRIER();
}

// Along rows: one value per thread and iteration.
KERNEL(view_blur_rows, Blur) {
    SHARED Gaussian gaussian;
    int number = BLOCK_X / a.blocks, block = BLOCK_X % a.blocks, count = a.side * a.side * a.channels;
    const View& view = a.views[number];
    if (view.sigma == 0) return;
    fill(gaussian, view.sigma, a.side);
    int radius = gaussian.radius;
    for (int at = block * THREADS + THREAD; at < count; at += a.blocks * THREADS) {
        int64_t place = static_cast<int64_t>(number) * count + at;
        int x = at / a.channels % a.side;
        int first = larger(-radius, -x), last = smaller(radius, a.side - 1 - x);
        float sum = 0;
        for (int by = first; by <= last; by++) sum += share(gaussian, by + radius) * a.in[place + by * a.channels];
        a.out[place] = sum;
    }
}

// Along columns, then solarization and the grey square: RUN vertically adjacent values per thread and iteration, for which
// every source value is read once.
KERNEL(view_blur_columns, Blur) {
    SHARED Gaussian gaussian;
    int number = BLOCK_X / a.blocks, block = BLOCK_X % a.blocks, row = a.side * a.channels;
    const View& view = a.views[number];
    if (view.sigma == 0) return;
    fill(gaussian, view.sigma, a.side);
    int radius = gaussian.radius, count = (a.side + RUN - 1) / RUN * row;
    int64_t start = static_cast<int64_t>(number) * a.side * row;
    for (int at = block * THREADS + THREAD; at < count; at += a.blocks * THREADS) {
        int column = at % row, top = at / row * RUN;
        int first = larger(top - radius, 0), last = smaller(top + RUN - 1 + radius, a.side - 1);
        float sums[RUN], shares[RUN];
        // Row y contributes to row top + i with tap y - top - i + radius, which advances by one with y.
        for (int i = 0; i < RUN; i++) sums[i] = 0, shares[i] = share(gaussian, first - top - i + radius);
        for (int y = first; y <= last; y++) {
            float value = a.in[start + static_cast<int64_t>(y) * row + column];
            for (int i = 0; i < RUN; i++) sums[i] += shares[i] * value;
            for (int i = RUN - 1; i > 0; i--) shares[i] = shares[i - 1];
            shares[0] = share(gaussian, smaller(y + 1 - top + radius, 2 * radius + 1));
        }
        for (int i = 0; i < RUN; i++) {
            int y = top + i;
            if (y >= a.side) break;
            float value = finished(view, unit(sums[i]), column / a.channels, y);
            a.out[start + static_cast<int64_t>(y) * row + column] = value;
        }
    }
}

}  // namespace gpu
}  // namespace simclr
