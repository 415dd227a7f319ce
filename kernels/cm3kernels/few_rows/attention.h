// Attention of new tokens to the keys of their rows in the pool, one head at a time, exact softmax. Here a row is one
// new token: several tokens of a sequence are rows whose last runs have one slot more each.
//
// Legend: D head dimension, S keys that a row sees.
#pragma once
#include "products.h"

constexpr int kMostBlocks = 8;  // of 16 in a head: D <= 128

// Keys and values [L, H, slots, D], and where each row's are: in runs of slots, the last of which ends
// with the slot for the new token. As ctypes lays it out.
struct Pool {
    float *keys, *values;
    int64_t layer_stride, head_stride, num_heads, head_dim;
    const int64_t *begin, *length, *runs_of;  // runs; row m has runs_of[m] .. runs_of[m + 1] - 1
    int64_t longest;                          // S of the longest row
    int64_t sees_new;                         // whether a row sees what another row of this step writes
};

template <int BLOCKS>
static void attend_head(const Pool& pool, int64_t row, const float* query, float* keys,
                        float* values, float* scores, float* out) {
    constexpr long D = BLOCKS * 16;
    __m512 q[BLOCKS];
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt((float)D));
    for (int b = 0; b < BLOCKS; ++b)
        q[b] = _mm512_mul_ps(_mm512_loadu_ps(query + 16 * b), scale);
    long S = 0;
    for (int64_t run = pool.runs_of[row]; run < pool.runs_of[row + 1]; ++run) {
        const float* key = keys + pool.begin[run] * D;
        for (int64_t s = 0; s < pool.length[run]; ++s, key += D) {
            _mm_prefetch((const char*)(key + 8 * D), _MM_HINT_T0);
            __m512 sum = _mm512_mul_ps(q[0], _mm512_loadu_ps(key));
            for (int b = 1; b < BLOCKS; ++b)
                sum = _mm512_fmadd_ps(q[b], _mm512_loadu_ps(key + 16 * b), sum);
            scores[S++] = _mm512_reduce_add_ps(sum);
        }
    }
    __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (long s = 0; s < S; s += 16)
        most = _mm512_mask_max_ps(most, first(S - s), most, _mm512_loadu_ps(scores + s));
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (long s = 0; s < S; s += 16) {
        __mmask16 lanes = first(S - s);
        __m512 share = exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, scores + s), most));
        total = _mm512_mask_add_ps(total, lanes, total, share);
        _mm512_mask_storeu_ps(scores + s, lanes, share);
    }
    __m512 sums[BLOCKS];
    for (int b = 0; b < BLOCKS; ++b) sums[b] = _mm512_setzero_ps();
    const float* share = scores;
    for (int64_t run = pool.runs_of[row]; run < pool.runs_of[row + 1]; ++run) {
        const float* value = values + pool.begin[run] * D;
        for (int64_t s = 0; s < pool.length[run]; ++s, value += D) {
            _mm_prefetch((const char*)(value + 8 * D), _MM_HINT_T0);
            __m512 one = _mm512_set1_ps(*share++);
            for (int b = 0; b < BLOCKS; ++b)
                sums[b] = _mm512_fmadd_ps(one, _mm512_loadu_ps(value + 16 * b), sums[b]);
        }
    }
    const __m512 whole = _mm512_set1_ps(_mm512_reduce_add_ps(total));
    for (int b = 0; b < BLOCKS; ++b)
        _mm512_storeu_ps(out + 16 * b, _mm512_div_ps(sums[b], whole));
}

// One head of one row: writes the new key, normalised where there is `k_norm`, and the new value. `qkv`: all heads of
// the row.
static void write_new(const Pool& pool, int64_t layer, int64_t row, int64_t head, const float* qkv,
                      const float* k_norm) {
    const int64_t D = pool.head_dim, E = pool.num_heads * D;
    const int64_t base = layer * pool.layer_stride + head * pool.head_stride;
    const int64_t last = pool.runs_of[row + 1] - 1;
    const int64_t slot = pool.begin[last] + pool.length[last] - 1;
    float *key = pool.keys + base + slot * D, *value = pool.values + base + slot * D;
    const float *k = qkv + E + head * D, *v = k + E;
    if (k_norm)
        layer_norm(k, k_norm, key, D);
    else
        std::copy(k, k + D, key);
    std::copy(v, v + D, value);
}

// One head of one row, whose keys and values are all written. `qkv` and `seen`: all heads of the row.
static void attend(const Pool& pool, int64_t layer, int64_t row, int64_t head, const float* qkv,
                   const float* q_norm, float* scores, float* seen) {
    const int64_t D = pool.head_dim;
    const int64_t base = layer * pool.layer_stride + head * pool.head_stride;
    float *keys = pool.keys + base, *values = pool.values + base;
    alignas(64) float normed[16 * kMostBlocks];
    const float* q = qkv + head * D;
    if (q_norm) {
        layer_norm(q, q_norm, normed, D);
        q = normed;
    }
    switch (D / 16) {
#define BLOCKS(n) \
    case n:       \
        return attend_head<n>(pool, row, q, keys, values, scores, seen + head * D);
        BLOCKS(1) BLOCKS(2) BLOCKS(3) BLOCKS(4) BLOCKS(5) BLOCKS(6) BLOCKS(7) BLOCKS(8)
#undef BLOCKS
    }
}
