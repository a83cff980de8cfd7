// Gaussian noise: simclr-data/src/augment/filters.rs, with the draws of simclr-data/src/rng.rs: ChaCha8 in counter mode, two
// words to a pair of normal numbers, of which values in the order of planes [C, S, S] take one each.

#include "views.h"

namespace simclr {
namespace gpu {

// Words of a block of ChaCha (RFC 8439, section 2.3, with 8 rounds, a counter of 64 bits and none of a nonce).
constexpr int WORDS = 16;

DEVICE uint32_t turned_left(uint32_t word, int by) { return word << by | word >> (32 - by); }

DEVICE void quarter_round(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
    a += b, d = turned_left(d ^ a, 16);
    c += d, b = turned_left(b ^ c, 12);
    a += b, d = turned_left(d ^ a, 8);
    c += d, b = turned_left(b ^ c, 7);
}

// Block `counter` of the stream of a key of which all but the first two words are 0.
DEVICE void chacha8(const uint32_t (&seed)[2], uint32_t counter, uint32_t (&words)[WORDS]) {
    const uint32_t start[WORDS] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574, seed[0], seed[1], 0, 0,
                                   0, 0, 0, 0, counter, 0, 0, 0};
    for (int i = 0; i < WORDS; i++) words[i] = start[i];
    for (int twice = 0; twice < 4; twice++) {
        for (int i = 0; i < 4; i++) quarter_round(words[i], words[4 + i], words[8 + i], words[12 + i]);
        for (int i = 0; i < 4; i++) {
            quarter_round(words[i], words[4 + (i + 1) % 4], words[8 + (i + 2) % 4], words[12 + (i + 3) % 4]);
        }
    }
    for (int i = 0; i < WORDS; i++) words[i] += start[i];
}

// Uniform in [0, 1) with 24 bits.
DEVICE float uniform(uint32_t word) { return static_cast<float>(word >> 8) * (1.0f / (1 << 24)); }

// A row of normal numbers per thread, and a column so that rows begin in different banks.
using Normals = float[THREADS][WORDS + 1];

// Box-Muller; agrees with the CPU to the rounding of logarithm, sine and cosine.
DEVICE void draw(const View& view, int counter, float (&normals)[WORDS + 1]) {
    uint32_t words[WORDS];
    chacha8(view.seed, static_cast<uint32_t>(counter), words);
    for (int i = 0; i < WORDS; i += 2) {
        float radius = sqrtf(-2.0f * logf(1.0f - uniform(words[i])));
        float angle = 6.28318530717958647692f * uniform(words[i + 1]);
        normals[i] = radius * cosf(angle), normals[i + 1] = radius * sinf(angle);
    }
}

KERNEL(view_noise, Noise) {
    SHARED Normals normals;
    int number = BLOCK_X / a.blocks, block = BLOCK_X % a.blocks, area = a.side * a.side, count = area * a.channels;
    const View& view = a.views[number];
    if (view.noise == 0) return;
    int first = block * THREADS * WORDS, own = block * THREADS + THREAD;
    if (first + THREAD * WORDS < count) draw(view, own, normals[THREAD]);
    BARRIER();
    float* values = a.values + static_cast<int64_t>(number) * count;
    for (int i = THREAD; i < THREADS * WORDS && first + i < count; i += THREADS) {
        int channel = (first + i) / area, at = (first + i) % area;
        float& value = values[static_cast<int64_t>(at) * a.channels + channel];
        float noisy = unit(value + view.noise * normals[i / WORDS][i % WORDS]);
        value = masked(view, noisy, at % a.side, at / a.side);
    }
}

}  // namespace gpu
}  // namespace simclr
