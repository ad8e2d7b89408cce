/* Low-rank adapters (LoRA) beside a model's linear layers: y += (x . down) . up for the rows that have one.

   A row's sums are in one order, along the inputs as those of the weights and then along the rank, whatever other rows and adapters a pass has. */

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
    size_t bytes = numbers * inputs * size_of(dtype);
    const char *first = (const char *)l->down + at * inputs * size_of(dtype);
    for (size_t i = 0; i < bytes; i += LINE) __builtin_prefetch(first + i);
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

/* y[row][output] += t[row] . up[output] of so many outputs (up to BLOCK) from `at` on; t is [blocks of the rank, so many rows, BLOCK], from the first of these on */
INLINE void raised_as(int dtype, const LowRank *l, long at, int outputs, const Numbers *t, int of_rows, int rows, Numbers *y) {
    const size_t size = size_of(dtype);
    for (int r = 0; r < rows; r++) {
        for (int o = 0; o < outputs; o += GROUP) {
            const char *up[GROUP];
            int n = outputs - o < GROUP ? outputs - o : GROUP;
            int64_t k = 0;
            vf acc[GROUP];
            UNROLL for (int j = 0; j < GROUP; j++) {
                up[j] = (const char *)l->up + (at + o + (j < n ? j : n - 1)) * l->stride * size;
                acc[j] = every(0);
            }
            for (; k + LANES <= l->rank; k += LANES) {
                vf left = load(t[k / BLOCK * of_rows + r] + k % BLOCK);
                UNROLL for (int j = 0; j < GROUP; j++) acc[j] += left * load_as(dtype, up[j], k);
            }
            for (; k + 4 <= l->rank; k += 4) {
                vf left = four_as(FLOAT32, t[k / BLOCK * of_rows + r] + k % BLOCK, 0);
                UNROLL for (int j = 0; j < GROUP; j++) acc[j] += left * four_as(dtype, up[j], k);
            }
            v4 s = sums(acc[0], acc[1], acc[2], acc[3]);
            for (int j = 0; j < n; j++) {
                float rest = s[j];
                for (int64_t i = k; i < l->rank; i++) rest = fused(t[i / BLOCK * of_rows + r][i % BLOCK], one_as(dtype, up[j], i), rest);
                y[r][o + j] += rest;
            }
        }
    }
}
static void raised(int dtype, const LowRank *l, long at, int outputs, const Numbers *t, int of_rows, int rows, Numbers *y) {
    if (dtype == FLOAT32) raised_as(FLOAT32, l, at, outputs, t, of_rows, rows, y);
    else raised_as(BFLOAT16, l, at, outputs, t, of_rows, rows, y);
}
