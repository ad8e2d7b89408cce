/* Low-rank adapters (LoRA) beside a model's linear layers: y += (x . down) . up for the rows that have one.

   A row's sums are in one order, along the inputs as those of the weights and then along the rank, whatever other rows and adapters a pass has. */

typedef struct { /* beside one linear layer, in the model's dtype: down, [rank, inputs], and up, [rank, outputs], its rows so far apart; rank 0: nothing */
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

/* y[row][output] += t[row] . up of so many outputs (up to BLOCK) from `at` on; t is [blocks of the rank, so many rows, BLOCK], from the first of these on */
INLINE void raised_as(int dtype, const LowRank *l, long at, int outputs, const Numbers *t, int of_rows, int rows, Numbers *y) {
    for (int r = 0; r < rows; r++) {
        int o = 0;
        for (; o + LANES <= outputs; o += LANES) {
            vf acc = every(0);
            for (int64_t k = 0; k < l->rank; k++) acc += t[k / BLOCK * of_rows + r][k % BLOCK] * load_as(dtype, l->up, k * l->stride + at + o);
            store(y[r] + o, load(y[r] + o) + acc);
        }
        for (; o < outputs; o++) { /* what no vector holds */
            float s = 0;
            for (int64_t k = 0; k < l->rank; k++) s = fused(t[k / BLOCK * of_rows + r][k % BLOCK], one_as(dtype, l->up, k * l->stride + at + o), s);
            y[r][o] += s;
        }
    }
}
static void raised(int dtype, const LowRank *l, long at, int outputs, const Numbers *t, int of_rows, int rows, Numbers *y) {
    if (dtype == FLOAT32) raised_as(FLOAT32, l, at, outputs, t, of_rows, rows, y);
    else raised_as(BFLOAT16, l, at, outputs, t, of_rows, rows, y);
}
