// Motion blur, equalized histograms and Sobel, which read more than a pixel, then solarization and the grey square:
// simclr-data/src/augment/motion_blur.rs, levels.rs, filters.rs.

#include "levels.h"

namespace simclr {
namespace gpu {

// The points of a motion blur: the pixel at the upper left, and the shares of the pixels to the right and below.
struct Points {
    int column[THREADS], row[THREADS];
    float right[THREADS], below[THREADS];
};

// At equal distances on a line of length - 1. Called by all threads.
DEVICE int fill(Points& points, const View& view) {
    int count = larger(static_cast<int>(ceil(static_cast<double>(view.length))), 1);
    if (THREAD < count) {
        double reach = (static_cast<double>(view.length) - 1) / 2;
        double at = count > 1 ? 2 * reach * THREAD / (count - 1) - reach : 0.0;
        double x = at * view.right, y = at * view.down;
        points.column[THREAD] = static_cast<int>(floor(x)), points.row[THREAD] = static_cast<int>(floor(y));
        points.right[THREAD] = static_cast<float>(x - floor(x)), points.below[THREAD] = static_cast<float>(y - floor(y));
    }
    BARRIER();
    return count;
}

// The mean of bilinear samples; pixels outside the view are those of its edge.
KERNEL(view_motion, Filter) {
    SHARED Points points;
    int number = BLOCK_X / a.blocks, block = BLOCK_X % a.blocks, count = a.side * a.side * a.channels;
    const View& view = a.views[number];
    if (view.length == 0) return;
    int samples = fill(points, view);
    const float* in = a.in + static_cast<int64_t>(number) * count;
    for (int at = block * THREADS + THREAD; at < count; at += a.blocks * THREADS) {
        int channel = at % a.channels, x = at / a.channels % a.side, y = at / a.channels / a.side;
        float sum = 0;
        for (int i = 0; i < samples; i++) {
            int left = nearest_inside(x + points.column[i], a.side);
            int right = nearest_inside(x + points.column[i] + 1, a.side);
            const float* above = in + static_cast<int64_t>(nearest_inside(y + points.row[i], a.side)) * a.side * a.channels;
            const float* below = in + static_cast<int64_t>(nearest_inside(y + points.row[i] + 1, a.side)) * a.side * a.channels;
            left = left * a.channels + channel, right = right * a.channels + channel;
            float across = points.right[i], down = points.below[i];
            sum += (above[left] * (1 - across) + above[right] * across) * (1 - down) +
                   (below[left] * (1 - across) + below[right] * across) * down;
        }
        a.out[static_cast<int64_t>(number) * count + at] = unit(sum / static_cast<float>(samples));
    }
}

// A block per channel of a view. Reads what the motion blur wrote if there is one, and writes to `out`.
KERNEL(view_equalize, Filter) {
    SHARED Histogram counts;
    SHARED float table[THREADS];
    int number = BLOCK_X / a.channels, channel = BLOCK_X % a.channels, area = a.side * a.side;
    const View& view = a.views[number];
    if (view.length == 0 && !view.equalizes) return;
    int64_t start = static_cast<int64_t>(number) * area * a.channels + channel;
    const float* in = (view.length > 0 ? a.in : a.out) + start;
    counts[THREAD] = 0;
    BARRIER();
    for (int at = THREAD; at < area && view.equalizes; at += THREADS) {
        count(counts[level(in[static_cast<int64_t>(at) * a.channels])]);
    }
    BARRIER();
    table[THREAD] = of_level(equalized(counts, area, THREAD));
    BARRIER();
    for (int at = THREAD; at < area; at += THREADS) {
        int64_t place = static_cast<int64_t>(at) * a.channels;
        a.out[start + place] = view.equalizes ? table[level(in[place])] : in[place];
    }
}

// Grey value after solarization, at the nearest pixel inside the view.
DEVICE float gray(const Filter& a, const View& view, const float* in, int x, int y) {
    const float* pixel = in + (static_cast<int64_t>(nearest_inside(y, a.side)) * a.side + nearest_inside(x, a.side)) * a.channels;
    if (a.channels == 3) {
        return unit(0.2989f * solarized(view, pixel[0]) + 0.5870f * solarized(view, pixel[1]) +
                    0.1140f * solarized(view, pixel[2]));
    }
    float sum = 0;
    for (int c = 0; c < a.channels; c++) sum += solarized(view, pixel[c]);
    return unit(sum / static_cast<float>(a.channels));
}

// Sobel's gradient magnitude of the grey image, in every channel.
KERNEL(view_edges, Filter) {
    int number = BLOCK_X / a.blocks, block = BLOCK_X % a.blocks, area = a.side * a.side;
    const View& view = a.views[number];
    if (!view.edges) return;
    const float* in = a.in + static_cast<int64_t>(number) * area * a.channels;
    for (int at = block * THREADS + THREAD; at < area; at += a.blocks * THREADS) {
        int x = at % a.side, y = at / a.side;
        float near[3][3];
        for (int i = 0; i < 9; i++) near[i / 3][i % 3] = gray(a, view, in, x + i % 3 - 1, y + i / 3 - 1);
        float columns[3], rows[3];
        for (int i = 0; i < 3; i++) {
            columns[i] = near[0][i] + 2 * near[1][i] + near[2][i];
            rows[i] = near[i][0] + 2 * near[i][1] + near[i][2];
        }
        float across = columns[2] - columns[0], down = rows[2] - rows[0];
        float magnitude = least(sqrtf(across * across + down * down), 1.0f);
        float* out = a.out + (static_cast<int64_t>(number) * area + at) * a.channels;
        for (int c = 0; c < a.channels; c++) out[c] = magnitude;
    }
}

// Copies the edges to `out`, or solarizes there; then the grey square.
KERNEL(view_finish, Filter) {
    int number = BLOCK_X / a.blocks, block = BLOCK_X % a.blocks, count = a.side * a.side * a.channels;
    const View& view = a.views[number];
    if (!reads_around(view)) return;
    for (int at = block * THREADS + THREAD; at < count; at += a.blocks * THREADS) {
        int64_t place = static_cast<int64_t>(number) * count + at;
        int x = at / a.channels % a.side, y = at / a.channels / a.side;
        a.out[place] = masked(view, view.edges ? a.in[place] : solarized(view, a.out[place]), x, y);
    }
}

}  // namespace gpu
}  // namespace simclr
