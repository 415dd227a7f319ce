// Vectors of 16 floats, a team of threads with a barrier, and memory that a thread keeps.
#pragma once
#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>

constexpr float kEpsilon = 1e-5f;  // of LayerNorm

// exp to 1 ulp or so: 2^n times a polynomial in the remainder (Cephes' expf)
static inline __m512 exp16(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

// x Phi(x), the exact gelu: erfc by Chebyshev coefficients, error below 1.2e-7 of erfc
// (Press et al., Numerical Recipes, section 6.2)
static inline __m512 gelu16(__m512 x) {
    __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    __m512 one = _mm512_set1_ps(1.0f);
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.5f), one));
    __m512 p = _mm512_set1_ps(0.17087277f);
    for (float c : {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f, 0.09678418f,
                    0.37409196f, 1.00002368f, -1.26551223f})
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(c));
    __m512 half = _mm512_mul_ps(
        _mm512_set1_ps(0.5f), _mm512_mul_ps(t, exp16(_mm512_fnmadd_ps(z, z, p))));
    __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_sub_ps(half, positive, one, half));
}

static inline __mmask16 first(long count) {  // the first `count` of 16 lanes
    return count >= 16 ? 0xFFFF : (__mmask16)((1u << count) - 1);
}

// All threads of a call meet here. They spin, since a step has a hundred meetings some microseconds
// apart; a thread that waits for long gives its core to others.
struct Barrier {
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> phase{0};
    int number = 1;

    void wait() {
        if (number == 1) return;
        int now = phase.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == number - 1) {
            arrived.store(0, std::memory_order_relaxed);
            phase.store(now + 1, std::memory_order_release);
            return;
        }
        for (int turns = 0; phase.load(std::memory_order_acquire) == now; ++turns) {
            if (turns < 1000)
                _mm_pause();
            else
                sched_yield();
        }
    }
};

// One thread's view of its team.
struct Team {
    int id, number;
    Barrier* barrier;
    void wait() const { barrier->wait(); }
};

// Memory that a thread keeps between calls: it is not given back to the system and cleared each time.
struct Scratch {
    void* memory = nullptr;
    size_t size = 0;
    ~Scratch() { free(memory); }
    // the first of `bytes`, aligned to 64; nullptr: there is no memory
    uint8_t* take(size_t bytes) {
        if (bytes > size) {
            free(memory);
            memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
            size = memory ? bytes : 0;
        }
        return (uint8_t*)memory;
    }
};

static inline size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }
