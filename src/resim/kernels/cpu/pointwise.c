/* 1 x 1 convolutions fused with the BatchNorms before and after them, for bfloat16 in channels-last memory, on processors
 * with bfloat16 instructions (AVX-512 or AMX).
 *
 * A block of rows (pixels) passes through all operations while it is in a core's cache, and no intermediate result is
 * written to memory. Forward: normalise the input, multiply by the weight, sum the product for its statistics. Backward:
 * compute the gradient of the product, multiply it by the weight and by the input, and sum the input's gradient for the
 * BatchNorm before.
 *
 * Layout: input (rows, inputs), output (rows, outputs), weight (outputs, inputs); channels are multiples of 32.
 * coefficients (4, channels), slopes (3, channels) and partial sums are those of norm.c, with BLOCK rows for each sum.
 */
#include "lanes.h"

#include <sys/syscall.h>
#include <unistd.h>

#define BLOCK 256 /* rows in a core's cache at a time */
#define TILE 32   /* rows of one product of matrices */
#define STRIP 64  /* columns of one product of matrices */

/* Whether the system allows this process to use the instructions below. AMX needs a permission. */
#ifdef __AMX_BF16__
int resim_products_allowed(void) {
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
}
#else
int resim_products_allowed(void) { return 1; }
#endif

/* out (rows, columns) = left (rows, inner) * packed, or += with add_to; rows and columns are multiples of 32. */
#ifdef __AMX_BF16__
static void multiply(const bf16 *left, int64_t left_stride, const uint32_t *packed, int64_t packed_stride, float *out,
                     int64_t out_stride, int64_t rows, int64_t inner, int64_t columns, int add_to, struct ahead *ahead) {
    __asm__ volatile("" : : : "memory"); /* GCC does not know that tile loads read memory */
    for (int64_t column = 0; column < columns; column += 32)
        for (int64_t row = 0; row < rows; row += 32) {
            float *at = out + row * out_stride + column;
            if (add_to) {
                _tile_loadd(0, at, out_stride * 4);
                _tile_loadd(1, at + 16, out_stride * 4);
                _tile_loadd(2, at + 16 * out_stride, out_stride * 4);
                _tile_loadd(3, at + 16 * out_stride + 16, out_stride * 4);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int64_t k = 0; k < inner; k += 32) {
                const bf16 *a = left + row * left_stride + k;
                const uint32_t *b = packed + k / 2 * packed_stride + column;
                _tile_loadd(4, a, left_stride * 2);
                _tile_loadd(6, b, packed_stride * 4);
                _tile_loadd(7, b + 16, packed_stride * 4);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a + 16 * left_stride, left_stride * 2);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
                if (ahead) fetch(ahead);
            }
            _tile_stored(0, at, out_stride * 4);
            _tile_stored(1, at + 16, out_stride * 4);
            _tile_stored(2, at + 16 * out_stride, out_stride * 4);
            _tile_stored(3, at + 16 * out_stride + 16, out_stride * 4);
        }
}
#else
static void multiply(const bf16 *left, int64_t left_stride, const uint32_t *packed, int64_t packed_stride, float *out,
                     int64_t out_stride, int64_t rows, int64_t inner, int64_t columns, int add_to, struct ahead *ahead) {
    for (int64_t column = 0; column < columns; column += 32)
        for (int64_t row = 0; row < rows; row += ROWS) {
            float *at = out + row * out_stride + column;
            const bf16 *a = left + row * left_stride;
            const uint32_t *b = packed + column;
            lanes sums[ROWS];
            for (int i = 0; i < ROWS; i++) sums[i] = zero();
            for (int64_t k = 0; k < inner; k += 32, a += 32) {
                for (int pair = 0; pair < 16; pair++, b += packed_stride) add_products(sums, a + 2 * pair, left_stride, b);
                if (ahead && row % 32 == 0) fetch(ahead);
            }
            for (int i = 0; i < ROWS; i++, at += out_stride)
                store_floats(at, add_to ? plus(floats(at), sums[i]) : sums[i]); /* added last, to lose less of small sums */
        }
}
#endif

/* Interleave pairs of rows: (rows, columns) -> (rows / 2, columns) of pairs. */
static void interleave(const bf16 *x, uint32_t *pairs, int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows; row += 2)
        for (int64_t c = 0; c < columns; c += 16)
            _mm512_storeu_si512(pairs + row / 2 * columns + c, pairs_of(x + row * columns + c, x + (row + 1) * columns + c));
}

