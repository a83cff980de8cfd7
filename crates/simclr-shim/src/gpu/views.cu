// Views from bytes: crop and resize, colour, blur. A value depends on its own view alone and is computed in one order, so the
// same dice give the same bits in any batch.

#include "views.h"

namespace simclr {
namespace gpu {

DEVICE float within(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
DEVICE float unit(float x) { return within(x, 0.0f, 1.0f); }
DEVICE float least(float a, float b) { return a < b ? a : b; }
DEVICE float most(float a, float b) { return a > b ? a : b; }
DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }

// ---- Crop and resize: Pillow's Resample.c. Rows are averaged first and cut at the byte's range, then columns, as
// fast_image_resize does it on the CPU (Pillow takes columns first); nothing is rounded to bytes.

// Weights that are kept; where more source pixels make one of the view, they are computed where they are used.
constexpr int KEPT = 64;
// Source columns that are averaged over rows at a time.
constexpr int SPAN = 64;
constexpr int LINES = TILE_COLUMNS + TILE_ROWS;

// How the source pixels of a crop weigh in a column or row of the view, by their number from the crop's edge. The filter sees
// beyond the crop, where the image goes on (Pillow's `box`).
struct Lines {
    double centre[LINES];
    int first[LINES], end[LINES];
    float norm[LINES];
    float weights[LINES][KEPT + 1];
};

// Keys' cubic with a = -0.5, or a triangle.
DEVICE float filter(float x, int cubic) {
    x = x < 0 ? -x : x;
    if (!cubic) return x < 1 ? 1 - x : 0.0f;
    if (x < 1) return (1.5f * x - 2.5f) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5f : 0.0f;
}

// One direction of a view's resize.
struct Axis {
    double scale, inverse;  // source pixels of a pixel of the view; 1 / the filter's scale
    double radius;
    int low, high;  // the image's first and end, from the crop's edge
};

DEVICE Axis axis(int before, int length, int all, int side, int cubic) {
    double scale = static_cast<double>(length) / side, widened = scale > 1 ? scale : 1;
    return {scale, 1 / widened, (cubic ? 2 : 1) * widened, -before, all - before};
}

DEVICE float weight(const Lines& lines, int line, const Axis& axis, int at, int cubic) {
    int tap = at - lines.first[line];
    if (lines.end[line] - lines.first[line] <= KEPT) return lines.weights[line][tap];
    return filter(static_cast<float>((at + 0.5 - lines.centre[line]) * axis.inverse), cubic);
}

// Fills the lines of a tile: columns from `column` on, then rows from `row` on. All threads call it.
DEVICE void fill(Lines& lines, const Axis (&axes)[2], int column, int row, int cubic) {
    int line = THREAD;
    if (line < LINES) {
        bool across = line < TILE_COLUMNS;
        const Axis& axis = axes[across ? 0 : 1];
        double centre = ((across ? column + line : row + line - TILE_COLUMNS) + 0.5) * axis.scale;
        lines.centre[line] = centre;
        lines.first[line] = larger(static_cast<int>(floor(centre - axis.radius)), axis.low);
        lines.end[line] = smaller(static_cast<int>(ceil(centre + axis.radius)), axis.high);
    }
    BARRIER();
    for (int i = THREAD; i < LINES * KEPT; i += THREADS) {
        int of = i / KEPT, tap = i % KEPT;
        if (tap >= lines.end[of] - lines.first[of]) continue;
        double distance = lines.first[of] + tap + 0.5 - lines.centre[of];
        const Axis& axis = axes[of < TILE_COLUMNS ? 0 : 1];
        lines.weights[of][tap] = filter(static_cast<float>(distance * axis.inverse), cubic);
    }
    BARRIER();
    if (line < LINES) {
        float sum = 0;
        const Axis& axis = axes[line < TILE_COLUMNS ? 0 : 1];
        for (int at = lines.first[line]; at < lines.end[line]; at++) sum += weight(lines, line, axis, at, cubic);
        // A line beyond the view may lie beyond the image, too.
        lines.norm[line] = sum != 0 ? 1 / sum : 0.0f;
    }
    BARRIER();
}

// Where a pixel of the resized crop goes.
DEVICE int64_t destination(const View& view, int row, int column, int side) {
    if (view.mirrored) column = side - 1 - column;
    for (int i = 0; i < view.turns; i++) {
        int was = row;
        row = side - 1 - column, column = was;
    }
    return static_cast<int64_t>(row) * side + column;
}

// The mean over rows of SPAN source columns from `from` on: [TILE_ROWS][GROUP][SPAN].
DEVICE void average_rows(const Resize& a, const View& view, const Lines& lines, const Axis& axis, int from, int to,
                         int channel, float (&means)[TILE_ROWS][GROUP][SPAN + 1]) {
    int group = smaller(GROUP, a.channels - channel);
    for (int i = THREAD; i < TILE_ROWS * SPAN; i += THREADS) {
        int row = i / SPAN, at = i % SPAN, line = TILE_COLUMNS + row;
        if (from + at >= to) continue;
        float sums[GROUP] = {0, 0, 0, 0};
        int64_t step = static_cast<int64_t>(view.width) * a.channels;
        const uint8_t* pixel = a.pixels + view.at + static_cast<int64_t>(view.left + from + at) * a.channels + channel +
                               (view.top + lines.first[line]) * step;
        for (int y = lines.first[line]; y < lines.end[line]; y++, pixel += step) {
            float share = weight(lines, line, axis, y, a.cubic);
            for (int c = 0; c < GROUP; c++) {
                if (c < group) sums[c] += share * static_cast<float>(pixel[c]);
            }
        }
        for (int c = 0; c < GROUP; c++) {
            if (c < group) means[row][c][at] = within(sums[c] * lines.norm[line], 0.0f, 255.0f);
        }
    }
}

// The tile's values [TILE_ROWS][TILE_COLUMNS][group] leave in the order of memory where nothing is turned.
DEVICE void write_tile(const Resize& a, const View& view, int number, int column, int row, int channel,
                       const float* tile) {
    int group = smaller(GROUP, a.channels - channel), wide = TILE_COLUMNS * group;
    int64_t area = static_cast<int64_t>(a.side) * a.side;
    for (int i = THREAD; i < TILE_ROWS * wide; i += THREADS) {
        int y = i / wide, x = i % wide / group, c = i % wide % group;
        if (row + y >= a.side || column + x >= a.side) continue;
        int64_t to = number * area + destination(view, row + y, column + x, a.side);
        a.out[to * a.channels + channel + c] = tile[i];
    }
}

KERNEL(view_resize, Resize) {
    SHARED Lines lines;
    SHARED float means[TILE_ROWS][GROUP][SPAN + 1];
    int number = BLOCK_X / a.tiles, across = (a.side + TILE_COLUMNS - 1) / TILE_COLUMNS;
    int column = BLOCK_X % a.tiles % across * TILE_COLUMNS, row = BLOCK_X % a.tiles / across * TILE_ROWS;
    int channel = BLOCK_Y * GROUP, group = smaller(GROUP, a.channels - channel);
    const View& view = a.views[number];
    Axis axes[2] = {axis(view.left, view.columns, view.width, a.side, a.cubic),
                    axis(view.top, view.rows, view.height, a.side, a.cubic)};
    fill(lines, axes, column, row, a.cubic);
    constexpr int EACH = TILE_ROWS * TILE_COLUMNS / THREADS;
    int line = THREAD % TILE_COLUMNS, last = smaller(TILE_COLUMNS, a.side - column) - 1;
    float sums[EACH][GROUP] = {};
    for (int from = lines.first[0]; from < lines.end[last]; from += SPAN) {
        average_rows(a, view, lines, axes[1], from, lines.end[last], channel, means);
        BARRIER();
        int end = line > last ? 0 : smaller(lines.end[line], from + SPAN);
        for (int x = larger(lines.first[line], from); x < end; x++) {
            float share = weight(lines, line, axes[0], x, a.cubic);
            for (int i = 0; i < EACH; i++) {
                int y = THREAD / TILE_COLUMNS + i * (THREADS / TILE_COLUMNS);
                for (int c = 0; c < GROUP; c++) {
                    if (c < group) sums[i][c] += share * means[y][c][x - from];
                }
            }
        }
        BARRIER();
    }
    float* tile = &means[0][0][0];  // which nobody reads any more
    for (int i = 0; i < EACH; i++) {
        int y = THREAD / TILE_COLUMNS + i * (THREADS / TILE_COLUMNS);
        float* to = tile + (y * TILE_COLUMNS + line) * group;
        for (int c = 0; c < GROUP; c++) {
            if (c < group) to[c] = within(sums[i][c] * lines.norm[line], 0.0f, 255.0f) / 255.0f;
        }
    }
    BARRIER();
    write_tile(a, view, number, column, row, channel, tile);
}

// ---- Colour: simclr-data/src/augment/color.rs (google-research/simclr `data_util.py`).

// A pixel of C channels, or of as many as there are where C is 0.
template <int C>
struct Pixel {
    float at[C == 0 ? MOST_CHANNELS : C];
};

template <int C>
DEVICE Pixel<C> pixel(const float* values, int64_t at, int channels) {
    Pixel<C> x;
    for (int c = 0; c < (C == 0 ? channels : C); c++) x.at[c] = values[at * channels + c];
    return x;
}

// ITU-R BT.601, as TensorFlow rounds it; of other than three channels the mean.
template <int C>
DEVICE float luma(const Pixel<C>& x, int channels) {
    if constexpr (C == 3) {
        return 0.2989f * x.at[0] + 0.5870f * x.at[1] + 0.1140f * x.at[2];
    } else {
        float sum = 0;
        for (int c = 0; c < channels; c++) sum += x.at[c];
        return sum / static_cast<float>(channels);
    }
}

// Scales the distance of every channel from the largest one (saturation in HSV).
template <int C>
DEVICE void saturate(Pixel<C>& x, float factor, int channels) {
    float value = 0, smallest = 1;
    for (int c = 0; c < channels; c++) value = most(value, x.at[c]), smallest = least(smallest, x.at[c]);
    float chroma = value - smallest, ratio = chroma * factor > value ? value / chroma : factor;
    for (int c = 0; c < channels; c++) x.at[c] = unit(value - (value - x.at[c]) * ratio);
}

// RGB to HSV, H + shift, back: see `turned` in color.rs.
DEVICE void turn(float& r, float& g, float& b, float turns) {
    float shift = 6.0f * (turns - roundf(turns));
    float value = most(most(r, g), b), chroma = value - least(least(r, g), b);
    float inverse = chroma > 0 ? 1 / chroma : 0.0f;
    float from = value == r ? 0.0f : value == g ? 2.0f : 4.0f;
    float difference = value == r ? g - b : value == g ? b - r : r - g;
    float hue = difference * inverse + from + shift;
    hue = hue < 0 ? hue + 6 : hue;
    hue = hue >= 6 ? hue - 6 : hue;
    r = value - chroma * unit(2 - fabsf(hue - 3));
    g = value - chroma * unit(fabsf(hue - 2) - 1);
    b = value - chroma * unit(fabsf(hue - 4) - 1);
}

// One change but contrast.
template <int C>
DEVICE void changed(Pixel<C>& x, Change change, int channels) {
    float value = change.value;
    if (change.kind == SCALE || change.kind == SHIFT) {
        bool scale = change.kind == SCALE;
        for (int c = 0; c < channels; c++) x.at[c] = unit(scale ? x.at[c] * value : x.at[c] + value);
    } else if (C == 1) {
        return;  // the others know no single channel
    } else if (change.kind == SATURATION) {
        saturate<C>(x, value, channels);
    } else if (change.kind == BLEND) {
        float gray = luma<C>(x, channels) * (1 - value);
        for (int c = 0; c < channels; c++) x.at[c] = unit(x.at[c] * value + gray);
    } else if (change.kind == GRAY) {
        float gray = unit(luma<C>(x, channels));
        for (int c = 0; c < channels; c++) x.at[c] = gray;
    } else if (change.kind == HUE) {
        if constexpr (C == 3) turn(x.at[0], x.at[1], x.at[2], value);
    }
}

DEVICE int contrast(const View& view) {
    for (int i = 0; i < view.changes; i++) {
        if (view.change[i].kind == CONTRAST) return i;
    }
    return -1;
}

template <int C>
DEVICE void means(const Means& a) {
    SHARED float shared[THREADS];
    int number = BLOCK_X / a.parts, part = BLOCK_X % a.parts, channels = C == 0 ? a.channels : C;
    const View& view = a.views[number];
    int before = contrast(view), area = a.side * a.side;
    if (before < 0) return;
    Pixel<C> sums{};
    for (int at = part * THREADS + THREAD; at < area; at += a.parts * THREADS) {
        Pixel<C> x = pixel<C>(a.in, static_cast<int64_t>(number) * area + at, channels);
        for (int i = 0; i < before; i++) changed<C>(x, view.change[i], channels);
        for (int c = 0; c < channels; c++) sums.at[c] += x.at[c];
    }
    for (int c = 0; c < channels; c++) {
        shared[THREAD] = sums.at[c];
        for (int half = THREADS / 2; half > 0; half /= 2) {
            BARRIER();
            if (THREAD < half) shared[THREAD] += shared[THREAD + half];
        }
        if (THREAD == 0) a.partial[(static_cast<int64_t>(number) * a.parts + part) * channels + c] = shared[0];
        BARRIER();
    }
}

// What contrast adds to each channel: mean - mean * factor, of the channel or of the grey image. All threads call it.
template <int C>
DEVICE Pixel<C> offsets(const Recolour& a, int number, float factor, int channels) {
    SHARED float means[MOST_CHANNELS];
    if (THREAD < channels) {
        const float* partial = a.partial + static_cast<int64_t>(number) * a.parts * channels + THREAD;
        float sum = 0;
        for (int part = 0; part < a.parts; part++) sum += partial[part * channels];
        means[THREAD] = sum / static_cast<float>(a.side * a.side);
    }
    BARRIER();
    Pixel<C> mean = pixel<C>(means, 0, channels);
    float gray = a.gray_mean ? luma<C>(mean, channels) : 0.0f;
    for (int c = 0; c < channels; c++) {
        float about = a.gray_mean ? gray : mean.at[c];
        mean.at[c] = about - about * factor;
    }
    return mean;
}

DEVICE bool cuts(const View& view) { return view.cut_left < view.cut_right && view.cut_top < view.cut_bottom; }

// Solarization and the grey square: simclr-data/src/augment/study.rs.
DEVICE float finished(const View& view, float value, int x, int y) {
    if (view.inverts && value >= view.threshold) value = 1 - value;
    bool cut = x >= view.cut_left && x < view.cut_right && y >= view.cut_top && y < view.cut_bottom;
    return cut ? 0.5f : value;
}

template <int C>
DEVICE void recolour(const Recolour& a) {
    int number = BLOCK_X / a.blocks, block = BLOCK_X % a.blocks, channels = C == 0 ? a.channels : C;
    const View& view = a.views[number];
    int count = view.changes, about = contrast(view), area = a.side * a.side;
    bool last = view.sigma == 0, ends = last && (view.inverts || cuts(view));
    if (count == 0 && !ends) return;
    Pixel<C> add{};
    if (about >= 0) add = offsets<C>(a, number, view.change[about].value, channels);
    for (int at = block * THREADS + THREAD; at < area; at += a.blocks * THREADS) {
        int64_t place = static_cast<int64_t>(number) * area + at;
        Pixel<C> x = pixel<C>(a.values, place, channels);
        for (int i = 0; i < count; i++) {
            Change change = view.change[i];
            if (i != about) {
                changed<C>(x, change, channels);
            } else {
                for (int c = 0; c < channels; c++) x.at[c] = unit(x.at[c] * change.value + add.at[c]);
            }
        }
        for (int c = 0; c < channels; c++) {
            a.values[place * channels + c] = ends ? finished(view, x.at[c], at % a.side, at / a.side) : x.at[c];
        }
    }
}

// One kernel for one channel, for three, and for any number.
#define EACH_CHANNELS(name, Arguments, body)                                                                           \
    KERNEL(name##_1, Arguments) { body<1>(a); }                                                                        \
    KERNEL(name##_3, Arguments) { body<3>(a); }                                                                        \
    KERNEL(name##_any, Arguments) { body<0>(a); }

EACH_CHANNELS(view_means, Means, means)
EACH_CHANNELS(view_recolour, Recolour, recolour)

// ---- Blur: simclr-data/src/augment/blur.rs; beyond the edges is zero.

// Weights of a Gaussian with RUN - 1 zeros on both sides; `radius` without the outer ones, which change no value by more than
// a fiftieth of an f32's rounding step at 1. At most THREADS of them.
struct Gaussian {
    float weights[THREADS + 2 * RUN];
    int radius;
};

DEVICE float share(const Gaussian& gaussian, int tap) { return gaussian.weights[RUN + tap]; }

DEVICE void fill(Gaussian& gaussian, float sigma, int side) {
    SHARED double raw[THREADS];
    int radius = larger(side / 10 / 2, 1), x = THREAD - radius;
    // As the CPU has it: exp(-(x * x) / (2 sigma sigma)), all f64.
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

// Along rows: one value a thread at a time.
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

// Along columns, and what comes last: RUN values below each other a thread at a time, for which every value is read once.
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
        // The weight of row y in that of row top + i is that of tap y - top - i + radius: it moves on by one with y.
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
