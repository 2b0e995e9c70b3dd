/* Weight gradients of convolutions, for bfloat16 in channels-last memory, on processors with bfloat16 instructions
 * (AVX-512 or AMX).
 *
 * For a chunk of pixels that fits into a core's cache, the backward pass of BatchNorm computes the gradient of the
 * convolution's output, and the convolution's input is normalised. The two are then multiplied once for each position of
 * the kernel. The inner dimension of these products is pixels: the gradient is transposed, and pairs of pixels of the
 * input are interleaved.
 *
 * With many weights the result does not depend on the number of threads; with few weights it does, by rounding. If an
 * input is not finite, more of the result than necessary is not finite: the padding's zeros are multiplied like pixels.
 *
 * Coefficients (4, channels) and slopes (3, channels) are those of norm.c.
 */
#include "lanes.h"

#define TILE 32          /* pixels of one step of a product */
#define STEPS 8          /* steps before the sums are stored: the factors stay in the nearest cache */
#define SUMS 1024        /* floats of one product, (32, 32) in four tiles */
#define PIXELS 768       /* pixels of a thread's chunk, which fits into its core's cache */
#define HEAVY (1 << 18)  /* from this many weights on, threads share the weights instead of the pixels */
#define MORE_PIXELS 2048 /* pixels of a chunk in that case */

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t up(int64_t a, int64_t to) { return (a + to - 1) / to; }

/* The output of a convolution and its gradient. */
struct output {
    const bf16 *grad;           /* (pixels, outputs), gradient of the ReLU's output or, if x is NULL, of the convolution's */
    const bf16 *y;              /* likewise, the ReLU's output after an addition; NULL: recomputed from x */
    const bf16 *x;              /* likewise, the convolution's output */
    const float *norm, *slopes; /* coefficients and slopes of x */
    bf16 *out, *dz;            /* likewise, receive the gradients of x and of the sum before the ReLU; NULL: not needed */
    int64_t images, height, width, outputs;
};

/* A convolution and the gradient of its weight. */
struct work {
    struct output of;
    const bf16 *input;       /* (images, input_height, input_width, inputs) */
    const float *input_norm; /* coefficients that normalise the input before a ReLU; NULL: neither */
    float *grad_weight;      /* (outputs, kernel, kernel, inputs) */
    char *space;             /* scratch memory, of resim_weight_grad_space bytes */
    int64_t input_height, input_width, inputs, kernel, stride, padding, threads;
};

/* out = (32 outputs, pixels) * (pixels, 32 columns), or += with add_to. The factors are stored in the order in which they
 * are read; the quarters of out are `right` and `down` floats apart. */
