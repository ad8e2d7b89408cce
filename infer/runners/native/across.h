/* Products with weights that lie [inputs, outputs], as GPT-2 keeps them: outputs along the lanes, one input after the other. */

#pragma once
#include "kernels.h"

enum { PART = 32, NEXT = 24 }; /* inputs that are summed by themselves, for rounding's sake; how many ahead memory is asked for */

/* y[row][output] of BLOCK outputs and so many rows; `stride` numbers lie from an input's weights to the next one's */
INLINE void across_tile(int dtype, int rows, const void *w, size_t stride, size_t inputs, const void *x, float (*y)[BLOCK]) {
    enum { VECTORS = BLOCK / LANES };
    const int of_x = ROUNDED ? dtype : FLOAT32;
    vf all[TILE][VECTORS], acc[TILE][VECTORS];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < VECTORS; v++) all[r][v] = every(0);
    }
    for (size_t i = 0; i < inputs;) {
        size_t end = i + PART < inputs ? i + PART : inputs;
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < VECTORS; v++) acc[r][v] = every(0);
        }
        for (; i < end; i++) {
            vf left[VECTORS];
            __builtin_prefetch((const char *)w + (i + NEXT) * stride * size_of(dtype));
            UNROLL for (int v = 0; v < VECTORS; v++) left[v] = load_as(dtype, w, i * stride + v * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                vf right = every(one_as(of_x, x, r * inputs + i));
                UNROLL for (int v = 0; v < VECTORS; v++) acc[r][v] += left[v] * right;
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int v = 0; v < VECTORS; v++) all[r][v] += acc[r][v];
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < VECTORS; v++) store(y[r] + v * LANES, all[r][v]);
    }
}

INLINE void across_as(int dtype, const void *w, size_t stride, int outputs, size_t inputs, const void *x, int rows, float (*y)[BLOCK]) {
    if (outputs < BLOCK) { /* what no vector holds */
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < outputs; o++) {
                float all = 0;
                for (size_t i = 0; i < inputs; i++) all = fused(one_as(dtype, w, i * stride + o), one_as(ROUNDED ? dtype : FLOAT32, x, r * inputs + i), all);
                y[r][o] = all;
            }
        return;
    }
    for (int n; rows; rows -= n, y += n, x = (const char *)x + n * inputs * read_size(dtype)) {
        n = rows < TILE ? rows : TILE;
        switch (n) {
            case 1: across_tile(dtype, 1, w, stride, inputs, x, y); break;
            case 2: across_tile(dtype, 2, w, stride, inputs, x, y); break;
            case 3: across_tile(dtype, 3, w, stride, inputs, x, y); break;
#if TILE == 6
            case 4: across_tile(dtype, 4, w, stride, inputs, x, y); break;
            case 5: across_tile(dtype, 5, w, stride, inputs, x, y); break;
            case 6: across_tile(dtype, 6, w, stride, inputs, x, y); break;
#endif
        }
    }
}

/* The products of so many outputs (up to BLOCK), whose weights for the first input lie at `w`, with all rows: y[row][output]. */
static void across(int dtype, const void *w, size_t stride, int outputs, size_t inputs, const void *x, int rows, float (*y)[BLOCK]) {
    if (dtype == FLOAT32) across_as(FLOAT32, w, stride, outputs, inputs, x, rows, y);
    else across_as(BFLOAT16, w, stride, outputs, inputs, x, rows, y);
}
