/* BatchNorm in training, fused with an addition and a ReLU, for bfloat16 in channels-last memory.
 *
 * x is (rows, channels), one row for each pixel. Sums over BLOCK rows are computed in float32, then added in double in the
 * order of the blocks, so that the result does not depend on the number of threads. Elementwise outputs may overwrite
 * their inputs.
 *
 * coefficients: (4, channels) float32: scale, shift, mean, 1 / standard deviation. x_hat = (x - mean) * inverse, and the
 * normalised value is x * scale + shift. Source: Ioffe and Szegedy, arXiv 1502.03167.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 128
#define STEM 4096 /* largest number of channels of the pooling kernels */

typedef uint16_t bf16;

static inline float wide(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline bf16 narrow(float x) { /* round to nearest, ties to even; a NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bf16)((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

static inline float relu(float x) { return x < 0 ? 0 : x; } /* a NaN stays NaN */

static int64_t count_blocks(int64_t rows) { return (rows + BLOCK - 1) / BLOCK; }

static int64_t end_of(int64_t block, int64_t rows) {
    int64_t end = (block + 1) * BLOCK;
    return end < rows ? end : rows;
}

/* Write the sums of x - origin and of its square over each block of rows to partial, (blocks, 2, channels). The origin is
 * an output: the first row. Subtracting a value of x avoids cancellation if the mean is large. */
void resim_norm_sums(const bf16 *x, float *origin, float *partial, int64_t rows, int64_t channels, int threads) {
    int64_t blocks = count_blocks(rows);
    for (int64_t c = 0; c < channels; c++) origin[c] = wide(x[c]);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        float *sum = partial + block * 2 * channels, *square = sum + channels;
        memset(sum, 0, 2 * channels * sizeof(float));
        for (int64_t row = block * BLOCK; row < end_of(block, rows); row++) {
            const bf16 *line = x + row * channels;
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) {
                float value = wide(line[c]) - origin[c];
                sum[c] += value;
                square[c] += value * value;
            }
        }
    }
}

/* The sum of the partial sums of all blocks, (2, channels), in double. */
static double *add_up(const float *partial, int64_t blocks, int64_t channels) {
    double *sums = calloc(2 * channels, sizeof(double));
    for (int64_t block = 0; block < blocks; block++)
#pragma omp simd
        for (int64_t c = 0; c < 2 * channels; c++) sums[c] += partial[block * 2 * channels + c];
    return sums;
}

/* Compute the coefficients from the partial sums; add the mean, the unbiased variance and 1 to pending, (3, channels). */
void resim_norm_coefficients(const float *partial, const float *origin, const float *weight, const float *bias,
                             double epsilon, float *coefficients, float *pending, int64_t blocks, int64_t rows,
                             int64_t channels) {
    double *sums = add_up(partial, blocks, channels);
    for (int64_t c = 0; c < channels; c++) {
        double offset = sums[c] / rows, variance = sums[channels + c] / rows - offset * offset;
        variance = variance < 0 ? 0 : variance;
        double mean = offset + origin[c], inverse = 1 / sqrt(variance + epsilon);
        coefficients[c] = weight[c] * inverse;
        coefficients[channels + c] = bias[c] - mean * weight[c] * inverse;
        coefficients[2 * channels + c] = mean;
        coefficients[3 * channels + c] = inverse;
        pending[c] += mean;
        pending[channels + c] += variance * rows / (rows > 1 ? rows - 1 : 1);
        pending[2 * channels + c] += 1;
    }
    free(sums);
}