#ifdef __AMX_BF16__
static void multiply(const bf16 *left, const uint32_t *packed, int64_t steps, int add_to, float *out, int64_t stride,
                     int64_t right, int64_t down, struct ahead *ahead) {
    __asm__ volatile("" : : : "memory"); /* GCC does not know that tile loads read memory */
    if (add_to) {
        _tile_loadd(0, out, stride);
        _tile_loadd(1, out + right, stride);
        _tile_loadd(2, out + down, stride);
        _tile_loadd(3, out + down + right, stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; step++, left += 32 * TILE, packed += TILE / 2 * 32) {
        _tile_loadd(4, left, 64);
        _tile_loadd(6, packed, 128);
        _tile_loadd(7, packed + 16, 128);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + 16 * TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        fetch(ahead);
    }
    _tile_stored(0, out, stride);
    _tile_stored(1, out + right, stride);
    _tile_stored(2, out + down, stride);
    _tile_stored(3, out + down + right, stride);
}
#else
static void multiply(const bf16 *left, const uint32_t *packed, int64_t steps, int add_to, float *out, int64_t stride,
                     int64_t right, int64_t down, struct ahead *ahead) {
    for (int64_t row = 0; row < 32; row += ROWS, left += ROWS * TILE) {
        float *at = out + row / 16 * down + row % 16 * (stride / 4);
        lanes sums[ROWS];
        for (int i = 0; i < ROWS; i++) sums[i] = zero();
        for (int64_t step = 0; step < steps; step++) {
            const bf16 *a = left + step * 32 * TILE;
            const uint32_t *b = packed + step * TILE / 2 * 32;
            for (int pair = 0; pair < TILE / 2; pair++) add_products(sums, a + 2 * pair, TILE, b + pair * 32);
            if (row == 0) fetch(ahead);
        }
        for (int i = 0; i < ROWS; i++, at += stride / 4)
            EACH(h) {
                __m512 before = add_to ? _mm512_loadu_ps(at + h * right) : _mm512_setzero_ps();
                _mm512_storeu_ps(at + h * right, _mm512_add_ps(before, sums[i].half[h])); /* added last, to lose less of small sums */
            }
    }
}
#endif

/* The position of the sum of an output and a column among a thread's sums; 16 columns are contiguous. */
static inline int64_t sum_at(int64_t product, int64_t output, int64_t column) {
    return product * SUMS + (output % 32 / 16 * 2 + column % 32 / 16) * 256 + output % 16 * 16 + column % 16;
}

/* Compute the gradient of `count` consecutive pixels of the output, from `pixel` on. */
static void output_gradient(const struct output *o, int64_t pixel, int64_t count, bf16 *out) {
    int64_t n = o->outputs;
    if (!o->x) {
        memcpy(out, o->grad + pixel * n, count * n * sizeof(bf16));
        return;
    }
    for (int64_t c = 0; c < n; c += LANES) {
        lanes scale = floats(o->norm + c), shift = floats(o->norm + n + c);
        lanes of_dz = floats(o->slopes + c), of_x = floats(o->slopes + n + c), offset = floats(o->slopes + 2 * n + c);
        int64_t at = pixel * n + c;
        bf16 *to = out + c;
        for (int64_t i = 0; i < count; i++, at += n, to += n) {
            lanes value = load(o->x + at);
            __mmask32 mask = above_zero(o->y ? load(o->y + at) : times_plus(value, scale, shift));
            lanes dz = where(mask, load(o->grad + at));
            lanes grad = times_plus(dz, of_dz, times_plus(value, of_x, offset));
            store(to, grad);
            if (o->out) store(o->out + at, grad);
            if (o->dz) store(o->dz + at, dz);
        }
    }
}

/* Transpose a tile of the gradient, (TILE, outputs), into the left matrix of a product: (32, TILE) for each 32 outputs,
 * `apart` pairs from the next. The memory after the tile, of the same size, is scratch. */
static void transpose_tile(bf16 *grad, uint32_t *transposed, int64_t apart, int64_t outputs) {
    uint32_t *pairs = (uint32_t *)(grad + TILE * outputs);
    for (int64_t pixel = 0; pixel < TILE; pixel += 2)
        for (int64_t c = 0; c < outputs; c += 16) {
            const bf16 *from = grad + pixel * outputs + c;
            _mm512_store_si512(pairs + pixel / 2 * outputs + c, pairs_of(from, from + outputs));
        }
    for (int64_t c = 0; c < outputs; c += 16) transpose_16(pairs + c, outputs, transposed + c / 32 * apart + c % 32 * 16, 16);
}

/* The tall image consists of all images below one another, with `edge` zeros after each line and `edge` lines of zeros
 * after each image. Neighbours across an edge are zeros, so that a position of the kernel is a constant offset. Positions
 * in the tall image are counted line by line.
 *
 * Return the length, at most `most`, of the run of positions from q on that map to pixels at regular distances, and set
 * *at to the first of these pixels, in a map of height * width pixels for each image; or the length of a run of positions
 * without pixels, and *at = -1. The pixel of position (y, x) is (y * stride + down, x * stride + across). */
static int64_t run(const struct output *o, int64_t edge, int64_t q, int64_t most, int64_t height, int64_t width,
                   int64_t stride, int64_t down, int64_t across, int64_t *at) {
    *at = -1;
    if (q < 0) return least(-q, most);
    int64_t wide = o->width + edge, high = o->height + edge;
    int64_t line = q / wide, x = q % wide, image = line / high, y = line % high;
    int64_t there = up(width - across, stride); /* positions of a line that have a pixel */
    if (image >= o->images) return most;
    if (y * stride + down >= height || x >= there) return least(wide - x, most);
    *at = (image * height + y * stride + down) * width + x * stride + across;
    return least(there - x, most);
}

/* Fill a tile with the gradient at TILE positions from q on; zeros from `end` on. */
static void fill_output(const struct output *o, int64_t edge, int64_t q, int64_t end, bf16 *tile) {
    for (int64_t i = 0, at, count; i < TILE; i += count) {
        at = -1, count = TILE - i;
        if (q + i < end) count = run(o, edge, q + i, count, o->height, o->width, 1, 0, 0, &at); /* a run ends with its line */
        if (at < 0) memset(tile + i * o->outputs, 0, count * o->outputs * sizeof(bf16));
        else output_gradient(o, at, count, tile + i * o->outputs);
    }
}

/* Fill a tile with the normalised input at `count` positions from q on. */
static void fill_input(const struct work *s, int64_t q, int64_t count, int64_t down, int64_t across, bf16 *tile) {
    int64_t k = s->inputs, step = s->stride * k, edge = s->kernel / 2, high = s->input_height, wide = s->input_width;
    for (int64_t i = 0, at, some; i < count; i += some) {
        some = run(&s->of, edge, q + i, count - i, high, wide, s->stride, down, across, &at);
        bf16 *to = tile + i * k;
        if (at < 0) memset(to, 0, some * k * sizeof(bf16));
        else
            for (int64_t c = 0; c < k; c += LANES) {
                const bf16 *from = s->input + at * k + c;
                lanes scale = zero(), shift = zero();
                if (s->input_norm) scale = floats(s->input_norm + c), shift = floats(s->input_norm + k + c);
                for (int64_t j = 0; j < some; j++) {
                    lanes value = load(from + j * step);
                    store(to + j * k + c, s->input_norm ? positive(times_plus(value, scale, shift)) : value);
                }
            }
    }
}

/* The partition of the work. A chunk is some lines of the tall image: `tiles` tiles of the gradient, and `input_tiles` of
 * the input, which include the reach of the kernel, for each of the planes into which a stride divides it. */
struct chunks {
    int64_t edge, across, down, end, positions;       /* positions of the tall image: in a line, an image, all; of the kernel */
    int64_t count, lines, tiles, input_tiles, planes;
    int64_t sums, packed, odd, transposed, own;        /* bytes */
    int by_weights;
};

static struct chunks chunks_of(const struct work *s) {
    struct chunks t = {.edge = s->kernel / 2, .positions = s->kernel * s->kernel, .planes = s->stride * s->stride};
    int64_t n = s->of.outputs, k = s->inputs;
    t.across = s->of.width + t.edge, t.down = s->of.height + t.edge, t.end = s->of.images * t.down * t.across;
    int64_t lines = s->of.images * t.down;
    t.by_weights = t.positions * n * k >= HEAVY;
    if (t.by_weights) t.count = up(t.end, MORE_PIXELS);
    else t.count = least(lines, s->threads * up(t.end, s->threads * PIXELS / s->stride));
    t.lines = up(lines, t.count), t.count = up(lines, t.lines);
    t.tiles = up(t.lines * t.across, TILE), t.input_tiles = up(t.tiles * TILE + 2 * t.edge * (t.across + 1), TILE);
    t.sums = t.by_weights ? 0 : t.positions * n * k * sizeof(float);
    t.packed = t.planes * t.input_tiles * TILE * k * sizeof(bf16), t.odd = t.edge ? t.packed : 0;
    t.transposed = t.tiles * TILE * n * sizeof(bf16);
    t.own = ((1 + TILE) * k + 2 * TILE * n) * sizeof(bf16);
    return t;
}

int64_t resim_weight_grad_space(const struct work *s) {
    struct chunks t = chunks_of(s);
    int64_t shared = t.sums + t.packed + t.odd + t.transposed;
    return t.by_weights ? shared + s->threads * t.own : s->threads * (shared + t.own);
}

/* The factors of a chunk's products. */
struct packed {
    uint32_t *even, *odd; /* pairs of the input that begin with even or odd pixels, (planes, inputs / 32, pairs, 32) */
    uint32_t *transposed;     /* (outputs / 32, tiles, 32, TILE), the gradient */
};

/* Pack tile i of the input; tile 0 starts at position q. The odd pairs start with the pixel before. */
static void pack_input(const struct work *s, const struct chunks *t, int64_t q, int64_t plane, int64_t i, bf16 *tile,
                       const struct packed *packed) {
    int64_t k = s->inputs, pairs = t->input_tiles * TILE / 2;
    fill_input(s, q + i * TILE - t->edge, TILE + t->edge, plane / s->stride, plane % s->stride, tile);
    for (int64_t pixel = 0; pixel < TILE; pixel += 2)
        for (int64_t c = 0; c < k; c += 16) {
            const bf16 *from = tile + pixel * k + c;
            int64_t to = ((plane * k / 32 + c / 32) * pairs + (i * TILE + pixel) / 2) * 32 + c % 32;
            if (t->edge) _mm512_store_si512(packed->odd + to, pairs_of(from, from + k)), from += k;
            _mm512_store_si512(packed->even + to, pairs_of(from, from + k));
        }
}

/* Pack tile i of the gradient of the chunk between positions `from` and `to`. */
static void pack_output(const struct output *o, const struct chunks *t, int64_t from, int64_t to, int64_t i, bf16 *tile,
                        const struct packed *packed) {
    fill_output(o, t->edge, from + i * TILE, to, tile);
    transpose_tile(tile, packed->transposed + i * 32 * TILE / 2, t->tiles * 32 * TILE / 2, o->outputs);
}

/* The chunk's products from tile `step` on, for 32 outputs, 32 inputs and one position of the kernel. */
static inline void multiply_at(const struct work *s, const struct chunks *t, const struct packed *packed, int64_t a,
                               int64_t b, int64_t position, int64_t step, int64_t steps, int add_to, float *out,
                               int64_t stride, int64_t right, int64_t down, struct ahead *ahead) {
    int64_t y = position / s->kernel - t->edge + s->stride, x = position % s->kernel - t->edge + s->stride;
    int64_t plane = y % s->stride * s->stride + x % s->stride, pairs = t->input_tiles * TILE / 2;
    int64_t at = (y / s->stride - 1 + t->edge) * t->across + x / s->stride - 1 + t->edge + step * TILE;
    const bf16 *left = (const bf16 *)packed->transposed + (a * t->tiles + step) * 32 * TILE;
    const uint32_t *pixels = at % 2 ? packed->odd + (at + 1) / 2 * 32 : packed->even + at / 2 * 32;
    pixels += (plane * (s->inputs / 32) + b) * pairs * 32;
    multiply(left, pixels, least(steps, t->tiles - step), add_to, out, stride, right, down, ahead);
}

/* Prefetch the memory that the next chunk reads. */
static void plan_chunk(const struct work *s, const struct chunks *t, int64_t position, struct ahead *ahead) {
    const struct output *o = &s->of;
    int64_t line = position / t->across, pixels = t->lines * o->width, all = o->images * o->height * o->width;
    int64_t pixel = (line / t->down * o->height + least(line % t->down, o->height)) * o->width;
    plan(ahead, o->y, pixel, pixels, all, o->outputs);
    plan(ahead, o->grad, pixel, pixels, all, o->outputs);
    plan(ahead, o->x, pixel, pixels, all, o->outputs);
    if (s->stride == 1) plan(ahead, s->input, pixel, pixels, all, s->inputs);
    start(ahead, t->tiles * t->positions * (o->outputs / 32) * (s->inputs / 32));
}

/* Each thread has its own chunks and its own sums; these and the factors fit into its core's cache. */
static void by_pixels(const struct work *s, const struct chunks *t) {
    int64_t k = s->inputs, n = s->of.outputs, bytes = t->sums + t->packed + t->odd + t->transposed + t->own;
#pragma omp parallel num_threads((int)s->threads)
    {
        char *own = s->space + omp_get_thread_num() * bytes, *even = own + t->sums, *transposed = even + t->packed + t->odd;
        float *sums = (float *)own;
        struct packed packed = {(uint32_t *)even, (uint32_t *)(even + t->packed), (uint32_t *)transposed};
        bf16 *tile = (bf16 *)(transposed + t->transposed), *grad = tile + (1 + TILE) * k;
        memset(sums, 0, t->sums);
        configure();
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < t->count; chunk++) {
            int64_t from = chunk * t->lines * t->across, to = least(from + t->lines * t->across, t->end);
            for (int64_t plane = 0; plane < t->planes; plane++)
                for (int64_t i = 0; i < t->input_tiles; i++)
                    pack_input(s, t, from - t->edge * (t->across + 1), plane, i, tile, &packed);
            for (int64_t i = 0; i < t->tiles; i++) pack_output(&s->of, t, from, to, i, grad, &packed);
            struct ahead ahead = {.region = 0};
            if ((chunk + 1) % up(t->count, s->threads)) plan_chunk(s, t, to, &ahead); /* unless it is this thread's last */
            for (int64_t step = 0; step < t->tiles; step += STEPS)
                for (int64_t a = 0; a < n / 32; a++)
                    for (int64_t b = 0; b < k / 32; b++)
                        for (int64_t position = 0; position < t->positions; position++)
                            multiply_at(s, t, &packed, a, b, position, step, STEPS, 1,
                                        sums + ((a * (k / 32) + b) * t->positions + position) * SUMS, 64, 256, 512, &ahead);
        }
        release();
#pragma omp for schedule(static)
        for (int64_t output = 0; output < n; output++)
            for (int64_t position = 0; position < t->positions; position++)
                for (int64_t c = 0; c < k; c += 16) {
                    int64_t at = sum_at((output / 32 * (k / 32) + c / 32) * t->positions + position, output, c);
                    __m512 sum = _mm512_setzero_ps();
                    for (int64_t thread = 0; thread < omp_get_num_threads(); thread++)
                        sum = _mm512_add_ps(sum, _mm512_loadu_ps((float *)(s->space + thread * bytes) + at));
                    _mm512_storeu_ps(s->grad_weight + (output * t->positions + position) * k + c, sum);
                }
    }
}