static void transpose_pairs(const uint32_t *from, int64_t rows, int64_t columns, uint32_t *to, int64_t to_stride) {
    for (int64_t row = 0; row < rows; row += 16)
        for (int64_t c = 0; c < columns; c += 16)
            transpose_16(from + row * columns + c, columns, to + c * to_stride + row, to_stride);
}

/* Pack weight (outputs, inputs) for input * weight^T (forward) and for gradient * weight (backward): outputs * inputs / 2
 * pairs each; NULL: not needed. */
void resim_pointwise_pack(const bf16 *weight, uint32_t *forward, uint32_t *backward, int64_t outputs, int64_t inputs) {
    if (forward) transpose_pairs((const uint32_t *)weight, outputs, inputs / 2, forward, outputs);
    if (backward) interleave(weight, backward, outputs, inputs);
}

/* Write rows of x, normalised and through the ReLU if norm is not NULL, to tile; fill its remaining rows with 0. */
static void prepare(const bf16 *x, const float *norm, bf16 *tile, int64_t rows, int64_t channels) {
    if (!norm) memcpy(tile, x, rows * channels * sizeof(bf16));
    else
        for (int64_t c = 0; c < channels; c += LANES) {
            lanes scale = floats(norm + c), shift = floats(norm + channels + c);
            for (int64_t at = c; at < rows * channels; at += channels)
                store(tile + at, positive(times_plus(load(x + at), scale, shift)));
        }
    memset(tile + rows * channels, 0, (TILE - rows) * channels * sizeof(bf16));
}

struct forward {
    const bf16 *x;             /* (rows, inputs) */
    const float *x_norm;       /* coefficients that normalise x before a ReLU; NULL: neither */
    const uint32_t *weight;    /* packed forward */
    float *origin, *partial;   /* (outputs), (blocks, 2, outputs): the sums of norm.c; NULL: not needed */
    const float *norm;         /* coefficients that normalise the product; NULL: out is the product */
    const bf16 *addend;        /* (rows, outputs), added to the normalised product before a ReLU */
    const float *addend_norm;  /* coefficients that normalise the addend; NULL: not normalised */
    bf16 *out;                 /* (rows, outputs) */
    uint32_t *mask;          /* (rows, outputs / 32): a bit for each channel, set where the ReLU's output is above 0 */
    int64_t rows, inputs, outputs, threads;
};

/* Finish a strip of the product: `channels` channels, beginning with channel `from`. */
static void finish_forward(const struct forward *f, const float *product, int64_t row, int64_t rows, int64_t from,
                           int64_t channels, float *sums) {
    int64_t n = f->outputs;
    for (int64_t c = from; c < from + channels; c += LANES) {
        const float *line = product + (c - from);
        int64_t at = row * n + c;
        if (f->norm) {
            lanes scale = floats(f->norm + c), shift = floats(f->norm + n + c), addend_scale = zero(), addend_shift = zero();
            if (f->addend_norm) addend_scale = floats(f->addend_norm + c), addend_shift = floats(f->addend_norm + n + c);
            for (int64_t i = 0; i < rows; i++, line += STRIP, at += n) {
                lanes addend = load(f->addend + at);
                if (f->addend_norm) addend = times_plus(addend, addend_scale, addend_shift);
                lanes y = positive(plus(times_plus(floats(line), scale, shift), addend));
                store(f->out + at, y);
                f->mask[at / LANES] = above_zero(y);
            }
        } else if (!f->partial)
            for (int64_t i = 0; i < rows; i++, line += STRIP, at += n) store(f->out + at, floats(line));
        else {
            lanes origin = floats(f->origin + c), sum = zero(), square = zero();
            for (int64_t i = 0; i < rows; i++, line += STRIP, at += n) {
                lanes value = floats(line);
                store(f->out + at, value);
                value = minus(rounded(value), origin);
                sum = plus(sum, value);
                square = times_plus(value, value, square);
            }
            store_floats(sums + c, plus(floats(sums + c), sum));
            store_floats(sums + n + c, plus(floats(sums + n + c), square));
        }
    }
}

