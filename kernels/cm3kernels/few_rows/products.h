// x @ weight.T for few rows x: weights in panels of 16 outputs that stream through once.
//
// A panel holds, for each group of inputs (1 in float32, 2 in bfloat16, 4 in int8: four bytes), the
// 16 outputs' weights: 64 bytes, one vector. A row's group is broadcast and multiplied with it. Every output of
// every row is summed in the order of the inputs, whatever the number of rows: a row's result has the
// same bits with any neighbours and any number of threads.
//
// Sixteen groups of a panel are a tile of AMX, where the CPU has it: see tiles.h.
//
// Legend: M rows, K inputs, V outputs, G groups of inputs.
#pragma once
#include <algorithm>

#include "simd.h"

enum Kind { kBfloat16 = 0, kInt8 = 1, kFloat = 2 };
enum After { kNothing = 0, kRelu = 1, kGelu = 2, kAdd = 3 };
constexpr int kChunk = 4;    // panels that a thread takes at once
constexpr long kRows = 16;  // that are multiplied at once

// As ctypes lays it out. int8: scale and 128 times the sum of an output's codes, padded to 16.
struct Product {
    const uint8_t* weight;
    const float* scale;
    const int32_t* zero;
    int64_t K, V, kind;

    long per_group() const { return kind == kInt8 ? 4 : kind == kBfloat16 ? 2 : 1; }
    // of which there are whole tiles: the last ones are zeros
    long groups() const {
        return kind == kFloat ? K : (K + 16 * per_group() - 1) / (16 * per_group()) * 16;
    }
    long panels() const { return (V + 15) / 16; }
    long chunks() const { return (panels() + kChunk - 1) / kChunk; }
    // an odd number of cache lines: rows at an even distance would share few places of the cache
    size_t row_bytes() const { return (rounded(groups() * 4) / 64 | 1) * 64; }
};

static inline void layer_norm(const float* x, const float* weight, float* out, long K) {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (long k = 0; k < K; k += 16)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first(K - k), x + k));
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / K);
    for (long k = 0; k < K; k += 16) {
        __mmask16 lanes = first(K - k);
        __m512 d = _mm512_maskz_sub_ps(lanes, _mm512_maskz_loadu_ps(lanes, x + k), mean);
        squares = _mm512_fmadd_ps(d, d, squares);
    }
    __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / K + kEpsilon));
    for (long k = 0; k < K; k += 16) {
        __mmask16 lanes = first(K - k);
        __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + k), mean), scale);
        if (weight) y = _mm512_mul_ps(y, _mm512_maskz_loadu_ps(lanes, weight + k));
        _mm512_mask_storeu_ps(out + k, lanes, y);
    }
}

// A row of inputs as the product takes it: floats, bfloat16, or bytes with a zero at 128 and, in `largest`,
// the row's largest absolute value, which stands for 127.
static inline void convert(const float* x, uint8_t* out, float* largest, const Product& p) {
    if (p.kind == kFloat) {
        std::copy(x, x + p.K, (float*)out);
        return;
    }
    if (p.kind == kBfloat16) {
        for (long k = 0; k < 2 * p.groups(); k += 16) {
            __mmask16 lanes = first(std::max(0L, (long)p.K - k));
            __m256bh y = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, x + k));
            _mm256_store_si256((__m256i*)(out + 2 * k), (__m256i)y);
        }
        return;
    }
    __m512 most = _mm512_setzero_ps();
    for (long k = 0; k < p.K; k += 16)
        most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(first(p.K - k), x + k)));
    *largest = _mm512_reduce_max_ps(most);
    __m512 divisor = _mm512_set1_ps(*largest > 0 ? *largest : 1.0f);
    for (long k = 0; k < p.K; k += 16) {
        __m512 y = _mm512_maskz_loadu_ps(first(p.K - k), x + k);
        y = _mm512_div_ps(_mm512_mul_ps(y, _mm512_set1_ps(127.0f)), divisor);
        __m512i code = _mm512_cvttps_epi32(_mm512_add_ps(y, _mm512_set1_ps(128.5f)));
        _mm_store_si128((__m128i*)(out + k), _mm512_cvtusepi32_epi8(code));
    }
}

// The inputs of a product, each row by one thread; `norm` is where LayerNorm of a row is written.
static inline void prepare(const Team& team, const float* x, long M, bool normed, float* norm,
                           uint8_t* inputs, float* largest, const Product& p) {
    for (long m = team.id; m < M; m += team.number) {
        const float* row = x + m * p.K;
        if (normed) {
            layer_norm(row, nullptr, norm + m * p.K, p.K);
            row = norm + m * p.K;
        }
        convert(row, inputs + m * p.row_bytes(), largest + m, p);
    }
}