/* All threads pack a chunk's factors together, then each computes some of the weights, which are too many for separate
 * sums of each thread. */
static void by_weights(const struct work *s, const struct chunks *t) {
    int64_t k = s->inputs, n = s->of.outputs, row = t->positions * k;
    char *even = s->space, *transposed = even + t->packed + t->odd;
    struct packed packed = {(uint32_t *)even, (uint32_t *)(even + t->packed), (uint32_t *)transposed};
#pragma omp parallel num_threads((int)s->threads)
    {
        bf16 *tile = (bf16 *)(transposed + t->transposed + omp_get_thread_num() * t->own), *grad = tile + (1 + TILE) * k;
        struct ahead ahead = {.region = 0};
        configure();
        for (int64_t chunk = 0; chunk < t->count; chunk++) {
            int64_t from = chunk * t->lines * t->across, to = least(from + t->lines * t->across, t->end);
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < t->planes * t->input_tiles; i++) {
                int64_t first = from - t->edge * (t->across + 1), plane = i / t->input_tiles;
                pack_input(s, t, first, plane, i % t->input_tiles, tile, &packed);
            }
#pragma omp for schedule(static)
            for (int64_t i = 0; i < t->tiles; i++) pack_output(&s->of, t, from, to, i, grad, &packed);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n / 32 * (k / 32); i++) { /* the larger dimension is the outer loop */
                int64_t a = n > k ? i / (k / 32) : i % (n / 32), b = n > k ? i % (k / 32) : i / (n / 32);
                for (int64_t position = 0; position < t->positions; position++)
                    multiply_at(s, t, &packed, a, b, position, 0, t->tiles, chunk > 0,
                                s->grad_weight + a * 32 * row + position * k + b * 32, row * sizeof(float), 16, 16 * row,
                                &ahead);
            }
        }
        release();
    }
}

