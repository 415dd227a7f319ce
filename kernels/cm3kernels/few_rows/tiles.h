// Rows times panels in AMX's tiles: 16 rows of 64 bytes. Sixteen groups of a panel are one as they stand in memory, and so are 64
// bytes of 16 rows of inputs; a product of the two adds to 16 rows of 16 outputs. Fewer rows take as long as 16: all are read,
// and the results of those that are no rows are not stored. Each output is summed in the order of the inputs, of which those
// with an even and with an odd place meet in the end: a row's result has the same bits with any neighbours.
#pragma once
#include <sys/syscall.h>
#include <unistd.h>

namespace tiles {

#ifdef __AMX_TILE__

static bool used = false;

// Asks the system for AMX's registers, which a process has to do once.
static bool use(bool wanted) {
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return used = wanted && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

// Each thread sets the tiles' shapes before its products, and gives them up after.
struct alignas(64) Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct InUse {
    InUse() {
        static const Shapes shapes;
        if (used) _tile_loadconfig(&shapes);
    }
    ~InUse() {
        if (used) _tile_release();
    }
};

template <int KIND, int NP>
static void panels(long number, const uint8_t* inputs, const float* largest, long panel,
                   const Product& p, float* out, int after) {
    const long G = p.groups(), row = p.row_bytes(), size = G * 64;
    const uint8_t* weight = p.weight + panel * size;
    alignas(64) int32_t sums[NP][16][16];
    _tile_zero(0);
    if (NP > 1) _tile_zero(1);
    if (NP > 2) _tile_zero(2);
    if (NP > 3) _tile_zero(3);
// tiles are named by numbers in the code: sums in 0 to 3, inputs in 4, weights in 5 and 6
#define ADD(n, w)                                                        \
    if (NP > n) {                                                        \
        const uint8_t* at = weight + n * size + g * 64;                  \
        for (int line = 0; line < 16; ++line)                            \
            _mm_prefetch((const char*)(at + 4096 + line * 64), _MM_HINT_T0); \
        _tile_loadd(w, at, 64);                                          \
        if (KIND == kInt8)                                               \
            _tile_dpbusd(n, 4, w);                                       \
        else                                                             \
            _tile_dpbf16ps(n, 4, w);                                     \
    }
    for (long g = 0; g < G; g += 16) {
        _tile_loadd(4, inputs + g * 4, row);
        ADD(0, 5)
        ADD(1, 6)
        ADD(2, 5)
        ADD(3, 6)
    }
#undef ADD
    _tile_stored(0, sums[0], 64);
    if (NP > 1) _tile_stored(1, sums[1 % NP], 64);
    if (NP > 2) _tile_stored(2, sums[2 % NP], 64);
    if (NP > 3) _tile_stored(3, sums[3 % NP], 64);
    for (int n = 0; n < NP; ++n) {
        const long v = (panel + n) * 16;
        for (long r = 0; r < number; ++r) {
            __m512 value = meaning<KIND>(_mm512_load_si512(sums[n][r]), v, largest[r], p);
            store(out + r * p.V + v, value, first(p.V - v), after);
        }
    }
}

template <int KIND>
static void counted(long number, const uint8_t* in, const float* largest, long panel, long count,
                    const Product& p, float* out, int after) {
    switch (count) {
        case 1: return panels<KIND, 1>(number, in, largest, panel, p, out, after);
        case 2: return panels<KIND, 2>(number, in, largest, panel, p, out, after);
        case 3: return panels<KIND, 3>(number, in, largest, panel, p, out, after);
        case 4: return panels<KIND, 4>(number, in, largest, panel, p, out, after);
    }
}

// Up to 16 rows times up to 4 panels; the inputs are followed by what makes 16 rows.
static inline void some_rows(long number, const uint8_t* in, const float* largest, long panel,
                             long count, const Product& p, float* out, int after) {
    static_assert(kChunk == 4 && kRows == 16, "the tiles are numbered for these");
    if (p.kind == kInt8)
        counted<kInt8>(number, in, largest, panel, count, p, out, after);
    else
        counted<kBfloat16>(number, in, largest, panel, count, p, out, after);
}

#else

constexpr bool used = false;
static inline bool use(bool) { return false; }
struct InUse {
    InUse() {}
};
static inline void some_rows(long, const uint8_t*, const float*, long, long, const Product&, float*,
                             int) {}

#endif

}  // namespace tiles