/* y = relu(x * scale + shift + addend): the addend, (rows, channels), is normalised if it has coefficients; or NULL. */
void resim_norm_apply(const bf16 *x, const float *coefficients, const bf16 *addend, const float *addend_coefficients,
                      bf16 *y, int64_t rows, int64_t channels, int threads) {
    const float *scale = coefficients, *shift = coefficients + channels;
    const float *addend_scale = addend_coefficients, *addend_shift = addend_coefficients ? addend_coefficients + channels : 0;
    int64_t blocks = count_blocks(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t row = block * BLOCK; row < end_of(block, rows); row++) {
            const bf16 *line = x + row * channels, *addend_line = addend ? addend + row * channels : 0;
            bf16 *out = y + row * channels;
            if (addend_coefficients) {
#pragma omp simd
                for (int64_t c = 0; c < channels; c++)
                    out[c] = narrow(relu(wide(line[c]) * scale[c] + shift[c] + wide(addend_line[c]) * addend_scale[c] +
                                         addend_shift[c]));
            } else if (addend) {
#pragma omp simd
                for (int64_t c = 0; c < channels; c++)
                    out[c] = narrow(relu(wide(line[c]) * scale[c] + shift[c] + wide(addend_line[c])));
            } else {
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) out[c] = narrow(relu(wide(line[c]) * scale[c] + shift[c]));
            }
        }
}

/* Write the sums of dz and of dz * (x - mean) over each block of rows to partial, (blocks, 2, channels); dz is grad where
 * the ReLU's output is above 0, else 0. y: the ReLU's output; NULL: recomputed from x. */
void resim_norm_backward_sums(const bf16 *grad, const bf16 *y, const bf16 *x, const float *coefficients, float *partial,
                              int64_t rows, int64_t channels, int threads) {
    const float *scale = coefficients, *shift = coefficients + channels, *mean = shift + channels;
    int64_t blocks = count_blocks(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        float *sum = partial + block * 2 * channels, *product = sum + channels;
        memset(sum, 0, 2 * channels * sizeof(float));
        for (int64_t row = block * BLOCK; row < end_of(block, rows); row++) {
            int64_t at = row * channels;
            if (y) {
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) {
                    float dz = wide(y[at + c]) > 0 ? wide(grad[at + c]) : 0;
                    sum[c] += dz;
                    product[c] += dz * (wide(x[at + c]) - mean[c]);
                }
            } else {
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) {
                    float value = wide(x[at + c]);
                    float dz = value * scale[c] + shift[c] > 0 ? wide(grad[at + c]) : 0;
                    sum[c] += dz;
                    product[c] += dz * (value - mean[c]);
                }
            }
        }
    }
}

/* Compute from the partial sums the gradients of weight and bias, (2, channels), and the slopes, (3, channels): the
 * gradient of x is slopes[0] * dz + slopes[1] * x + slopes[2]. */
void resim_norm_slopes(const float *partial, const float *coefficients, float *gradients, float *slopes, int64_t blocks,
                       int64_t rows, int64_t channels) {
    const float *scale = coefficients, *mean = coefficients + 2 * channels, *inverse = mean + channels;
    double *sums = add_up(partial, blocks, channels);
    for (int64_t c = 0; c < channels; c++) {
        double sum = sums[c], product = sums[channels + c] * inverse[c]; /* sums of dz and of dz * x_hat */
        gradients[c] = product;
        gradients[channels + c] = sum;
        double of_x = scale[c] * inverse[c] * product / rows;
        slopes[c] = scale[c];
        slopes[channels + c] = -of_x;
        slopes[2 * channels + c] = of_x * mean[c] - scale[c] * sum / rows;
    }
    free(sums);
}

/* Write the gradient of x to dx, argmax may be grad or x, and that of the sum before the ReLU to dz unless it is NULL. */
void resim_norm_backward(const bf16 *grad, const bf16 *y, const bf16 *x, const float *coefficients, const float *slopes,
                         bf16 *dx, bf16 *dz, int64_t rows, int64_t channels, int threads) {
    const float *scale = coefficients, *shift = coefficients + channels;
    const float *of_dz = slopes, *of_x = slopes + channels, *offset = of_x + channels;
    int64_t blocks = count_blocks(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t row = block * BLOCK; row < end_of(block, rows); row++) {
            int64_t at = row * channels;
            if (y && dz) {
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) {
                    float dz_value = wide(y[at + c]) > 0 ? wide(grad[at + c]) : 0, value = wide(x[at + c]);
                    dz[at + c] = narrow(dz_value);
                    dx[at + c] = narrow(of_dz[c] * dz_value + of_x[c] * value + offset[c]);
                }
            } else if (y) {
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) {
                    float dz_value = wide(y[at + c]) > 0 ? wide(grad[at + c]) : 0;
                    dx[at + c] = narrow(of_dz[c] * dz_value + of_x[c] * wide(x[at + c]) + offset[c]);
                }
            } else {
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) {
                    float value = wide(x[at + c]);
                    float dz_value = value * scale[c] + shift[c] > 0 ? wide(grad[at + c]) : 0;
                    dx[at + c] = narrow(of_dz[c] * dz_value + of_x[c] * value + offset[c]);
                }
            }
        }
}