/* The weight gradient of a 3 x 3 convolution with padding 1, or of a 1 x 1 convolution. */
void resim_weight_grad(const struct work *s) {
    struct chunks t = chunks_of(s);
    (t.by_weights ? by_weights : by_pixels)(s, &t);
}

/* A chunk of the stem is `lines` lines of one image's output, and the strip of the input that they depend on. */
struct strips {
    int64_t each, lines, tiles;         /* chunks of an image; lines and tiles of the output */
    int64_t high, pitch;                /* lines of a strip, and values in a line */
    int64_t sums, packed, transposed, strip; /* of a thread: floats, pairs, pairs, values */
    int64_t bytes;                      /* of a thread */
};

static struct strips strips_of(const struct work *s) {
    struct strips t;
    int64_t n = s->of.outputs;
    t.lines = up(PIXELS, s->of.width), t.each = up(s->of.height, t.lines);
    t.lines = up(s->of.height, t.each);
    t.tiles = up(t.lines * s->of.width, TILE);
    t.high = (t.lines - 1) * s->stride + s->kernel;
    t.pitch = ((s->of.width - 1) * s->stride + s->kernel) * s->inputs;
    t.sums = n / 32 * s->kernel * SUMS;
    t.packed = s->kernel * t.tiles * TILE / 2 * 32;
    t.transposed = t.tiles * TILE / 2 * n;
    t.strip = up(t.high * t.pitch + 32, 32) * 32; /* the 32 values of a pixel may reach beyond the last line */
    t.bytes = 4 * (t.sums + t.packed + t.transposed) + 2 * (t.strip + 2 * TILE * n);
    return t;
}

