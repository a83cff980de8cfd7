// See kernels.h. Compiled once per instruction set: SIMCLR_KERNELS is the name of the table, SIMCLR_INSTRUCTIONS that of the
// set, SIMCLR_TILE the number of vectors of sums that fit the registers. It must include nothing with inline functions: the
// linker keeps one copy of those, which may use instructions that this machine lacks.

#include "kernels.h"

namespace simclr {
namespace {

// Sixteen lanes; the compiler splits them if registers are narrower.
constexpr int64_t LANES = 16;
typedef float F32x16 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef uint16_t U16x16 __attribute__((vector_size(32)));
typedef uint8_t U8x16 __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))

struct F32 {
    using Memory = float;
    INLINE F32x16 load(const float* from) {
        F32x16 value;
        __builtin_memcpy(&value, from, sizeof value);
        return value;
    }
    INLINE void store(float* to, F32x16 value) { __builtin_memcpy(to, &value, sizeof value); }
};

struct BF16 {
    using Memory = uint16_t;
    INLINE F32x16 load(const uint16_t* from) {
        U16x16 half;
        __builtin_memcpy(&half, from, sizeof half);
        return (F32x16)(__builtin_convertvector(half, U32x16) << 16);
    }
    // Rounds to nearest, ties to even; every NaN becomes one quiet NaN, as rounding could turn its bits into infinity.
    INLINE void store(uint16_t* to, F32x16 value) {
        U32x16 bits = (U32x16)value;
        U32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        U32x16 nan = (U32x16)(value != value);
        U16x16 half = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), U16x16);
        __builtin_memcpy(to, &half, sizeof half);
    }
};

// Up to sixteen lanes at the end of a row, by way of a buffer.
template <class T>
struct Ragged {
    using Memory = typename T::Memory;
    INLINE F32x16 load(const Memory* from, int64_t lanes) {
        Memory buffer[LANES] = {};
        for (int64_t i = 0; i < lanes; i++) buffer[i] = from[i];
        return T::load(buffer);
    }
    INLINE void store(Memory* to, F32x16 value, int64_t lanes) {
        Memory buffer[LANES];
        T::store(buffer, value);
        for (int64_t i = 0; i < lanes; i++) to[i] = buffer[i];
    }
};

// `FULL`: sixteen lanes at compile time; else the first `lanes`.
template <class T, bool FULL>
INLINE F32x16 load(const void* base, int64_t at, int64_t lanes) {
    auto from = static_cast<const typename T::Memory*>(base) + at;
    if constexpr (FULL) return T::load(from);
    else return Ragged<T>::load(from, lanes);
}

template <class T, bool FULL>
INLINE void store(void* base, int64_t at, F32x16 value, int64_t lanes) {
    auto to = static_cast<typename T::Memory*>(base) + at;
    if constexpr (FULL) T::store(to, value);
    else Ragged<T>::store(to, value, lanes);
}

template <bool FULL>
INLINE F32x16 vector(const float* values, int64_t at, int64_t lanes) {
    return load<F32, FULL>(values, at, lanes);
}

INLINE F32x16 positive(F32x16 value) {
    // NaN is preserved.
    return (F32x16)((U32x16)value & ~(U32x16)(value < 0.0f));
}

INLINE F32x16 where(F32x16 positive, F32x16 value) { return (F32x16)((U32x16)value & (U32x16)(positive > 0.0f)); }

template <bool FULL>
INLINE void add(double* sums, int64_t at, F32x16 value, int64_t lanes) {
    for (int64_t i = 0; i < (FULL ? LANES : lanes); i++) sums[at + i] += value[i];
}

// Rows with sums that are held in f32 before they are added up in f64; fewer if rows are long, so that a block fits the cache.
INLINE int64_t block_rows(int64_t channels) {
    int64_t rows = 65536 / channels;
    return rows < 16 ? 16 : rows > 256 ? 256 : rows;
}

// Calls `tile(first channel, lanes)` with the widest tile that fits: `Tile<N, FULL>` for N vectors.
#define FOR_TILES(channels, NARROW, CALL)                                                   \
    int64_t at = 0;                                                                         \
    for (; at + NARROW * LANES <= (channels); at += NARROW * LANES) CALL(NARROW, true, LANES); \
    for (; at + LANES <= (channels); at += LANES) CALL(1, true, LANES);                      \
    if (at < (channels)) CALL(1, false, (channels) - at);