/* ReLU of the normalised x, (images, height, width, channels), and max pooling over 3 x 3 at stride 2: y, of half the
 * height and width, and in argmax the index of the largest of the 9 values, row by row (9: none is above 0). */
void resim_norm_pool(const bf16 *x, const float *coefficients, bf16 *y, uint8_t *argmax, int64_t images, int64_t height,
                     int64_t width, int64_t channels, int threads) {
    const float *scale = coefficients, *shift = coefficients + channels;
    int64_t high = (height + 1) / 2, wide_ = (width + 1) / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t line = 0; line < images * high; line++) {
        int64_t image = line / high, top = line % high * 2 - 1;
        for (int64_t column = 0; column < wide_; column++) {
            float best[STEM];
            uint8_t *index = argmax + (line * wide_ + column) * channels;
            bf16 *out = y + (line * wide_ + column) * channels;
            for (int64_t c = 0; c < channels; c++) best[c] = 0, index[c] = 9;
            for (int64_t k = 0; k < 9; k++) {
                int64_t row = top + k / 3, at = column * 2 - 1 + k % 3;
                if (row < 0 || row >= height || at < 0 || at >= width) continue;
                const bf16 *from = x + ((image * height + row) * width + at) * channels;
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) {
                    float value = wide(from[c]) * scale[c] + shift[c];
                    int better = value > best[c] || value != value; /* a NaN wins */
                    best[c] = better ? value : best[c];
                    index[c] = better ? (uint8_t)k : index[c];
                }
            }
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) out[c] = narrow(best[c]);
        }
    }
}

/* Write the gradient of the ReLU's input to dz, from grad, that of the pooled y; and the sums of dz and of
 * dz * (x - mean) over each line of pixels to partial, (images * height, 2, channels). */
void resim_norm_pool_backward(const bf16 *grad, const uint8_t *argmax, const bf16 *x, const float *coefficients, bf16 *dz,
                              float *partial, int64_t images, int64_t height, int64_t width, int64_t channels,
                              int threads) {
    const float *mean = coefficients + 2 * channels;
    int64_t high = (height + 1) / 2, wide_ = (width + 1) / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t line = 0; line < images * height; line++) {
        int64_t image = line / height, row = line % height;
        float *sum = partial + line * 2 * channels, *product = sum + channels;
        memset(sum, 0, 2 * channels * sizeof(float));
        for (int64_t column = 0; column < width; column++) {
            float routed[STEM];
            memset(routed, 0, channels * sizeof(float));
            for (int64_t of_row = row / 2; of_row <= (row + 1) / 2 && of_row < high; of_row++)
                for (int64_t of_column = column / 2; of_column <= (column + 1) / 2 && of_column < wide_; of_column++) {
                    uint8_t k = (row - (of_row * 2 - 1)) * 3 + column - (of_column * 2 - 1);
                    int64_t at = ((image * high + of_row) * wide_ + of_column) * channels;
#pragma omp simd
                    for (int64_t c = 0; c < channels; c++) routed[c] += argmax[at + c] == k ? wide(grad[at + c]) : 0;
                }
            int64_t at = (line * width + column) * channels;
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) {
                bf16 rounded = narrow(routed[c]);
                dz[at + c] = rounded;
                sum[c] += wide(rounded);
                product[c] += wide(rounded) * (wide(x[at + c]) - mean[c]);
            }
        }
    }
}
