/* The product of one linear layer by itself, for passes that torch computes. */

enum { AT_ONCE = 64 }; /* rows whose outputs are kept until a pack's are copied to their places */

typedef struct {
    const Linear *linear;
    const float *x; /* [rows, inputs] */
    float *y;       /* [rows, outputs] */
    char *x8;
    long rows;
    Counter read, written;
} Product;

static void multiplied(void *argument, int thread, int threads) {
    Product *p = argument;
    const Linear *linear = p->linear;
    size_t inputs = linear->inputs, stride = row8_size(inputs);
    float y[AT_ONCE][BLOCK];
    long begin, end;
    (void)thread;
    while (next_share(&p->read, 1, p->rows, &begin, &end)) eight_bits(p->x + begin * inputs, inputs, p->x8 + begin * stride);
    barrier(threads);
    while (next_share(&p->written, BLOCK, in_blocks(linear), &begin, &end)) {
        size_t outputs = linear->outputs - begin < BLOCK ? linear->outputs - begin : BLOCK;
        for (long r = 0; r < p->rows; r += AT_ONCE) {
            int rows = p->rows - r < AT_ONCE ? p->rows - r : AT_ONCE;
            block8(linear->dtype, linear->weight, begin / BLOCK, inputs, p->x8 + r * stride, rows, y);
            for (int i = 0; i < rows; i++) memcpy(p->y + (r + i) * linear->outputs + begin, y[i], outputs * sizeof(float));
        }
    }
}

/* The product of a linear layer in few bits, without its bias: float32 [rows, inputs] to [rows, outputs]. Returns 0, or 1 where there is no memory. */
int seodang_product(const Linear *linear, const float *x, int rows, float *y, int threads) {
    char *memory = malloc(rows * row8_size(linear->inputs) + LINE);
    if (!memory) return 1;
    Product product = {.linear = linear, .x = x, .y = y, .rows = rows, .x8 = (char *)(((uintptr_t)memory + LINE - 1) / LINE * LINE)};
    pthread_mutex_lock(&pool.calls);
    together(multiplied, &product, ready(threads < 1 ? 1 : threads));
    pthread_mutex_unlock(&pool.calls);
    free(memory);
    return 0;
}
