/* Products with weights that lie [inputs, outputs], as GPT-2 keeps them: outputs along the lanes, four inputs' weights at a time. */

#pragma once
#include "kernels.h"

enum { WIDE = 256, TOGETHER = 8 }; /* outputs at most whose weights are read as they lie, which memory gives sooner; rows whose inputs are widened at once */

/* y[row][output] plus what so many inputs (4 or 1) give, from number `i` on, of all rows */
INLINE void across_inputs(int dtype, int taken, const char *w, size_t stride, int outputs, size_t inputs, size_t i, const char *x, int rows, float (*y)[WIDE]) {
    const size_t step = stride * size_of(dtype);
    const int of_x = ROUNDED ? dtype : FLOAT32;
    w += i * step;
    for (int first = 0; first < rows; first += TOGETHER) {
        int n = rows - first < TOGETHER ? rows - first : TOGETHER, o = 0;
        float right[TOGETHER][4];
        for (int r = 0; r < n; r++)
            for (int k = 0; k < taken; k++) right[r][k] = one_as(of_x, x, (first + r) * inputs + i + k);
        for (; o + LANES <= outputs; o += LANES) {
            vf left[4];
            UNROLL for (int k = 0; k < taken; k++) __builtin_prefetch(w + (2 * taken + k) * step + o * size_of(dtype), 0, 2);
            UNROLL for (int k = 0; k < taken; k++) left[k] = load_as(dtype, w + k * step, o);
            for (int r = 0; r < n; r++) {
                vf all = left[0] * right[r][0];
                UNROLL for (int k = 1; k < taken; k++) all = fused_each(left[k], every(right[r][k]), all);
                store(y[first + r] + o, load(y[first + r] + o) + all);
            }
        }
        for (; o < outputs; o++) /* what no vector holds */
            for (int r = 0; r < n; r++)
                for (int k = 0; k < taken; k++) y[first + r][o] = fused(one_as(dtype, w + k * step, o), right[r][k], y[first + r][o]);
    }
}

INLINE void across_as(int dtype, const void *w, size_t stride, int outputs, size_t inputs, const void *x, int rows, float (*y)[WIDE]) {
    size_t i = 0;
    memset(y, 0, sizeof(float) * rows * WIDE);
    for (; i + 4 <= inputs; i += 4) across_inputs(dtype, 4, w, stride, outputs, inputs, i, x, rows, y);
    for (; i < inputs; i++) across_inputs(dtype, 1, w, stride, outputs, inputs, i, x, rows, y);
}

/* The products of so many outputs (up to WIDE), whose weights for the first input lie at `w`, with all rows: y[row][output]. */
static void across(int dtype, const void *w, size_t stride, int outputs, size_t inputs, const void *x, int rows, float (*y)[WIDE]) {
    if (dtype == FLOAT32) across_as(FLOAT32, w, stride, outputs, inputs, x, rows, y);
    else across_as(BFLOAT16, w, stride, outputs, inputs, x, rows, y);
}