template <class T, int N, bool FULL>
INLINE void moments_tile(int64_t rows, int64_t stride, const void* x, int64_t at, const float* about, double* sum,
                         double* squares, int64_t lanes) {
    F32x16 origin[N], sums[N] = {}, square_sums[N] = {};
    for (int i = 0; i < N; i++) origin[i] = vector<FULL>(about, at + i * LANES, lanes);
    for (int64_t row = 0; row < rows; row++) {
#pragma GCC unroll 8
        for (int i = 0; i < N; i++) {
            F32x16 value = load<T, FULL>(x, row * stride + at + i * LANES, lanes) - origin[i];
            sums[i] += value;
            square_sums[i] += value * value;
        }
    }
    for (int i = 0; i < N; i++) {
        add<FULL>(sum, at + i * LANES, sums[i], lanes);
        add<FULL>(squares, at + i * LANES, square_sums[i], lanes);
    }
}

template <class T>
void moments_of(const Matrix& m, const void* x, const float* about, double* sum, double* squares) {
    int64_t block = block_rows(m.channels);
    for (int64_t row = 0; row < m.rows; row += block) {
        int64_t rows = m.rows - row < block ? m.rows - row : block;
        auto from = static_cast<const typename T::Memory*>(x) + row * m.channels;
#define CALL(N, FULL, lanes) moments_tile<T, N, FULL>(rows, m.channels, from, at, about, sum, squares, lanes)
        FOR_TILES(m.channels, SIMCLR_TILE, CALL)
#undef CALL
    }
}

template <class T, bool RESIDUAL, bool RELU>
void normalise_of(const Matrix& m, const void* x, const void* residual, const float* factor, const float* offset,
                  void* y) {
    for (int64_t row = 0; row < m.rows; row++) {
#define CALL(N, FULL, lanes)                                                                             \
    {                                                                                                    \
        int64_t here = row * m.channels + at;                                                            \
        F32x16 value = load<T, FULL>(x, here, lanes) * vector<FULL>(factor, at, lanes) +                 \
                       vector<FULL>(offset, at, lanes);                                                  \
        if constexpr (RESIDUAL) value += load<T, FULL>(residual, here, lanes);                           \
        store<T, FULL>(y, here, RELU ? positive(value) : value, lanes);                                  \
    }
        FOR_TILES(m.channels, 1, CALL)
#undef CALL
    }
}

// What determines where the gradient passes the ReLU.
enum class Gate { OPEN, BY_INPUT, BY_OUTPUT };

template <class T, Gate GATE, bool BRANCH, int N, bool FULL>
INLINE void gradient_sums_tile(int64_t rows, int64_t stride, const void* x, const void* dy, const void* branch,
                               const void* y, int64_t at, const float* mean, const float* factor, const float* offset,
                               void* g_out, double* sum, double* products, int64_t lanes) {
    F32x16 centre[N], slope[N], start[N], sums[N] = {}, product_sums[N] = {};
    for (int i = 0; i < N; i++) {
        centre[i] = vector<FULL>(mean, at + i * LANES, lanes);
        if constexpr (GATE == Gate::BY_INPUT) {
            slope[i] = vector<FULL>(factor, at + i * LANES, lanes);
            start[i] = vector<FULL>(offset, at + i * LANES, lanes);
        }
    }
    for (int64_t row = 0; row < rows; row++) {
#pragma GCC unroll 8
        for (int i = 0; i < N; i++) {
            int64_t here = row * stride + at + i * LANES;
            F32x16 value = load<T, FULL>(x, here, lanes), g = load<T, FULL>(dy, here, lanes);
            if constexpr (BRANCH) g += load<T, FULL>(branch, here, lanes);
            if constexpr (GATE == Gate::BY_INPUT) g = where(value * slope[i] + start[i], g);
            if constexpr (GATE == Gate::BY_OUTPUT) {
                g = where(load<T, FULL>(y, here, lanes), g);
                store<T, FULL>(g_out, here, g, lanes);
            }
            sums[i] += g;
            product_sums[i] += g * (value - centre[i]);
        }
    }
    for (int i = 0; i < N; i++) {
        add<FULL>(sum, at + i * LANES, sums[i], lanes);
        add<FULL>(products, at + i * LANES, product_sums[i], lanes);
    }
}

