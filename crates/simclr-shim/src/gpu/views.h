// What the kernels of views.cu take: images as bytes and the dice of every view (simclr-data, `ViewParams`), to views
// [B, S, S, C] f32 in [0, 1], channels innermost. What an operator does is defined in simclr-data/src/augment; what is here
// follows it step by step.
#pragma once

#include "device.h"

namespace simclr {
namespace gpu {

// Most channels that the colour kernels take.
constexpr int MOST_CHANNELS = 16;
// Most changes of a view: four of the jitter and the loss of its colour.
constexpr int MOST_CHANGES = 5;

// What a change does to a pixel; rust: `Change`.
enum Kind { SCALE = 1, SHIFT = 2, CONTRAST = 3, SATURATION = 4, BLEND = 5, HUE = 6, GRAY = 7 };

struct Change {
    int32_t kind;
    float value;
};

// All that is known of a view before its pixels are. `views.rs` has the same struct.
struct View {
    int64_t at;              // first byte of its image [height, width, C]
    int32_t width, height;   // of the image, pixels
    int32_t left, top, columns, rows;  // of the crop
    int32_t mirrored;        // left and right
    int32_t turns;           // quarter turns anticlockwise, after that, 0 to 3
    float sigma;             // of the blur, pixels; 0: none
    int32_t inverts;         // whether values from the threshold on are inverted
    float threshold;
    int32_t cut_left, cut_right, cut_top, cut_bottom;  // the square that is filled with grey; right <= left: none
    int32_t changes;         // how many there are, at most one of them CONTRAST
    Change change[MOST_CHANGES];
};

// Output pixels of a block of resize: as wide as a warp, so that neighbours are read and written together.
constexpr int TILE_COLUMNS = 32, TILE_ROWS = 16;
// Channels that a block of resize takes at a time.
constexpr int GROUP = 4;

struct Resize {
    const uint8_t* pixels;
    const View* views;
    int channels, side;
    int cubic;  // else linear
    int antialias;  // else as tf.image.resize, and not cut at the range
    int tiles;  // blocks of a view; blocks across: tiles of all views; down: groups of channels
    float* out;
};

// The changes up to the contrast, summed: to `partial` [views][parts][channels].
struct Means {
    const View* views;
    int channels, side, parts;
    int clips;  // values are cut at the range after the first change only, or where there is none
    const float* in;
    float* partial;
};

// All changes, and for views without blur what comes last. In place.
struct Recolour {
    const View* views;
    int channels, side, parts, blocks;  // blocks of a view
    int gray_mean;  // contrast about the mean of the grey image (torchvision), not of each channel
    int clips;  // as in Means
    const float* partial;
    float* values;
};

// One direction of the blur, of the views that are blurred.
struct Blur {
    const View* views;
    int channels, side, blocks;  // blocks of a view
    const float* in;
    float* out;
};

// Rows that a thread of the blur's second direction takes.
constexpr int RUN = 8;

}  // namespace gpu
}  // namespace simclr
