/* Low-rank adapters (LoRA) beside a model's linear layers: y += (x . down) . up for the rows that have one.

   A row's sums are in one order, along the inputs as those of the weights and then along the rank, whatever other rows and adapters a pass has. */

#pragma once
#include "kernels.h"

enum { ABEAM = 3 }; /* linear layers that read the same input, at most */

typedef struct { /* beside one linear layer, in the model's dtype: down, [rank, inputs], and up, [outputs, rank], its rows so far apart; rank 0: nothing */
    int64_t rank, stride;
    const void *down, *up;
} LowRank;

typedef struct { /* over a model: beside each linear layer, by its number, and the greatest of their ranks */
    int64_t rank;
    const LowRank *beside;
} Adapter;

typedef float Numbers[BLOCK];

typedef struct { /* neighbouring rows of one adapter */
    const Adapter *adapter;
    int first, rows;
} Run;

/* Products of rows with numbers `at` to `at` + GROUP of the rank, to t, [rows, BLOCK]: x is what products with the model's dtype read. */
static void lowered(int dtype, const LowRank *l, long at, size_t inputs, const void *x, int rows, Numbers *t, float *room) {
    int numbers = l->rank - at < GROUP ? l->rank - at : GROUP;
    group(dtype, (const char *)l->down + at * inputs * size_of(dtype), numbers, inputs, x, rows, t, room);
}

/* four numbers, and nothing behind them */
INLINE vf four_as(int dtype, const void *at, size_t i) {
    vf v = every(0);
    v4 numbers;
    if (dtype == FLOAT32) memcpy(&numbers, (const float *)at + i, sizeof numbers);
    else for (int j = 0; j < 4; j++) numbers[j] = wide(((const uint16_t *)at)[i + j]);
    memcpy(&v, &numbers, sizeof numbers);
    return v;
}

/* where a row of t has number k of the rank */
INLINE const float *number(const Numbers *t, int of_rows, int r, unsigned k) { return t[k / BLOCK * of_rows + r] + k % BLOCK; }

/* y[row][output] += t[row] . up[output] of so many outputs (up to BLOCK) from `at` on; t is [blocks of the rank, so many rows, BLOCK], from the first of these on */
INLINE void raised_as(int dtype, const LowRank *l, long at, int outputs, const Numbers *t, int of_rows, int rows, Numbers *y) {
    const int rank = l->rank, vectors = rank / LANES * LANES, fours = rank / 4 * 4;
    for (int o = 0; o < outputs; o += GROUP) {
        const int n = outputs - o < GROUP ? outputs - o : GROUP;
        const char *up[GROUP];
        UNROLL for (int j = 0; j < GROUP; j++) up[j] = (const char *)l->up + (at + o + (j < n ? j : n - 1)) * l->stride * size_of(dtype);
        for (int r = 0; r < rows; r++) {
            vf acc[GROUP];
            v4 before, s;
            int k = 0;
            UNROLL for (int j = 0; j < GROUP; j++) acc[j] = every(0);
            for (; k < vectors; k += LANES) {
                vf left = load(number(t, of_rows, r, k));
                UNROLL for (int j = 0; j < GROUP; j++) acc[j] = fused_each(left, load_as(dtype, up[j], k), acc[j]);
            }
            for (; k < fours; k += 4) {
                vf left = four_as(FLOAT32, number(t, of_rows, r, k), 0);
                UNROLL for (int j = 0; j < GROUP; j++) acc[j] = fused_each(left, four_as(dtype, up[j], k), acc[j]);
            }
            s = sums(acc[0], acc[1], acc[2], acc[3]);
            for (; k < rank; k++) {
                UNROLL for (int j = 0; j < GROUP; j++) s[j] = fused(*number(t, of_rows, r, k), one_as(dtype, up[j], k), s[j]);
            }
            memcpy(&before, y[r] + o, sizeof before); /* there is room behind the last */
            before += s;
            memcpy(y[r] + o, &before, sizeof before);
        }
    }
}
static void raised(int dtype, const LowRank *l, long at, int outputs, const Numbers *t, int of_rows, int rows, Numbers *y) {
    if (dtype == FLOAT32) raised_as(FLOAT32, l, at, outputs, t, of_rows, rows, y);
    else raised_as(BFLOAT16, l, at, outputs, t, of_rows, rows, y);
}