template <class T, Gate GATE, bool BRANCH>
void gradient_sums_of(const Matrix& m, const void* x, const void* dy, const void* branch, const void* y,
                      const float* mean, const float* factor, const float* offset, void* g_out, double* sum,
                      double* products) {
    using Memory = typename T::Memory;
    int64_t block = block_rows(m.channels);
    for (int64_t row = 0; row < m.rows; row += block) {
        int64_t rows = m.rows - row < block ? m.rows - row : block, first = row * m.channels;
        auto from = static_cast<const Memory*>(x) + first, above = static_cast<const Memory*>(dy) + first;
        auto added = BRANCH ? static_cast<const Memory*>(branch) + first : nullptr;
        auto gate = GATE == Gate::BY_OUTPUT ? static_cast<const Memory*>(y) + first : nullptr;
        auto out = GATE == Gate::BY_OUTPUT ? static_cast<Memory*>(g_out) + first : nullptr;
#define CALL(N, FULL, lanes)                                                                                       \
    gradient_sums_tile<T, GATE, BRANCH, N, FULL>(rows, m.channels, from, above, added, gate, at, mean, factor, offset, \
                                                 out, sum, products, lanes)
        FOR_TILES(m.channels, ((SIMCLR_TILE + 1) / 2), CALL)
#undef CALL
    }
}

template <class T, bool GATED>
void gradient_of(const Matrix& m, const void* x, const void* dy, const float* mean, const float* factor,
                 const float* offset, const float* p, const float* q, const float* r, void* dx) {
    for (int64_t row = 0; row < m.rows; row++) {
#define CALL(N, FULL, lanes)                                                                                       \
    {                                                                                                              \
        int64_t here = row * m.channels + at;                                                                      \
        F32x16 value = load<T, FULL>(x, here, lanes), g = load<T, FULL>(dy, here, lanes);                          \
        if constexpr (GATED)                                                                                       \
            g = where(value * vector<FULL>(factor, at, lanes) + vector<FULL>(offset, at, lanes), g);               \
        value = (value - vector<FULL>(mean, at, lanes)) * vector<FULL>(q, at, lanes) + vector<FULL>(r, at, lanes); \
        store<T, FULL>(dx, here, g * vector<FULL>(p, at, lanes) + value, lanes);                                   \
    }
        FOR_TILES(m.channels, 1, CALL)
#undef CALL
    }
}

void moments(const Matrix& m, const void* x, const float* about, double* sum, double* squares) {
    if (m.element == Element::F32) moments_of<F32>(m, x, about, sum, squares);
    else moments_of<BF16>(m, x, about, sum, squares);
}

template <class T>
void normalise_as(const Matrix& m, const void* x, const void* residual, const float* factor, const float* offset,
                  bool relu, void* y) {
    if (residual != nullptr && relu) normalise_of<T, true, true>(m, x, residual, factor, offset, y);
    else if (residual != nullptr) normalise_of<T, true, false>(m, x, residual, factor, offset, y);
    else if (relu) normalise_of<T, false, true>(m, x, residual, factor, offset, y);
    else normalise_of<T, false, false>(m, x, residual, factor, offset, y);
}

void normalise(const Matrix& m, const void* x, const void* residual, const float* factor, const float* offset,
               bool relu, void* y) {
    if (m.element == Element::F32) normalise_as<F32>(m, x, residual, factor, offset, relu, y);
    else normalise_as<BF16>(m, x, residual, factor, offset, relu, y);
}

template <class T>
void gradient_sums_as(const Matrix& m, const void* x, const void* dy, const void* branch, const void* y,
                      const float* mean, const float* factor, const float* offset, void* g_out, double* sum,
                      double* products) {
    auto call = y != nullptr && branch != nullptr ? gradient_sums_of<T, Gate::BY_OUTPUT, true>
                : y != nullptr                    ? gradient_sums_of<T, Gate::BY_OUTPUT, false>
                : factor != nullptr               ? gradient_sums_of<T, Gate::BY_INPUT, false>
                                                  : gradient_sums_of<T, Gate::OPEN, false>;
    call(m, x, dy, branch, y, mean, factor, offset, g_out, sum, products);
}

void gradient_sums(const Matrix& m, const void* x, const void* dy, const void* branch, const void* y,
                   const float* mean, const float* factor, const float* offset, void* g_out, double* sum,
                   double* products) {
    auto call = m.element == Element::F32 ? gradient_sums_as<F32> : gradient_sums_as<BF16>;
    call(m, x, dy, branch, y, mean, factor, offset, g_out, sum, products);
}

template <class T>
void gradient_as(const Matrix& m, const void* x, const void* dy, const float* mean, const float* factor,
                 const float* offset, const float* p, const float* q, const float* r, void* dx) {
    auto call = factor != nullptr ? gradient_of<T, true> : gradient_of<T, false>;
    call(m, x, dy, mean, factor, offset, p, q, r, dx);
}

