// Arguments of the kernels of view_*.cu: images as bytes and the augmentation parameters of every view (simclr-data,
// `ViewParams`), to views [B, S, S, C] f32 in [0, 1], channels innermost. The operators are those of simclr-data/src/augment,
// step by step. A value depends on its own view only and is computed in one order, so the same parameters give the same bits
// in any batch.
#pragma once

#include "device.h"

namespace simclr {
namespace gpu {

// Maximum number of channels of the colour kernels.
constexpr int MOST_CHANNELS = 16;
// Maximum number of changes of a view: four of the colour jitter, and grayscale.
constexpr int MOST_CHANGES = 5;
// Maximum number of a view's operations of AutoAugment.
constexpr int MOST_STEPS = 2;

// Kind of a change of a pixel's colour; Rust: `Change`.
enum Kind { SCALE = 1, SHIFT = 2, CONTRAST = 3, SATURATION = 4, BLEND = 5, HUE = 6, GRAY = 7 };

struct Change {
    int32_t kind;
    float value;
};

// Operation of AutoAugment; Rust: `Step`. Those from BRIGHTNESS on map levels by a table.
enum Operation {
    GATHER = 1, COLOR = 2, SHARPNESS = 3,
    BRIGHTNESS = 4, MEAN_CONTRAST = 5, POSTERIZE = 6, SOLARIZE = 7, AUTOCONTRAST = 8, EQUALIZE = 9
};

struct Step {
    int32_t operation;
    float value;  // factor of a blend, number of bits or threshold, by operation
    // Of GATHER, column and row: the source of pixel (x, y) is start + x across + y down, in 16.16 fixed point.
    int32_t start[2], across[2], down[2];
};

// The augmentation parameters of a view. `views.rs` has the same struct.
struct View {
    int64_t at;              // first byte of its image [height, width, C]
    int32_t width, height;   // of the image, pixels
    int32_t left, top, columns, rows;  // of the crop
    int32_t mirrored;        // left and right
    int32_t flipped;         // top and bottom
    int32_t turns;           // quarter turns anticlockwise, after those, 0 to 3
    int32_t steps;           // number of operations of AutoAugment
    Step step[MOST_STEPS];
    float sigma;             // of the blur, pixels; 0: none
    float length;            // of the motion blur, pixels; 0: none
    float right, down;       // its direction, of length 1
    int32_t equalizes;       // whether the histogram of every channel is equalized
    int32_t edges;           // whether Sobel's magnitude replaces the values, after solarization
    int32_t inverts;         // whether values >= threshold are inverted (solarization)
    float threshold;
    float noise;             // standard deviation; 0: none
    uint32_t seed[2];        // of the noise: lower and upper half
    int32_t cut_left, cut_right, cut_top, cut_bottom;  // the square that is filled with grey; right <= left: none
    int32_t changes;         // number of changes, at most one of them CONTRAST
    Change change[MOST_CHANGES];
};

// Output pixels per block of resize: as wide as a warp, for coalesced access.
constexpr int TILE_COLUMNS = 32, TILE_ROWS = 16;
// Channels per block of resize.
constexpr int GROUP = 4;

struct Resize {
    const uint8_t* pixels;
    const View* views;
    int channels, side;
    int cubic;  // else linear
    int antialias;  // else as tf.image.resize, not clamped
    int tiles;  // per view; grid: x = tiles of all views, y = groups of channels
    float* out;
};

// Sums of the pixels after the changes that precede contrast, to `partial` [views][parts][channels].
struct Means {
    const View* views;
    int channels, side, parts;
    int clips;  // values are clamped after the first change, or if there is none
    const float* in;
    float* partial;
};

// All changes, and for views without blur solarization and the grey square. In place.
struct Recolour {
    const View* views;
    int channels, side, parts, blocks;  // blocks of a view
    int gray_mean;  // contrast about the mean of the grey image (torchvision), not of each channel
    int clips;  // as in Means
    const float* partial;
    float* values;
};

// One direction of the blur, for views with sigma > 0.
struct Blur {
    const View* views;
    int channels, side, blocks;  // blocks of a view
    const float* in;
    float* out;
};

// Operators that read more than a pixel; which of `in` and `out` they read is the kernel's.
struct Filter {
    const View* views;
    int channels, side, blocks;  // blocks of a view
    const float* in;
    float* out;
};

// One operation of AutoAugment, for views with any: tables of the levels of every channel, and the pixels.
struct Policy {
    const View* views;
    int channels, side, blocks;  // blocks of a view
    int number;  // of the operation
    const float* in;
    uint8_t* tables;  // [views][channels][THREADS]
    float* out;
};

// Noise, and again the grey square. In place.
struct Noise {
    const View* views;
    int channels, side, blocks;  // blocks of a view
    float* values;
};

// Rows per thread in the second direction of the blur.
constexpr int RUN = 8;

DEVICE float within(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
DEVICE float unit(float x) { return within(x, 0.0f, 1.0f); }
DEVICE float least(float a, float b) { return a < b ? a : b; }
DEVICE float most(float a, float b) { return a > b ? a : b; }
DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }

DEVICE int nearest_inside(int at, int side) { return smaller(larger(at, 0), side - 1); }

// Whether operators of view_filter.cu run, which then finish the view.
DEVICE bool reads_around(const View& view) { return view.length > 0 || view.equalizes || view.edges; }

// Solarization and the grey square: simclr-data/src/augment/filters.rs.
DEVICE float solarized(const View& view, float value) {
    return view.inverts && value >= view.threshold ? 1 - value : value;
}
DEVICE float masked(const View& view, float value, int x, int y) {
    bool cut = x >= view.cut_left && x < view.cut_right && y >= view.cut_top && y < view.cut_bottom;
    return cut ? 0.5f : value;
}
DEVICE float finished(const View& view, float value, int x, int y) {
    return reads_around(view) ? value : masked(view, solarized(view, value), x, y);
}

// Kernels for one channel, for three, and for any number.
#define EACH_CHANNELS(name, Arguments, body)                                                                           \
    KERNEL(name##_1, Arguments) { body<1>(a); }                                                                        \
    KERNEL(name##_3, Arguments) { body<3>(a); }                                                                        \
    KERNEL(name##_any, Arguments) { body<0>(a); }

}  // namespace gpu
}  // namespace simclr
