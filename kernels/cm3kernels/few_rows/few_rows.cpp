// The calls from Python (ctypes): one product, and one step of a decoder's layers for new tokens. See products.h and
// README.md.
//
// Legend: M rows, L layers, E width, H heads, D head dimension.
#include <omp.h>
#include <sys/mman.h>

#include <memory>

#include "attention.h"
#include "products.h"

namespace {
thread_local Scratch scratch;

// Rows that are read for M rows: a tile has 16.
constexpr int64_t whole(int64_t M) { return (M + kRows - 1) / kRows * kRows; }

// Calls `body(team)` on up to `threads` threads.
template <class Body>
void together(int threads, const Body& body) {
    Barrier barrier;
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        barrier.number = omp_get_num_threads();
        const tiles::InUse in_use;
        body(Team{omp_get_thread_num(), barrier.number, &barrier});
    }
}
}  // namespace

extern "C" {

// Use AMX's tiles, where they are wanted and the system lets this process: 1, else 0.
int cm3_tiles(int wanted) { return tiles::use(wanted); }

// Ask for large pages: a step reads every weight once.
void cm3_large_pages(void* start, int64_t bytes) { madvise(start, bytes, MADV_HUGEPAGE); }

// out [M, V] = after(x [M, K] @ weight.T), or += where `after` is kAdd. Returns 0, or 1 without memory.
int cm3_product(const Product* product, const float* x, int64_t M, int normed, int after, float* out,
                int threads) {
    const Product& p = *product;
    const size_t rows = rounded(whole(M) * p.row_bytes()), largest = rounded(M * sizeof(float));
    uint8_t* memory = scratch.take(rows + largest + (normed ? M * p.K * sizeof(float) : 0));
    if (!memory) return 1;
    std::atomic<int> next{0};
    together(threads, [&](const Team& team) {
        float* most = (float*)(memory + rows);
        prepare(team, x, M, normed, (float*)(memory + rows + largest), memory, most, p);
        team.wait();
        multiply(next, memory, most, M, p, out, after);
    });
    return 0;
}

struct Layer {
    Product qkv, out, up, down;
    const float *q_norm, *k_norm;  // [D] weights, or null
};

// All layers of x [M, E], a new token each, in place; then LayerNorm of it to `out`.
int cm3_step(const Layer* layers, int64_t L, float* x, int64_t M, int after_up, const Pool* pool,
             float* out, int threads) {
    const int64_t E = layers[0].down.V, F = layers[0].up.V, H = pool->num_heads;
    const size_t row = std::max({layers[0].qkv.row_bytes(), layers[0].down.row_bytes()});
    const size_t sizes[] = {whole(M) * row, M * sizeof(float), M * E * sizeof(float),
                            M * 3 * E * sizeof(float), M * E * sizeof(float),
                            M * F * sizeof(float),
                            threads * rounded(pool->longest * sizeof(float))};
    size_t total = 0, begin[7];
    for (int i = 0; i < 7; ++i) begin[i] = total, total += rounded(sizes[i]);
    uint8_t* inputs = scratch.take(total);
    if (!inputs) return 1;
    auto part = [&](int i) { return (float*)(inputs + begin[i]); };
    float *largest = part(1), *norm = part(2), *qkv = part(3), *seen = part(4), *wide = part(5);
    std::unique_ptr<std::atomic<int>[]> next(new std::atomic<int>[5 * L]());
    together(threads, [&](const Team& team) {
        float* scores = part(6) + team.id * (rounded(pool->longest * sizeof(float)) / 4);
        for (int64_t layer = 0; layer < L; ++layer) {
            const Layer& at = layers[layer];
            std::atomic<int>* counters = &next[5 * layer];
            auto product = [&](int number, const float* from, bool normed, const Product& p,
                               float* to, int after) {
                prepare(team, from, M, normed, norm, inputs, largest, p);
                team.wait();
                multiply(counters[number], inputs, largest, M, p, to, after);
                team.wait();
            };
            product(0, x, true, at.qkv, qkv, kNothing);
            if (pool->sees_new) {
                for (int64_t head = team.id; head < H; head += team.number)
                    for (int64_t m = 0; m < M; ++m)
                        write_new(*pool, layer, m, head, qkv + m * 3 * E, at.k_norm);
                team.wait();
            }
            for (int task; (task = counters[1].fetch_add(1)) < H * M;) {  // rows of a head in a row
                const int64_t m = task % M, head = task / M;
                if (!pool->sees_new) write_new(*pool, layer, m, head, qkv + m * 3 * E, at.k_norm);
                attend(*pool, layer, m, head, qkv + m * 3 * E, at.q_norm, scores, seen + m * E);
            }
            team.wait();
            product(2, seen, false, at.out, x, kAdd);
            product(3, x, true, at.up, wide, after_up);
            product(4, wide, false, at.down, x, kAdd);
        }
        for (int64_t m = team.id; m < M; m += team.number)
            layer_norm(x + m * E, nullptr, out + m * E, E);
    });
    return 0;
}

}  // extern "C"