int64_t resim_stem_weight_grad_space(const struct work *s) { return s->threads * strips_of(s).bytes; }

/* Copy the strip of a chunk from an image, from line `top` on, with zeros around the image. */
static void cut_strip(const struct work *s, const struct strips *t, int64_t image, int64_t top, bf16 *strip) {
    int64_t k = s->inputs, wide = least(s->input_width, t->pitch / k - s->padding);
    memset(strip, 0, t->strip * sizeof(bf16));
    for (int64_t line = 0; line < t->high; line++) {
        int64_t y = top + line;
        if (y < 0 || y >= s->input_height) continue;
        const bf16 *from = s->input + (image * s->input_height + y) * s->input_width * k;
        memcpy(strip + line * t->pitch + s->padding * k, from, wide * k * sizeof(bf16));
    }
}

/* The weight gradient of a convolution with few input channels: a line of the kernel is 32 columns of a product, of which
 * the last may not belong to the kernel. */
void resim_stem_weight_grad(const struct work *s) {
    struct strips t = strips_of(s);
    const struct output *o = &s->of;
    int64_t n = o->outputs, count = o->images * t.each, pairs = t.tiles * TILE / 2, columns = s->kernel * s->inputs;
#pragma omp parallel num_threads((int)s->threads)
    {
        float *sums = (float *)(s->space + omp_get_thread_num() * t.bytes);
        uint32_t *packed = (uint32_t *)sums + t.sums, *transposed = packed + t.packed;
        bf16 *strip = (bf16 *)(transposed + t.transposed), *grad = strip + t.strip;
        memset(sums, 0, t.sums * sizeof(float));
        configure();
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < count; chunk++) {
            int64_t image = chunk / t.each, first = chunk % t.each * t.lines, lines = least(t.lines, o->height - first);
            int64_t pixels = lines * o->width, from = (image * o->height + first) * o->width;
            cut_strip(s, &t, image, first * s->stride - s->padding, strip);
            for (int64_t pixel = 0; pixel < t.tiles * TILE; pixel += 2) {
                const bf16 *patch[2];
                for (int64_t i = 0; i < 2; i++) { /* beyond the last pixel the gradient is 0, and these values do not matter */
                    int64_t p = least(pixel + i, pixels - 1);
                    patch[i] = strip + p / o->width * s->stride * t.pitch + p % o->width * s->stride * s->inputs;
                }
                for (int64_t line = 0; line < s->kernel; line++)
                    for (int64_t c = 0; c < 32; c += 16)
                        _mm512_store_si512(packed + (line * pairs + pixel / 2) * 32 + c,
                                           pairs_of(patch[0] + line * t.pitch + c, patch[1] + line * t.pitch + c));
            }
            for (int64_t i = 0; i < t.tiles; i++) {
                int64_t there = least(TILE, pixels - i * TILE);
                if (there < 0) there = 0;
                if (there) output_gradient(o, from + i * TILE, there, grad);
                memset(grad + there * n, 0, (TILE - there) * n * sizeof(bf16));
                transpose_tile(grad, transposed + i * 32 * TILE / 2, t.tiles * 32 * TILE / 2, n);
            }
            struct ahead ahead = {.region = 0};
            plan(&ahead, o->grad, from + pixels, pixels, o->images * o->height * o->width, n);
            plan(&ahead, o->x, from + pixels, pixels, o->images * o->height * o->width, n);
            start(&ahead, t.tiles * s->kernel * (n / 32));
            for (int64_t step = 0; step < t.tiles; step += STEPS)
                for (int64_t a = 0; a < n / 32; a++)
                    for (int64_t line = 0; line < s->kernel; line++)
                        multiply((bf16 *)transposed + (a * t.tiles + step) * 32 * TILE,
                                 packed + (line * pairs + step * TILE / 2) * 32, least(STEPS, t.tiles - step), 1,
                                 sums + (a * s->kernel + line) * SUMS, 64, 256, 512, &ahead);
        }
        release();
#pragma omp for schedule(static)
        for (int64_t output = 0; output < n; output++)
            for (int64_t line = 0; line < s->kernel; line++)
                for (int64_t c = 0; c < columns; c++) {
                    int64_t at = sum_at(output / 32 * s->kernel + line, output, c / 16 * 16) + c % 16;
                    float sum = 0;
                    for (int64_t thread = 0; thread < omp_get_num_threads(); thread++)
                        sum += ((float *)(s->space + thread * t.bytes))[at];
                    s->grad_weight[(output * s->kernel + line) * columns + c] = sum;
                }
    }
}
