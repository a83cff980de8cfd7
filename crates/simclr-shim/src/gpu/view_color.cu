// Colour of views: simclr-data/src/augment/color.rs (google-research/simclr `data_util.py`).

#include "views.h"

namespace simclr {
namespace gpu {

// A pixel of C channels, or of any number if C is 0.
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

// ITU-R BT.601 with TensorFlow's rounded coefficients; the mean unless there are three channels.
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

// One change other than contrast.
template <int C>
DEVICE void changed(Pixel<C>& x, Change change, int channels) {
    float value = change.value;
    if (change.kind == SCALE || change.kind == SHIFT) {
        bool scale = change.kind == SCALE;
        for (int c = 0; c < channels; c++) x.at[c] = unit(scale ? x.at[c] * value : x.at[c] + value);
    } else if (C == 1) {
        return;  // the others have no effect on a single channel
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

// Offset of contrast per channel: mean - mean * factor, of the channel or of the grey image. Called by all threads.
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

template <int C>
DEVICE void recolour(const Recolour& a) {
    int number = BLOCK_X / a.blocks, block = BLOCK_X % a.blocks, channels = C == 0 ? a.channels : C;
    const View& view = a.views[number];
    int count = view.changes, about = contrast(view), area = a.side * a.side;
    bool last = view.sigma == 0 && !reads_around(view), ends = last && (view.inverts || cuts(view));
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

}  // namespace gpu
}  // namespace simclr