void gradient(const Matrix& m, const void* x, const void* dy, const float* mean, const float* factor,
              const float* offset, const float* p, const float* q, const float* r, void* dx) {
    if (m.element == Element::F32) gradient_as<F32>(m, x, dy, mean, factor, offset, p, q, r, dx);
    else gradient_as<BF16>(m, x, dy, mean, factor, offset, p, q, r, dx);
}

INLINE void store_numbers(uint8_t* to, U32x16 numbers, int64_t lanes) {
    U8x16 bytes = __builtin_convertvector(numbers, U8x16);
    if (lanes == LANES) __builtin_memcpy(to, &bytes, sizeof bytes);
    else for (int64_t i = 0; i < lanes; i++) to[i] = bytes[i];
}

INLINE U32x16 load_numbers(const uint8_t* from, int64_t lanes) {
    U8x16 bytes = {};
    if (lanes == LANES) __builtin_memcpy(&bytes, from, sizeof bytes);
    else for (int64_t i = 0; i < lanes; i++) bytes[i] = from[i];
    return __builtin_convertvector(bytes, U32x16);
}

template <class T>
void max_pool_of(const Matrix& m, const void* top, const void* bottom, void* y, uint8_t* which) {
    for (int64_t row = 0; row < m.rows; row++) {
#define CALL(N, FULL, lanes)                                                                            \
    {                                                                                                   \
        int64_t left = 2 * row * m.channels + at, right = left + m.channels;                            \
        F32x16 best = load<T, FULL>(top, left, lanes);                                                  \
        U32x16 number = {};                                                                             \
        F32x16 others[3] = {load<T, FULL>(top, right, lanes), load<T, FULL>(bottom, left, lanes),       \
                            load<T, FULL>(bottom, right, lanes)};                                       \
        for (uint32_t i = 0; i < 3; i++) {                                                              \
            U32x16 better = (U32x16)(others[i] > best) | (U32x16)(others[i] != others[i]);              \
            best = (F32x16)(((U32x16)others[i] & better) | ((U32x16)best & ~better));                   \
            number = ((i + 1) & better) | (number & ~better);                                           \
        }                                                                                               \
        store<T, FULL>(y, row * m.channels + at, best, lanes);                                          \
        if (which != nullptr) store_numbers(which + row * m.channels + at, number, FULL ? LANES : lanes); \
    }
        FOR_TILES(m.channels, 1, CALL)
#undef CALL
    }
}

template <class T>
void max_pool_gradient_of(const Matrix& m, const void* dy, const uint8_t* which, void* top, void* bottom) {
    for (int64_t row = 0; row < m.rows; row++) {
#define CALL(N, FULL, lanes)                                                                                  \
    {                                                                                                         \
        int64_t here = row * m.channels + at, left = here + row * m.channels, right = left + m.channels;      \
        U32x16 g = (U32x16)load<T, FULL>(dy, here, lanes);                                                    \
        U32x16 number = load_numbers(which + here, FULL ? LANES : lanes);                                     \
        store<T, FULL>(top, left, (F32x16)(g & (U32x16)(number == 0)), lanes);                                \
        store<T, FULL>(top, right, (F32x16)(g & (U32x16)(number == 1)), lanes);                               \
        store<T, FULL>(bottom, left, (F32x16)(g & (U32x16)(number == 2)), lanes);                             \
        store<T, FULL>(bottom, right, (F32x16)(g & (U32x16)(number == 3)), lanes);                            \
    }
        FOR_TILES(m.channels, 1, CALL)
#undef CALL
    }
}

void max_pool(const Matrix& m, const void* top, const void* bottom, void* y, uint8_t* which) {
    if (m.element == Element::F32) max_pool_of<F32>(m, top, bottom, y, which);
    else max_pool_of<BF16>(m, top, bottom, y, which);
}

void max_pool_gradient(const Matrix& m, const void* dy, const uint8_t* which, void* top, void* bottom) {
    if (m.element == Element::F32) max_pool_gradient_of<F32>(m, dy, which, top, bottom);
    else max_pool_gradient_of<BF16>(m, dy, which, top, bottom);
}

}  // namespace

extern const Kernels SIMCLR_KERNELS;
const Kernels SIMCLR_KERNELS = {SIMCLR_INSTRUCTIONS, moments,  normalise,        gradient_sums,
                                gradient,            max_pool, max_pool_gradient};

}  // namespace simclr
