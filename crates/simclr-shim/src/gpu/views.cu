// Views from bytes: crop and resize, colour, blur. A value depends on its own view alone and is computed in one order, so
// the same dice give the same bits in any batch.

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
// fast_image_resize does it on the CPU (Pillow takes columns first); nothing is rounded to bytes. Without antialiasing it is
// tf.image.resize: simclr-data/src/augment/sample.rs.

// Weights that are kept; where more source pixels make one of the view, they are computed where they are used.
constexpr int KEPT = 64;
// Source columns that are averaged over rows at a time.
constexpr int SPAN = 64;
constexpr int LINES = TILE_COLUMNS + TILE_ROWS;

// How the source pixels of a crop weigh in a column or row of the view, by their number from the crop's edge. The filter
// sees beyond the crop, where the image goes on (Pillow's `box`).
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
    int low, high;  // what counts, from the crop's edge: of the image, or without antialiasing of the crop
    int cubic, antialias;
};

DEVICE Axis axis(int before, int length, int all, int side, int cubic, int antialias) {
    double radius = cubic ? 2 : 1;
    if (!antialias) {
        return {static_cast<float>(length) / static_cast<float>(side), 1, radius, 0, length, cubic, antialias};
    }
    double scale = static_cast<double>(length) / side, widened = scale > 1 ? scale : 1;
    return {scale, 1 / widened, radius * widened, -before, all - before, cubic, antialias};
}

// Where a pixel of the view lies, from the crop's edge. TensorFlow rounds to f32 after each operation, and so no product may
// be fused with the difference that follows it.
DEVICE double centre_of(const Axis& axis, int pixel) {
    if (axis.antialias) return (pixel + 0.5) * axis.scale;
    float product = static_cast<float>((pixel + 0.5) * axis.scale);
    return static_cast<double>(product - 0.5f) + 0.5;
}

DEVICE float computed(const Axis& axis, double centre, int at) {
    float x = static_cast<float>((at + 0.5 - centre) * axis.inverse);
    // TensorFlow has a table of the cubic, 1024 steps a pixel.
    if (!axis.antialias && axis.cubic) x = rintf(x * 1024) / 1024;
    return filter(x, axis.cubic);
}

// The weights of one line, from the table or, where that is too small, computed.
struct Line {
    const float* kept;
    double centre;
    int first, end;
    bool tabled;
};

DEVICE Line line_of(const Lines& lines, int line) {
    int first = lines.first[line], end = lines.end[line];
    return {lines.weights[line], lines.centre[line], first, end, end - first <= KEPT};
}

// Loops are written once and compiled for both, so that the loads of a table's loop do not wait for each other.
template <bool TABLED>
DEVICE float weight(const Line& line, const Axis& axis, int at) {
    return TABLED ? line.kept[at - line.first] : computed(axis, line.centre, at);
}

template <bool TABLED>
DEVICE float sum_of(const Line& line, const Axis& axis) {
    float sum = 0;
    for (int at = line.first; at < line.end; at++) sum += weight<TABLED>(line, axis, at);
    return sum;
}

