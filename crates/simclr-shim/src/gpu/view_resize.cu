// Crop and resize of views, as Pillow's Resample.c. Rows are averaged first and clamped to the range of a byte, then columns,
// in the order of fast_image_resize on the CPU (Pillow averages columns first); nothing is rounded to bytes. Without
// antialiasing it is tf.image.resize: simclr-data/src/augment/sample.rs.

#include "views.h"

namespace simclr {
namespace gpu {

// Weights that are tabulated per line; with more source pixels per pixel of the view, they are computed on use.
constexpr int KEPT = 64;
// Source columns per pass of the averaging over rows.
constexpr int SPAN = 64;
constexpr int LINES = TILE_COLUMNS + TILE_ROWS;

// Weights of the source pixels in each column and row of a tile, indexed from the crop's edge. The filter extends beyond the
// crop, into the image (Pillow's `box`).
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
    double scale, inverse;  // source pixels per pixel of the view; 1 / the filter's scale
    double radius;
    int low, high;  // valid source range from the crop's edge: the image, or without antialiasing the crop
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

// Source coordinate of the centre of a pixel of the view, from the crop's edge. TensorFlow rounds to f32 after each operation,
// so the product and the difference must not be fused.
DEVICE double centre_of(const Axis& axis, int pixel) {
    if (axis.antialias) return (pixel + 0.5) * axis.scale;
    float product = static_cast<float>((pixel + 0.5) * axis.scale);
    return static_cast<double>(product - 0.5f) + 0.5;
}

DEVICE float computed(const Axis& axis, double centre, int at) {
    float x = static_cast<float>((at + 0.5 - centre) * axis.inverse);
    // TensorFlow tabulates the cubic at 1024 steps per pixel.
    if (!axis.antialias && axis.cubic) x = rintf(x * 1024) / 1024;
    return filter(x, axis.cubic);
}

// The weights of one line, tabulated or computed.
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

// Compiled for both cases, so that the loads of the tabulated loop can be pipelined.
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

// Fills the lines of a tile: columns from `column` on, then rows from `row` on. Called by all threads.
DEVICE void fill(Lines& lines, const Axis& x, const Axis& y, int column, int row) {
    constexpr int TOGETHER = THREADS / LINES;  // threads that share a line
    int number = THREAD % LINES, lane = THREAD / LINES;
    bool across = number < TILE_COLUMNS;
    Axis own{across ? x.scale : y.scale, across ? x.inverse : y.inverse, across ? x.radius : y.radius,
             across ? x.low : y.low,     across ? x.high : y.high,       x.cubic,
             x.antialias};
    if (lane == 0) {
        double centre = centre_of(own, across ? column + number : row + number - TILE_COLUMNS);
        lines.centre[number] = centre;
        lines.first[number] = larger(static_cast<int>(floor(centre - own.radius)), own.low);
        lines.end[number] = smaller(static_cast<int>(ceil(centre + own.radius)), own.high);
    }
    BARRIER();
    Line line = line_of(lines, number);
    if (line.tabled && lane < TOGETHER) {
        for (int tap = lane; tap < line.end - line.first; tap += TOGETHER) {
            lines.weights[number][tap] = computed(own, line.centre, line.first + tap);
        }
    }
    BARRIER();
    if (lane == 0) {
        float sum = line.tabled ? sum_of<true>(line, own) : sum_of<false>(line, own);
        // A line outside the view may lie outside the image.
        lines.norm[number] = sum != 0 ? 1 / sum : 0.0f;
    }
    BARRIER();
}

// Index of a pixel of the resized crop after flips and rotation.
DEVICE int64_t destination(const View& view, int row, int column, int side) {
    if (view.mirrored) column = side - 1 - column;
    if (view.flipped) row = side - 1 - row;
    for (int i = 0; i < view.turns; i++) {
        int was = row;
        row = side - 1 - column, column = was;
    }
    return static_cast<int64_t>(row) * side + column;
}

// Channels of a block: C if known at compile time, else up to GROUP from `channel` on.
template <int C>
DEVICE int group(const Resize& a, int channel) {
    return C == 0 ? smaller(GROUP, a.channels - channel) : C;
}

template <int C>
constexpr int ROOM = C == 0 ? GROUP : C;

// Adds up a weighted column of the source; `step` is the row stride in bytes.
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

// Rows of a tile per thread, and their distance.
constexpr int EACH = TILE_ROWS * TILE_COLUMNS / THREADS, BELOW = THREADS / TILE_COLUMNS;

// Adds up the weighted averaged columns from `from` to `end`.
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

// Writes the tile [TILE_ROWS][TILE_COLUMNS][count]; in memory order if the view is not rotated.
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
    float *tile = &means[0][0][0], norm = lines.norm[own];  // reuses the memory of the means
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

EACH_CHANNELS(view_resize, Resize, resize)

}  // namespace gpu
}  // namespace simclr