void resim_pointwise_forward(const struct forward *f) {
    int64_t blocks = (f->rows + BLOCK - 1) / BLOCK, k = f->inputs, n = f->outputs;
#pragma omp parallel num_threads((int)f->threads)
    {
        bf16 *tile = space(TILE * k * sizeof(bf16));
        float *product = space(TILE * STRIP * sizeof(float)), *unused = space(2 * n * sizeof(float));
        configure();
        if (f->partial) {
#pragma omp single
            {
                prepare(f->x, f->x_norm, tile, f->rows < TILE ? f->rows : TILE, k);
                for (int64_t c = 0; c < n; c += LANES) {
                    multiply(tile, k, f->weight + c, n, product, STRIP, TILE, k, LANES, 0, NULL);
                    memcpy(f->origin + c, product, LANES * sizeof(float));
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            float *sums = f->partial ? f->partial + block * 2 * n : unused;
            memset(sums, 0, 2 * n * sizeof(float));
            int64_t end = (block + 1) * BLOCK < f->rows ? (block + 1) * BLOCK : f->rows;
            for (int64_t row = block * BLOCK; row < end; row += TILE) {
                int64_t rows = end - row < TILE ? end - row : TILE;
                struct ahead ahead = {.region = 0};
                plan(&ahead, f->out, row + TILE, TILE, f->rows, n);
                plan(&ahead, f->addend, row + TILE, TILE, f->rows, n);
                plan(&ahead, f->x, row + TILE, TILE, f->rows, k);
                start(&ahead, TILE / 32 * (n / 32) * (k / 32));
                prepare(f->x + row * k, f->x_norm, tile, rows, k);
                for (int64_t c = 0; c < n; c += STRIP) {
                    int64_t width = n - c < STRIP ? n - c : STRIP;
                    multiply(tile, k, f->weight + c, n, product, STRIP, TILE, k, width, 0, &ahead);
                    finish_forward(f, product, row, rows, c, width, sums);
                }
            }
        }
        release();
        free(tile), free(product), free(unused);
    }
}

/* Moments of the input, from which the statistics of the product follow, as it is linear: sums, (parts, channels), and
 * sums of the products of two channels, (parts, channels, channels), of which only the upper triangle is valid. The parts
 * of the rows do not depend on the number of threads. */
struct moments {
    const bf16 *x;       /* (rows, channels) */
    const float *x_norm; /* coefficients that normalise x before a ReLU; NULL: neither */
    float *sums, *products; /* added to */
    int64_t rows, channels, parts, threads;
};

void resim_pointwise_moments(const struct moments *m) {
    int64_t blocks = (m->rows + BLOCK - 1) / BLOCK, each = (blocks + m->parts - 1) / m->parts, k = m->channels;
#pragma omp parallel num_threads((int)m->threads)
    {
        bf16 *tile = space(TILE * k * sizeof(bf16));
        uint32_t *pairs = space(BLOCK / 2 * k * sizeof(uint32_t)), *transposed = space(BLOCK / 2 * k * sizeof(uint32_t));
        configure();
#pragma omp for schedule(static, each)
        for (int64_t block = 0; block < blocks; block++) {
            float *sums = m->sums + block / each * k, *products = m->products + block / each * k * k;
            int64_t end = (block + 1) * BLOCK < m->rows ? (block + 1) * BLOCK : m->rows, done = 0;
            for (int64_t row = block * BLOCK; row < end; row += TILE, done += TILE) {
                int64_t rows = end - row < TILE ? end - row : TILE;
                prepare(m->x + row * k, m->x_norm, tile, rows, k);
                for (int64_t c = 0; c < k; c += LANES) {
                    lanes sum = floats(sums + c);
                    for (int64_t i = 0; i < rows; i++) sum = plus(sum, load(tile + i * k + c));
                    store_floats(sums + c, sum);
                }
                interleave(tile, pairs + done / 2 * k, TILE, k);
                transpose_pairs(pairs + done / 2 * k, TILE / 2, k, transposed + done / 2, BLOCK / 2);
            }
            struct ahead ahead = {.region = 0};
            plan(&ahead, m->x, end, BLOCK, m->rows, k);
            start(&ahead, (k / 32 + 1) * (k / 32) / 2 * (done / 32));
            for (int64_t c = 0; c < k; c += LANES)
                multiply((const bf16 *)transposed + c * BLOCK, BLOCK, pairs + c, k, products + c * k + c, k, LANES, done, k - c,
                         1, &ahead);
        }
        release();
        free(tile), free(pairs), free(transposed);
    }
}

/* From these sums, the mean and the scatter matrix (sums of products of deviations): (1 + channels, channels). */
void resim_pointwise_scatter(const float *sums, const float *products, float *moments, int64_t rows, int64_t channels,
                            int64_t parts) {
    int64_t k = channels;
    double *mean = calloc(2 * k, sizeof(double)), *line = mean + k;
    for (int64_t part = 0; part < parts; part++)
        for (int64_t c = 0; c < k; c++) mean[c] += sums[part * k + c];
    for (int64_t c = 0; c < k; c++) mean[c] /= rows, moments[c] = mean[c];
    for (int64_t i = 0; i < k; i++) {
        float *row = moments + (1 + i) * k;
        for (int64_t c = i; c < k; c++) line[c] = -rows * mean[i] * mean[c];
        for (int64_t part = 0; part < parts; part++)
            for (int64_t c = i; c < k; c++) line[c] += products[(part * k + i) * k + c];
        for (int64_t c = i; c < k; c++) row[c] = moments[(1 + c) * k + i] = line[c];
    }
    free(mean);
}

struct backward {
    const bf16 *grad;            /* (rows, outputs), gradient of the ReLU's output */
    const uint32_t *mask;      /* (rows, outputs / 32), set where the ReLU's output is above 0; not used with x */
    const bf16 *x;               /* (rows, outputs), the product; NULL: only the ReLU is applied to grad */
    const float *norm, *slopes;  /* coefficients and slopes of x */
    float *sums;                 /* (threads, outputs), sums of dz, added to; NULL: not needed */
    const bf16 *input;           /* (rows, inputs) */
    const float *input_norm;     /* coefficients that normalise the input before a ReLU; NULL: neither */
    const uint32_t *weight;      /* packed backward; NULL: the gradient of the input is not needed */
    const uint32_t *correction;  /* (inputs, inputs) packed backward: input * correction is added to the gradient; or NULL */
    const float *constant;       /* (inputs), added with the correction */
    bf16 *grad_input;            /* (rows, inputs) */
    const bf16 *addend;          /* (rows, inputs), added to the gradient; or NULL */
    const uint32_t *addend_mask; /* (rows, inputs / 32), set where the addend counts; NULL: everywhere */
    float *input_partial;        /* (blocks, 2, inputs), sums for the slopes of the input's normalisation; or NULL */
    float *grad_weight;          /* (threads, outputs, inputs), or transposed unless inputs > outputs; added to; or NULL */
    int64_t rows, inputs, outputs, threads;
};

/* Write the gradient of some rows of the product to g (with x), or dz (without). */
static void output_gradient(const struct backward *b, int64_t row, int64_t rows, bf16 *g, float *sums) {
    int64_t n = b->outputs;
    for (int64_t c = 0; c < n; c += LANES) {
        bf16 *out = g + c;
        int64_t at = row * n + c;
        if (b->x) {
            lanes scale = floats(b->norm + c), shift = floats(b->norm + n + c);
            lanes of_dz = floats(b->slopes + c), of_x = floats(b->slopes + n + c), offset = floats(b->slopes + 2 * n + c);
            for (int64_t i = 0; i < rows; i++, out += n, at += n) {
                lanes value = load(b->x + at);
                __mmask32 mask = above_zero(times_plus(value, scale, shift));
                store(out, times_plus(where(mask, load(b->grad + at)), of_dz, times_plus(value, of_x, offset)));
            }
        } else {
            lanes sum = b->sums ? floats(sums + c) : zero();
            for (int64_t i = 0; i < rows; i++, out += n, at += n) {
                __m512i bits = _mm512_maskz_loadu_epi16(b->mask[at / LANES], b->grad + at);
                _mm512_storeu_si512(out, bits);
                if (b->sums) sum = plus(sum, load(out));
            }
            if (b->sums) store_floats(sums + c, sum);
        }
        for (int64_t i = rows; i < TILE; i++, out += n) store(out, zero());
    }
}

static void input_gradient(const struct backward *b, const float *product, int64_t row, int64_t rows, int64_t from,
                           int64_t channels, float *sums) {
    int64_t k = b->inputs;
    const float *norm = b->input_norm;
    for (int64_t c = from; c < from + channels; c += LANES) {
        const float *line = product + (c - from);
        lanes scale = zero(), shift = zero(), mean = zero(), sum = zero(), product_sum = zero();
        lanes constant = b->correction ? floats(b->constant + c) : zero();
        if (norm) scale = floats(norm + c), shift = floats(norm + k + c), mean = floats(norm + 2 * k + c);
        int64_t at = row * k + c;
        for (int64_t i = 0; i < rows; i++, line += STRIP, at += k) {
            lanes result = plus(floats(line), constant);
            if (b->addend) {
                lanes addend = load(b->addend + at);
                result = plus(result, b->addend_mask ? where(b->addend_mask[at / LANES], addend) : addend);
            }
            store(b->grad_input + at, result);
            if (!norm) continue;
            lanes value = load(b->input + at);
            lanes dz = where(above_zero(times_plus(value, scale, shift)), rounded(result));
            sum = plus(sum, dz);
            product_sum = times_plus(dz, minus(value, mean), product_sum);
        }
        if (!norm) continue;
        store_floats(sums + c, plus(floats(sums + c), sum));
        store_floats(sums + k + c, plus(floats(sums + k + c), product_sum));
    }
}

void resim_pointwise_backward(const struct backward *b) {
    int64_t blocks = (b->rows + BLOCK - 1) / BLOCK, k = b->inputs, n = b->outputs;
#pragma omp parallel num_threads((int)b->threads)
    {
        bf16 *tile = space(TILE * k * sizeof(bf16)), *g = space(TILE * n * sizeof(bf16));
        float *product = space(TILE * STRIP * sizeof(float)), *unused = space(2 * k * sizeof(float));
        /* for the weight's gradient: of input and g, the one with more channels and, transposed, the other */
        int64_t more = k > n ? k : n, fewer = k > n ? n : k;
        uint32_t *pairs = space(BLOCK / 2 * more * sizeof(uint32_t));   /* (BLOCK / 2, more) */
        uint32_t *upright = space(TILE / 2 * fewer * sizeof(uint32_t)); /* (TILE / 2, fewer) */
        uint32_t *transposed = space(BLOCK / 2 * fewer * sizeof(uint32_t)); /* (fewer, BLOCK / 2) */
        float *grad_weight = b->grad_weight ? b->grad_weight + omp_get_thread_num() * n * k : NULL;
        float *sums = b->sums ? b->sums + omp_get_thread_num() * n : NULL;
        configure();
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            float *input_sums = b->input_partial ? b->input_partial + block * 2 * k : unused;
            if (b->input_partial) memset(input_sums, 0, 2 * k * sizeof(float));
            int64_t end = (block + 1) * BLOCK < b->rows ? (block + 1) * BLOCK : b->rows, done = 0;
            struct ahead ahead = {.region = 0};
            for (int64_t row = block * BLOCK; row < end; row += TILE, done += TILE) {
                int64_t rows = end - row < TILE ? end - row : TILE;
                if (b->weight) {
                    ahead.region = 0;
                    plan(&ahead, b->grad_input, row + TILE, TILE, b->rows, k);
                    plan(&ahead, b->addend, row + TILE, TILE, b->rows, k);
                    plan(&ahead, b->x, row + TILE, TILE, b->rows, n);
                    plan(&ahead, b->grad, row + TILE, TILE, b->rows, n);
                    plan(&ahead, b->input, row + TILE, TILE, b->rows, k);
                    start(&ahead, TILE / 32 * (n / 32) * (k / 32));
                }
                if (b->grad_weight || b->correction) prepare(b->input + row * k, b->input_norm, tile, rows, k);
                output_gradient(b, row, rows, g, sums);
                for (int64_t c = 0; b->weight && c < k; c += STRIP) {
                    int64_t width = k - c < STRIP ? k - c : STRIP;
                    multiply(g, n, b->weight + c, k, product, STRIP, TILE, n, width, 0, &ahead);
                    if (b->correction) multiply(tile, k, b->correction + c, k, product, STRIP, TILE, k, width, 1, NULL);
                    input_gradient(b, product, row, rows, c, width, input_sums);
                }
                if (!b->grad_weight) continue;
                interleave(k > n ? tile : g, pairs + done / 2 * more, TILE, more);
                interleave(k > n ? g : tile, upright, TILE, fewer);
                transpose_pairs(upright, TILE / 2, fewer, transposed + done / 2, BLOCK / 2);
            }
            if (!b->grad_weight) continue;
            if (!b->weight) { /* nothing was prefetched above */
                ahead.region = 0;
                plan(&ahead, b->input, end, BLOCK, b->rows, k);
                plan(&ahead, b->grad, end, BLOCK, b->rows, n);
                start(&ahead, (n / 32) * (k / 32) * (done / 32));
            }
            multiply((const bf16 *)transposed, BLOCK, pairs, more, grad_weight, more, fewer, done, more, 1, &ahead);
        }
        release();
        free(tile), free(g), free(product), free(unused), free(pairs), free(upright), free(transposed);
    }
}
