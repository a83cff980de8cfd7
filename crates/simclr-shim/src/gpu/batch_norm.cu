// Batch norm (+ addition) (+ ReLU), forward and backward: each pass reads its matrices once. Sums are f32 within a block, over
// a few hundred deviations from an approximate mean, and f64 across blocks, in an order that does not depend on scheduling.

#include "batch_norm.h"

namespace simclr {
namespace gpu {

// The part of a matrix that a thread processes.
template <int V>
struct Spot {
    int channel;        // first of V
    bool inside;        // channel < channels
    int64_t row, step;  // first row, row stride
};

template <int V>
DEVICE Spot<V> spot(const Cover& cover) {
    int lane = THREAD & (cover.lanes - 1), down = THREADS / cover.lanes;
    int channel = (BLOCK_X * cover.lanes + lane) * V;
    return {channel, channel < cover.channels, static_cast<int64_t>(BLOCK_Y) * down + THREAD / cover.lanes,
            static_cast<int64_t>(BLOCKS_Y) * down};
}

template <typename T, int V>
DEVICE void load(const void* from, int64_t at, float (&out)[V]) {
    Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(static_cast<const T*>(from) + at);
    for (int i = 0; i < V; i++) out[i] = widened(pack.at[i]);
}

template <typename T, int V>
DEVICE void store(void* to, int64_t at, const float (&values)[V]) {
    Pack<T, V> pack;
    for (int i = 0; i < V; i++) narrow(values[i], pack.at[i]);
    *reinterpret_cast<Pack<T, V>*>(static_cast<T*>(to) + at) = pack;
}

template <int V>
DEVICE void load_vector(const float* from, const Spot<V>& at, float (&out)[V]) {
    for (int i = 0; i < V; i++) out[i] = at.inside ? from[at.channel + i] : 0.0f;
}

// Adds up two values per channel over the threads of a block that share the channel, and writes the block's partial sums.
template <int V>
DEVICE void write_part(const Cover& cover, const Spot<V>& at, const float (&first)[V], const float (&second)[V],
                       float* partial) {
    SHARED float sums[2][V][THREADS];
    for (int i = 0; i < V; i++) sums[0][i][THREAD] = first[i], sums[1][i][THREAD] = second[i];
    for (int half = THREADS / 2; half >= cover.lanes; half /= 2) {
        BARRIER();
        if (THREAD < half) {
            for (int i = 0; i < V; i++) {
                sums[0][i][THREAD] += sums[0][i][THREAD + half];
                sums[1][i][THREAD] += sums[1][i][THREAD + half];
            }
        }
    }
    if (THREAD >= cover.lanes || !at.inside) return;
    for (int which = 0; which < 2; which++) {
        float* out = partial + (static_cast<int64_t>(BLOCK_Y) * 2 + which) * cover.channels + at.channel;
        for (int i = 0; i < V; i++) out[i] = sums[which][i][THREAD];
    }
}

// The mean of a few rows spread over the matrix: deviations from it do not cancel.
template <typename T, int V>
DEVICE void rough_mean(const Sums& a, const Spot<V>& at, float (&about)[V]) {
    int sampled = a.cover.rows < 4 ? static_cast<int>(a.cover.rows) : 4;
    for (int i = 0; i < V; i++) about[i] = 0;
    if (!at.inside) return;
    for (int row = 0; row < sampled; row++) {
        float x[V];
        load<T, V>(a.x, row * (a.cover.rows / sampled) * a.cover.channels + at.channel, x);
        for (int i = 0; i < V; i++) about[i] += x[i] / static_cast<float>(sampled);
    }
}

template <typename T, int V>
DEVICE void sums(const Sums& a) {
    Spot<V> at = spot<V>(a.cover);
    float about[V], sum[V], squares[V];
    rough_mean<T, V>(a, at, about);
    for (int i = 0; i < V; i++) sum[i] = squares[i] = 0;
    for (int64_t row = at.row; at.inside && row < a.cover.rows; row += at.step) {
        float x[V];
        load<T, V>(a.x, row * a.cover.channels + at.channel, x);
        for (int i = 0; i < V; i++) {
            float distance = x[i] - about[i];
            sum[i] += distance;
            squares[i] += distance * distance;
        }
    }
    if (BLOCK_Y == 0 && THREAD < a.cover.lanes && at.inside) {
        for (int i = 0; i < V; i++) a.about[at.channel + i] = about[i];
    }
    write_part<V>(a.cover, at, sum, squares, a.partial);
}

// A block adds up the partial sums of CHANNELS_PER_BLOCK channels; its first CHANNELS_PER_BLOCK threads get the totals.
struct Totals {
    double first, second;
    int channel;
    bool valid;
};

DEVICE Totals totals(const float* partial, int parts, int channels) {
    SHARED double sums[2][THREADS];
    int channel = BLOCK_X * CHANNELS_PER_BLOCK + THREAD % CHANNELS_PER_BLOCK;
    double first = 0, second = 0;
    for (int part = THREAD / CHANNELS_PER_BLOCK; channel < channels && part < parts; part += THREADS / CHANNELS_PER_BLOCK) {
        first += partial[static_cast<int64_t>(part) * 2 * channels + channel];
        second += partial[(static_cast<int64_t>(part) * 2 + 1) * channels + channel];
    }
    sums[0][THREAD] = first, sums[1][THREAD] = second;
    for (int half = THREADS / 2; half >= CHANNELS_PER_BLOCK; half /= 2) {
        BARRIER();
        if (THREAD < half) {
            sums[0][THREAD] += sums[0][THREAD + half];
            sums[1][THREAD] += sums[1][THREAD + half];
        }
    }
    return {sums[0][THREAD], sums[1][THREAD], channel, THREAD < CHANNELS_PER_BLOCK && channel < channels};
}

KERNEL(norm_moments, Moments) {
    Totals all = totals(a.partial, a.parts, a.channels);
    if (!all.valid) return;
    int c = all.channel, channels = a.channels;
    double rows = static_cast<double>(a.rows), distance = all.first / rows;
    double mean = a.about[c] + distance, variance = all.second / rows - distance * distance;
    // Not max(): NaN must be preserved.
    if (variance < 0) variance = 0;
    if (a.own != nullptr) {
        a.own[c] = mean, a.own[channels + c] = variance;
        return;
    }
    double inverse = 1 / sqrt(variance + a.epsilon);
    float factor = a.scale[c] * static_cast<float>(inverse);
    a.used[c] = static_cast<float>(mean);
    a.used[channels + c] = static_cast<float>(inverse);
    a.used[2 * channels + c] = factor;
    a.used[3 * channels + c] = static_cast<float>(a.shift[c] - static_cast<double>(static_cast<float>(mean)) * factor);
    if (a.momentum == 0) return;
    double unbiased = variance * (rows / (rows > 1 ? rows - 1 : 1));
    a.running_mean[c] = static_cast<float>((1 - a.momentum) * a.running_mean[c] + a.momentum * mean);
    a.running_var[c] = static_cast<float>((1 - a.momentum) * a.running_var[c] + a.momentum * unbiased);
}

template <typename T, int V>
DEVICE void normalise(const Normalise& a) {
    Spot<V> at = spot<V>(a.cover);
    if (!at.inside) return;
    float factor[V], offset[V];
    load_vector<V>(a.factor, at, factor);
    load_vector<V>(a.offset, at, offset);
    for (int64_t row = at.row; row < a.cover.rows; row += at.step) {
        int64_t place = row * a.cover.channels + at.channel;
        float x[V], residual[V];
        load<T, V>(a.x, place, x);
        if (a.residual != nullptr) load<T, V>(a.residual, place, residual);
        for (int i = 0; i < V; i++) {
            x[i] = x[i] * factor[i] + offset[i];
            if (a.residual != nullptr) x[i] += residual[i];
            if (a.relu && x[i] < 0) x[i] = 0;
        }
        store<T, V>(a.y, place, x);
    }
}

template <typename T, int V>
DEVICE void gradient_sums(const GradientSums& a) {
    Spot<V> at = spot<V>(a.cover);
    float mean[V], factor[V], offset[V], sum[V], products[V];
    load_vector<V>(a.mean, at, mean);
    load_vector<V>(a.factor, at, factor);
    load_vector<V>(a.offset, at, offset);
    for (int i = 0; i < V; i++) sum[i] = products[i] = 0;
    for (int64_t row = at.row; at.inside && row < a.cover.rows; row += at.step) {
        int64_t place = row * a.cover.channels + at.channel;
        float x[V], g[V], branch[V], y[V];
        load<T, V>(a.x, place, x);
        load<T, V>(a.dy, place, g);
        if (a.branch != nullptr) load<T, V>(a.branch, place, branch);
        if (a.y != nullptr) load<T, V>(a.y, place, y);
        for (int i = 0; i < V; i++) {
            if (a.branch != nullptr) g[i] += branch[i];
            bool open = a.y != nullptr ? y[i] > 0 : !a.relu || x[i] * factor[i] + offset[i] > 0;
            if (!open) g[i] = 0;
            sum[i] += g[i];
            products[i] += g[i] * (x[i] - mean[i]);
        }
        if (a.y != nullptr) store<T, V>(a.g_out, place, g);
    }
    write_part<V>(a.cover, at, sum, products, a.partial);
}

KERNEL(norm_gradient_totals, GradientTotals) {
    Totals all = totals(a.partial, a.parts, a.channels);
    if (!all.valid) return;
    int c = all.channel, channels = a.channels;
    double products = all.second * a.inverse[c], rows = static_cast<double>(a.rows);
    a.parameters[c] = static_cast<float>(products);
    a.parameters[channels + c] = static_cast<float>(all.first);
    if (a.coefficients == nullptr) return;
    double factor = a.factor[c];
    a.coefficients[c] = static_cast<float>(-factor * a.inverse[c] * products / rows);
    a.coefficients[channels + c] = static_cast<float>(-factor * all.first / rows);
}

template <typename T, int V>
DEVICE void gradient(const Gradient& a) {
    Spot<V> at = spot<V>(a.cover);
    if (!at.inside) return;
    float mean[V], factor[V], offset[V], q[V], r[V];
    load_vector<V>(a.mean, at, mean);
    load_vector<V>(a.factor, at, factor);
    load_vector<V>(a.offset, at, offset);
    load_vector<V>(a.q, at, q);
    load_vector<V>(a.r, at, r);
    for (int64_t row = at.row; row < a.cover.rows; row += at.step) {
        int64_t place = row * a.cover.channels + at.channel;
        float x[V], g[V];
        load<T, V>(a.x, place, x);
        load<T, V>(a.dy, place, g);
        for (int i = 0; i < V; i++) {
            if (a.relu && !(x[i] * factor[i] + offset[i] > 0)) g[i] = 0;
            g[i] = g[i] * factor[i] + (x[i] - mean[i]) * q[i] + r[i];
        }
        store<T, V>(a.dx, place, g);
    }
}

// One kernel per type: 16 bytes per access if the number of channels allows, else one channel.
#define EACH_TYPE(name, Arguments, body)                                                                               \
    KERNEL(name##_f32, Arguments) { body<float, 4>(a); }                                                               \
    KERNEL(name##_f32_single, Arguments) { body<float, 1>(a); }                                                        \
    KERNEL(name##_bf16, Arguments) { body<Bf16, 8>(a); }                                                               \
    KERNEL(name##_bf16_single, Arguments) { body<Bf16, 1>(a); }

EACH_TYPE(norm_sums, Sums, sums)
EACH_TYPE(norm_apply, Normalise, normalise)
EACH_TYPE(norm_gradient_sums, GradientSums, gradient_sums)
EACH_TYPE(norm_gradient, Gradient, gradient)

}  // namespace gpu
}  // namespace simclr