static inline void store(float* out, __m512 value, __mmask16 lanes, int after) {
    if (after == kRelu) value = _mm512_max_ps(value, _mm512_setzero_ps());
    if (after == kGelu) value = gelu16(value);
    if (after == kAdd) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(lanes, out));
    _mm512_mask_storeu_ps(out, lanes, value);
}

// What an output's sum stands for: itself, or for int8 a whole number with a scale.
template <int KIND>
static inline __m512 meaning(__m512i sum, long v, float largest, const Product& p) {
    if (KIND != kInt8) return _mm512_castsi512_ps(sum);
    sum = _mm512_sub_epi32(sum, _mm512_loadu_si512(p.zero + v));
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(p.scale + v));
    return _mm512_mul_ps(value, _mm512_set1_ps(largest));
}

// MR rows times NP panels, in registers.
template <int KIND, int MR, int NP>
static void tile(const uint8_t* inputs, const float* largest, long panel, const Product& p,
                 float* out, int after) {
    const long G = p.groups(), row = p.row_bytes(), size = G * 64;
    const uint8_t* weight = p.weight + panel * size;
    __m512 sums[MR][NP];
    __m512i whole[MR][NP];
    for (int r = 0; r < MR; ++r)
        for (int n = 0; n < NP; ++n) {
            sums[r][n] = _mm512_setzero_ps();
            whole[r][n] = _mm512_setzero_si512();
        }
#pragma GCC unroll 2
    for (long g = 0; g < G; ++g) {
        __m512i w[NP];
#pragma GCC unroll 4
        for (int n = 0; n < NP; ++n) {
            const uint8_t* at = weight + n * size + g * 64;
            w[n] = _mm512_load_si512(at);
            _mm_prefetch((const char*)(at + 4096), _MM_HINT_T0);  // a page ahead
        }
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) {
            __m512i x = _mm512_set1_epi32(*(const int32_t*)(inputs + r * row + g * 4));
#pragma GCC unroll 4
            for (int n = 0; n < NP; ++n) {
                if (KIND == kInt8)
                    whole[r][n] = _mm512_dpbusd_epi32(whole[r][n], x, w[n]);
                else if (KIND == kFloat)
                    sums[r][n] = _mm512_fmadd_ps(
                        _mm512_castsi512_ps(x), _mm512_castsi512_ps(w[n]), sums[r][n]);
                else
                    sums[r][n] = _mm512_dpbf16_ps(sums[r][n], (__m512bh)x, (__m512bh)w[n]);
            }
        }
    }
    for (int n = 0; n < NP; ++n) {
        const long v = (panel + n) * 16;
        for (int r = 0; r < MR; ++r) {
            __m512i sum = KIND == kInt8 ? whole[r][n] : _mm512_castps_si512(sums[r][n]);
            store(out + r * p.V + v, meaning<KIND>(sum, v, largest[r], p), first(p.V - v), after);
        }
    }
}

template <int KIND, int MR>
static void rows_of(const uint8_t* in, const float* largest, long panel, long count,
                    const Product& p, float* out, int after) {
    // as many panels at once as there are registers for their sums
    constexpr int NP = MR <= 8 ? 2 : 1;
    for (; count >= NP; count -= NP, panel += NP)
        tile<KIND, MR, NP>(in, largest, panel, p, out, after);
    for (; count > 0; --count, ++panel) tile<KIND, MR, 1>(in, largest, panel, p, out, after);
}

template <int KIND>
static void some_rows(long number, const uint8_t* in, const float* largest, long panel, long count,
                      const Product& p, float* out, int after) {
    switch (number) {
#define ROWS(n) \
    case n:     \
        return rows_of<KIND, n>(in, largest, panel, count, p, out, after);
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11)
        ROWS(12) ROWS(13) ROWS(14) ROWS(15) ROWS(16)
#undef ROWS
    }
}

#include "tiles.h"

// All rows times all panels; threads take chunks of panels from `next` until none is left.
static inline void multiply(std::atomic<int>& next, const uint8_t* inputs, const float* largest,
                            long M, const Product& p, float* out, int after) {
    for (long chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < p.chunks();) {
        const long panel = chunk * kChunk, count = std::min<long>(kChunk, p.panels() - panel);
        for (long m = 0; m < M; m += kRows) {
            const long number = std::min(kRows, M - m);
            const uint8_t* in = inputs + m * p.row_bytes();
            float* to = out + m * p.V;
            if (tiles::used && p.kind != kFloat)
                tiles::some_rows(number, in, largest + m, panel, count, p, to, after);
            else if (p.kind == kInt8)
                some_rows<kInt8>(number, in, largest + m, panel, count, p, to, after);
            else if (p.kind == kFloat)
                some_rows<kFloat>(number, in, largest + m, panel, count, p, to, after);
            else
                some_rows<kBfloat16>(number, in, largest + m, panel, count, p, to, after);
        }
    }
}
