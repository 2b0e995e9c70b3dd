/* bfloat16 in registers and tiles, for the product kernels: AMX tiles if the processor has them, else AVX-512 registers.
 *
 * The right matrix of a product is packed: pairs of its rows are interleaved, (rows / 2, columns) of pairs.
 */
#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

/* LANES channels of a row: one cache line of bfloat16, two registers of float32. */
#define LANES 32
#define EACH(h) for (int h = 0; h < 2; h++)
typedef struct {
    __m512 half[2];
} lanes;

static inline lanes load(const bf16 *x) {
    lanes value;
    EACH(h) {
        __m256i bits = _mm256_loadu_si256((const __m256i *)(x + 16 * h));
        value.half[h] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    return value;
}
static inline lanes floats(const float *x) {
    lanes value;
    EACH(h) value.half[h] = _mm512_loadu_ps(x + 16 * h);
    return value;
}
static inline __m512i bits_of(lanes value) { return (__m512i)_mm512_cvtne2ps_pbh(value.half[1], value.half[0]); }
static inline void store(bf16 *x, lanes value) { _mm512_storeu_si512(x, bits_of(value)); }
static inline void store_floats(float *x, lanes value) { EACH(h) _mm512_storeu_ps(x + 16 * h, value.half[h]); }
static inline lanes rounded(lanes value) { /* to bfloat16 and back */
    __m512i bits = bits_of(value);
    lanes found;
    EACH(h) {
        __m256i part = h ? _mm512_extracti64x4_epi64(bits, 1) : _mm512_castsi512_si256(bits);
        found.half[h] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16));
    }
    return found;
}
static inline lanes times_plus(lanes a, lanes b, lanes c) {
    EACH(h) c.half[h] = _mm512_fmadd_ps(a.half[h], b.half[h], c.half[h]);
    return c;
}
static inline lanes plus(lanes a, lanes b) {
    EACH(h) a.half[h] = _mm512_add_ps(a.half[h], b.half[h]);
    return a;
}
static inline lanes minus(lanes a, lanes b) {
    EACH(h) a.half[h] = _mm512_sub_ps(a.half[h], b.half[h]);
    return a;
}
static inline lanes positive(lanes a) { /* max(a, 0); a NaN stays NaN */
    EACH(h) a.half[h] = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.half[h], _mm512_setzero_ps(), _CMP_NLE_UQ), a.half[h]);
    return a;
}
static inline __mmask32 above_zero(lanes a) {
    __mmask32 mask = 0;
    EACH(h) mask |= (__mmask32)_mm512_cmp_ps_mask(a.half[h], _mm512_setzero_ps(), _CMP_GT_OQ) << 16 * h;
    return mask;
}
static inline lanes where(__mmask32 mask, lanes a) { /* a where the mask is set, else 0 */
    EACH(h) a.half[h] = _mm512_maskz_mov_ps((__mmask16)(mask >> 16 * h), a.half[h]);
    return a;
}
static inline lanes zero(void) { return (lanes){{_mm512_setzero_ps(), _mm512_setzero_ps()}}; }

/* Memory that is read or written next; it is prefetched into the core's cache while products are computed. */
#define REGIONS 5
struct ahead {
    const char *at[REGIONS];
    int64_t lines[REGIONS], rate; /* cache lines for each step of a product */
    int region;
};

static inline void plan(struct ahead *ahead, const bf16 *x, int64_t row, int64_t rows, int64_t end, int64_t channels) {
    if (!x || row >= end) return;
    if (rows > end - row) rows = end - row;
    ahead->at[ahead->region] = (const char *)(x + row * channels);
    ahead->lines[ahead->region++] = rows * channels / LANES;
}

static inline void start(struct ahead *ahead, int64_t steps) {
    int64_t lines = 0;
    for (int region = 0; region < ahead->region; region++) lines += ahead->lines[region];
    ahead->rate = (lines + steps - 1) / steps;
}

static inline void fetch(struct ahead *ahead) {
    for (int64_t i = 0; i < ahead->rate && ahead->region; i++) {
        int region = ahead->region - 1;
        _mm_prefetch(ahead->at[region], _MM_HINT_T1);
        ahead->at[region] += 64;
        if (--ahead->lines[region] == 0) ahead->region--;
    }
}

#ifdef __AMX_BF16__
static inline void configure(void) {
    struct {
        uint8_t palette, start, zero[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) config.bytes[tile] = 64, config.rows[tile] = 16;
    __asm__ volatile("" : : "r"(&config) : "memory"); /* GCC does not know that the instruction reads all of config */
    _tile_loadconfig(&config);
}
static inline void release(void) { _tile_release(); }
#else
/* Rows of a product that are computed at a time: their sums and the factors fill the registers. */
#define ROWS 8

/* Add the products of one pair of columns of ROWS rows of the left matrix, `stride` values apart, and one packed row of
 * the right matrix to ROWS sums. */
static inline void add_products(lanes *sums, const bf16 *left, int64_t stride, const uint32_t *right) {
    __m512bh packed[2];
    EACH(h) packed[h] = (__m512bh)_mm512_loadu_si512(right + 16 * h);
    for (int i = 0; i < ROWS; i++) {
        int32_t pair;
        memcpy(&pair, left + i * stride, sizeof(pair));
        EACH(h) sums[i].half[h] = _mm512_dpbf16_ps(sums[i].half[h], (__m512bh)_mm512_set1_epi32(pair), packed[h]);
    }
}
static inline void configure(void) {}
static inline void release(void) {}
#endif

/* Transpose (16, 16) pairs. */
static inline void transpose_16(const uint32_t *from, int64_t from_stride, uint32_t *to, int64_t to_stride) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * from_stride);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * to_stride, r[i]);
}

static inline void *space(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* Interleave two rows of 16 columns. */
static inline __m512i pairs_of(const bf16 *first, const bf16 *second) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)first));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)second));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