// Fills the lines of a tile: columns from `column` on, then rows from `row` on. All threads call it.
DEVICE void fill(Lines& lines, const Axis& x, const Axis& y, int column, int row) {
    constexpr int TOGETHER = THREADS / LINES;  // threads that share a line
    int number = THREAD % LINES, turn = THREAD / LINES;
    bool across = number < TILE_COLUMNS;
    Axis own{across ? x.scale : y.scale, across ? x.inverse : y.inverse, across ? x.radius : y.radius,
             across ? x.low : y.low,     across ? x.high : y.high,       x.cubic,
             x.antialias};
    if (turn == 0) {
        double centre = centre_of(own, across ? column + number : row + number - TILE_COLUMNS);
        lines.centre[number] = centre;
        lines.first[number] = larger(static_cast<int>(floor(centre - own.radius)), own.low);
        lines.end[number] = smaller(static_cast<int>(ceil(centre + own.radius)), own.high);
    }
    BARRIER();
    Line line = line_of(lines, number);
    if (line.tabled && turn < TOGETHER) {
        for (int tap = turn; tap < line.end - line.first; tap += TOGETHER) {
            lines.weights[number][tap] = computed(own, line.centre, line.first + tap);
        }
    }
    BARRIER();
    if (turn == 0) {
        float sum = line.tabled ? sum_of<true>(line, own) : sum_of<false>(line, own);
        // A line beyond the view may lie beyond the image, too.
        lines.norm[number] = sum != 0 ? 1 / sum : 0.0f;
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

// Channels that a block takes: C of them where that is known, else up to GROUP from `channel` on.
template <int C>
DEVICE int group(const Resize& a, int channel) {
    return C == 0 ? smaller(GROUP, a.channels - channel) : C;
}

template <int C>
constexpr int ROOM = C == 0 ? GROUP : C;

// Adds up what a line makes of a column of the source; `step` bytes from row to row.
template <int C, bool TABLED>
DEVICE void add_column(const Line& line, const Axis& axis, const uint8_t* pixel, int64_t step, int count,
                       float (&sums)[ROOM<C>]) {
    for (int y = line.first; y < line.end; y++, pixel += step) {
        float share = weight<TABLED>(line, axis, y);
        for (int c = 0; c < ROOM<C>; c++) {
            if (c < count) sums[c] += share * static_cast<float>(pixel[c]);
        }
    }
}

// The means over rows of SPAN source columns from `from` on, for each of the tile's rows.
template <int C>
DEVICE void average_rows(const Resize& a, const View& view, const Lines& lines, const Axis& axis, int from, int to,
                         int channel, float (&means)[TILE_ROWS][ROOM<C>][SPAN + 1]) {
    int count = group<C>(a, channel), channels = C == 0 ? a.channels : C;
    int64_t step = static_cast<int64_t>(view.width) * channels;
    for (int i = THREAD; i < TILE_ROWS * SPAN; i += THREADS) {
        int row = i / SPAN, at = i % SPAN;
        if (from + at >= to) continue;
        Line line = line_of(lines, TILE_COLUMNS + row);
        float sums[ROOM<C>] = {};
        const uint8_t* pixel = a.pixels + view.at + static_cast<int64_t>(view.left + from + at) * channels + channel +
                               (view.top + line.first) * step;
        if (line.tabled) {
            add_column<C, true>(line, axis, pixel, step, count, sums);
        } else {
            add_column<C, false>(line, axis, pixel, step, count, sums);
        }
        float norm = lines.norm[TILE_COLUMNS + row];
        for (int c = 0; c < ROOM<C>; c++) {
            float mean = sums[c] * norm;
            if (c < count) means[row][c][at] = axis.antialias ? within(mean, 0.0f, 255.0f) : mean;
        }
    }
}

// The rows of a tile that a thread has.
constexpr int EACH = TILE_ROWS * TILE_COLUMNS / THREADS, BELOW = THREADS / TILE_COLUMNS;

// Adds up what a line makes of the averaged columns from `from` on, up to `end`.
template <int C, bool TABLED>
DEVICE void add_rows(const Line& line, const Axis& axis, int from, int end, int count,
                     const float (&means)[TILE_ROWS][ROOM<C>][SPAN + 1], float (&sums)[EACH][ROOM<C>]) {
    int top = THREAD / TILE_COLUMNS;
    for (int x = larger(line.first, from); x < end; x++) {
        float share = weight<TABLED>(line, axis, x);
        for (int i = 0; i < EACH; i++) {
            for (int c = 0; c < ROOM<C>; c++) {
                if (c < count) sums[i][c] += share * means[top + i * BELOW][c][x - from];
            }
        }
    }
}

// The tile's values [TILE_ROWS][TILE_COLUMNS][count] leave in the order of memory where nothing is turned.
template <int C>
DEVICE void write_tile(const Resize& a, const View& view, int number, int column, int row, int channel,
                       const float* tile) {
    int count = group<C>(a, channel), channels = C == 0 ? a.channels : C, wide = TILE_COLUMNS * count;
    int64_t start = static_cast<int64_t>(number) * a.side * a.side;
    for (int i = THREAD; i < TILE_ROWS * wide; i += THREADS) {
        int y = i / wide, x = i % wide / count, c = i % wide % count;
        if (row + y >= a.side || column + x >= a.side) continue;
        int64_t to = start + destination(view, row + y, column + x, a.side);
        a.out[to * channels + channel + c] = tile[i];
    }
}

template <int C>
DEVICE void resize(const Resize& a) {
    SHARED Lines lines;
    SHARED float means[TILE_ROWS][ROOM<C>][SPAN + 1];
    int number = BLOCK_X / a.tiles, across = (a.side + TILE_COLUMNS - 1) / TILE_COLUMNS;
    int column = BLOCK_X % a.tiles % across * TILE_COLUMNS, row = BLOCK_X % a.tiles / across * TILE_ROWS;
    int channel = BLOCK_Y * GROUP, count = group<C>(a, channel);
    const View& view = a.views[number];
    Axis x_axis = axis(view.left, view.columns, view.width, a.side, a.cubic, a.antialias);
    Axis y_axis = axis(view.top, view.rows, view.height, a.side, a.cubic, a.antialias);
    fill(lines, x_axis, y_axis, column, row);
    int own = THREAD % TILE_COLUMNS, top = THREAD / TILE_COLUMNS, last = smaller(TILE_COLUMNS, a.side - column) - 1;
    Line line = line_of(lines, own);
    float sums[EACH][ROOM<C>] = {};
    for (int from = lines.first[0]; from < lines.end[last]; from += SPAN) {
        average_rows<C>(a, view, lines, y_axis, from, lines.end[last], channel, means);
        BARRIER();
        int end = own > last ? from : smaller(line.end, from + SPAN);
        if (line.tabled) {
            add_rows<C, true>(line, x_axis, from, end, count, means, sums);
        } else {
            add_rows<C, false>(line, x_axis, from, end, count, means, sums);
        }
        BARRIER();
    }
    float *tile = &means[0][0][0], norm = lines.norm[own];  // nobody reads the means any more
    for (int i = 0; i < EACH; i++) {
        float* to = tile + ((top + i * BELOW) * TILE_COLUMNS + own) * count;
        for (int c = 0; c < ROOM<C>; c++) {
            float value = sums[i][c] * norm;
            if (c < count) to[c] = (a.antialias ? within(value, 0.0f, 255.0f) : value) / 255.0f;
        }
    }
    BARRIER();
    write_tile<C>(a, view, number, column, row, channel, tile);
}

// One kernel for one channel, for three, and for any number.
#define EACH_CHANNELS(name, Arguments, body)                                                                           \
    KERNEL(name##_1, Arguments) { body<1>(a); }                                                                        \
    KERNEL(name##_3, Arguments) { body<3>(a); }                                                                        \
    KERNEL(name##_any, Arguments) { body<0>(a); }

EACH_CHANNELS(view_resize, Resize, resize)

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
    float value = x.at[0], smallest = x.at[0];
    for (int c = 1; c < channels; c++) value = most(value, x.at[c]), smallest = least(smallest, x.at[c]);
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

template <int C>
DEVICE void clip(Pixel<C>& x, int channels) {
    for (int c = 0; c < channels; c++) x.at[c] = unit(x.at[c]);
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
        for (int i = 0; i < before; i++) {
            changed<C>(x, view.change[i], channels);
            if (a.clips && i == 0) clip<C>(x, channels);
        }
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
    if (count == 0 && !ends && !a.clips) return;
    Pixel<C> add{};
    if (about >= 0) add = offsets<C>(a, number, view.change[about].value, channels);
    for (int at = block * THREADS + THREAD; at < area; at += a.blocks * THREADS) {
        int64_t place = static_cast<int64_t>(number) * area + at;
        Pixel<C> x = pixel<C>(a.values, place, channels);
        if (a.clips && count == 0) clip<C>(x, channels);
        for (int i = 0; i < count; i++) {
            Change change = view.change[i];
            if (i != about) {
                changed<C>(x, change, channels);
            } else {
                for (int c = 0; c < channels; c++) x.at[c] = unit(x.at[c] * change.value + add.at[c]);
            }
            if (a.clips && i == 0) clip<C>(x, channels);
        }
        for (int c = 0; c < channels; c++) {
            a.values[place * channels + c] = ends ? finished(view, x.at[c], at % a.side, at / a.side) : x.at[c];
        }
    }
}

EACH_CHANNELS(view_means, Means, means)
EACH_CHANNELS(view_recolour, Recolour, recolour)

// ---- Blur: simclr-data/src/augment/blur.rs; beyond the edges is zero.

// Weights of a Gaussian with RUN zeros on both sides; `radius` without the outer ones, which change no value by more than a
// fiftieth of an f32's rounding step at 1. At most THREADS of them.
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
