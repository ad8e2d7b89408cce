/* One pass of a decoder of the Llama kind over rows of new tokens, whole in one call: norms, products, rotation, cache, attention, feed-forward, head.

   Weights are read where the model keeps them, [outputs, inputs] each, and once a pass for all rows. Whatever runs beside it and on however many
   threads, a row's numbers are the same to the bit: each output of each row is summed in one order, by lanes along the inputs and then across the
   lanes, and attention by pieces of PIECE keys, put together in their order. Built for the CPU that it runs on; see compiler.py. */

#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "threads.h"

/* ---- what is computed ---- */

typedef struct { /* one layer; a bias or norm that it has not is NULL */
    const void *attention_norm, *q, *k, *v, *o, *feed_norm, *gate, *up, *down;
    const void *q_bias, *k_bias, *v_bias, *o_bias, *gate_bias, *up_bias, *down_bias, *q_norm, *k_norm;
    int64_t window; /* 0: none */
    double scale;
} Layer;

typedef struct {
    int64_t dtype, hidden, heads, kv_heads, width, inner, vocab;
    double eps;
    const void *embed, *norm, *head;
    const Layer *layers;
} Model;

typedef struct { /* one new token */
    int64_t keys;                                  /* address of its lane's keys in the first layer */
    int64_t layer_stride, part_stride, head_stride; /* numbers from a layer to the next, from keys to values, from a head to the next */
    int64_t place, seen;                           /* where its key goes, and how many keys it sees */
    int64_t position, id, wanted;                  /* which row of the logits is its own, or -1 */
} Row;

typedef struct {
    const Model *model;
    const Row *rows;
    const float *cos, *sin; /* [positions, width] */
    float *logits;
    float *const *states; /* one a layer and one of the last norm, [rows, hidden] or NULL */
    int count, wanted, layers, pieces;
    float *residual, *qkv, *partial; /* [rows, hidden], [rows, (heads + 2 kv_heads) width], [rows, heads, pieces, width + 2] */
    void *attended, *opened;        /* what products read: [rows, heads width], [rows, inner] */
    char *own;                      /* of each thread */
    size_t own_size;
    Counter *counters;
    atomic_long *done; /* pieces of a row's key head */
} Job;

typedef struct { /* what a thread has of its own */
    void *x;                       /* normed rows, as products read them: [rows, hidden] */
    float (*y)[GROUP], (*z)[GROUP]; /* [rows, GROUP] and a vector's room behind */
    float *line, *scores, *room;   /* [hidden]; [ABREAST, PIECE] and the queries behind; [GROUP, inputs of a product] */
} Own;

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

static void turned(float *x, const float *cos, const float *sin, size_t half) { /* sin has its first half's sign turned */
    for (size_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] + b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* a row's heads turned to its position, its keys and values put into the cache */
static void placed(const Job *job, int layer, int r) {
    const Model *m = job->model;
    const Layer *l = m->layers + layer;
    const Row *row = job->rows + r;
    const float *cos = job->cos + row->position * m->width, *sin = job->sin + row->position * m->width;
    float *x = job->qkv + (size_t)r * (m->heads + 2 * m->kv_heads) * m->width;
    void *cache = (void *)row->keys;
    size_t at = layer * row->layer_stride + row->place * m->width, size = size_of(m->dtype);
    for (int64_t h = 0; h < m->heads; h++, x += m->width) {
        if (l->q_norm) normed(m->dtype, x, l->q_norm, m->width, m->eps, x);
        turned(x, cos, sin, m->width / 2);
        for (int64_t i = 0; i < m->width; i++) x[i] *= (float)l->scale;
    }
    for (int64_t h = 0; h < m->kv_heads; h++, x += m->width) {
        if (l->k_norm) normed(m->dtype, x, l->k_norm, m->width, m->eps, x);
        turned(x, cos, sin, m->width / 2);
        put(size, cache, at + h * row->head_stride, x, m->width);
    }
    for (int64_t h = 0; h < m->kv_heads; h++, x += m->width) put(size, cache, at + row->part_stride + h * row->head_stride, x, m->width);
}

/* ---- attention ---- */

INLINE void piece_as(int dtype, const Model *m, const float *q, const void *keys, const void *values, size_t count, float *scores, float *to, size_t to_stride) {
    const size_t heads = m->heads / m->kv_heads, width = m->width;
    void *read = scores + ABREAST * PIECE; /* queries as their products read them */
    for (size_t h = 0; h < heads;) {
        int n = heads - h < ABREAST ? heads - h : ABREAST;
        put(read_size(m->dtype), read, 0, q + h * width, n * width);
        float *out = to + h * to_stride;
        switch (n) {
            case 1: abreast(dtype, 1, read, keys, values, count, width, scores, out, to_stride); break;
            case 2: abreast(dtype, 2, read, keys, values, count, width, scores, out, to_stride); break;
#if ABREAST > 2
            case 3: abreast(dtype, 3, read, keys, values, count, width, scores, out, to_stride); break;
            case 4: abreast(dtype, 4, read, keys, values, count, width, scores, out, to_stride); break;
#endif
        }
        h += n;
    }
}

static size_t first_key(const Layer *l, const Row *row) {
    return l->window && row->place + 1 > l->window ? row->place + 1 - l->window : 0;
}
static int pieces_of(const Layer *l, const Row *row) {
    return (row->seen + PIECE - 1) / PIECE - first_key(l, row) / PIECE;
}

/* piece number p of a row's key head; whoever ends the last puts all together, in their order */
static void attended(const Job *job, int layer, int r, int kv_head, int p, float *scores) {
    const Model *m = job->model;
    const Layer *l = m->layers + layer;
    const Row *row = job->rows + r;
    size_t heads = m->heads / m->kv_heads, width = m->width, stride = job->pieces * (width + 2);
    size_t begin = first_key(l, row), piece = begin / PIECE + p, from = most(begin, piece * PIECE);
    size_t end = (piece + 1) * PIECE < (size_t)row->seen ? (piece + 1) * PIECE : (size_t)row->seen;
    size_t at = layer * row->layer_stride + kv_head * row->head_stride + from * width, size = size_of(m->dtype);
    const char *keys = (const char *)row->keys + at * size, *values = keys + row->part_stride * size;
    const float *q = job->qkv + (size_t)r * (m->heads + 2 * m->kv_heads) * width + kv_head * heads * width;
    float *partial = job->partial + ((size_t)r * m->heads + kv_head * heads) * stride;
    float *to = partial + p * (width + 2);
    if (m->dtype == FLOAT32) piece_as(FLOAT32, m, q, keys, values, end - from, scores, to, stride);
    else piece_as(BFLOAT16, m, q, keys, values, end - from, scores, to, stride);
    int pieces = pieces_of(l, row);
    if (pieces > 1 && atomic_fetch_add(job->done + r * m->kv_heads + kv_head, 1) + 1 < pieces) return;
    atomic_store(job->done + r * m->kv_heads + kv_head, 0);
    for (size_t h = 0; h < heads; h++) {
        float *all = partial + h * stride, largest = all[width], total = 0;
        for (int i = 1; i < pieces; i++) largest = all[i * (width + 2) + width] > largest ? all[i * (width + 2) + width] : largest;
        for (size_t i = 0; i < width; i++) scores[i] = 0;
        for (int i = 0; i < pieces; i++) {
            const float *one = all + i * (width + 2);
            float by = expf(one[width] - largest);
            total += by * one[width + 1];
            for (size_t j = 0; j < width; j++) scores[j] += by * one[j];
        }
        for (size_t j = 0; j < width; j++) scores[j] /= total;
        put(read_size(m->dtype), job->attended, ((size_t)r * m->heads + kv_head * heads + h) * width, scores, width);
    }
}

/* ---- the pass ---- */

/* how many outputs go to a thread at a time */
static long share(long outputs, int threads) {
    long part = outputs / (6L * threads) / GROUP * GROUP;
    return part < 16 ? 16 : part > 256 ? 256 : part;
}

static void queries_keys_values(const Job *job, int layer, const Own *own, long begin, long end) {
    const Model *m = job->model;
    const Layer *l = m->layers + layer;
    const void *weights[] = {l->q, l->k, l->v}, *biases[] = {l->q_bias, l->k_bias, l->v_bias};
    long sizes[] = {m->heads * m->width, m->kv_heads * m->width, m->kv_heads * m->width}, all = sizes[0] + 2 * sizes[1], offset = 0;
    for (int part = 0; part < 3; offset += sizes[part++]) {
        long from = begin > offset ? begin : offset, to = end < offset + sizes[part] ? end : offset + sizes[part];
        for (long o = from; o < to; o += GROUP) {
            int n = to - o < GROUP ? to - o : GROUP;
            product(m->dtype, weights[part], biases[part], o - offset, n, m->hidden, own->x, job->count, own->y, own->room);
            for (int r = 0; r < job->count; r++) memcpy(job->qkv + r * all + o, own->y[r], n * sizeof(float));
        }
    }
}

/* a layer's outputs added to the residual stream */
static void added(const Job *job, const void *weight, const void *bias, long inputs, const void *x, const Own *own, long begin, long end) {
    const Model *m = job->model;
    for (long o = begin; o < end; o += GROUP) {
        int n = end - o < GROUP ? end - o : GROUP;
        product(m->dtype, weight, bias, o, n, inputs, x, job->count, own->y, own->room);
        for (int r = 0; r < job->count; r++)
            for (int i = 0; i < n; i++) job->residual[r * m->hidden + o + i] += own->y[r][i];
    }
}

/* the feed-forward layer's two branches, one of which opens and shuts the other by x / (1 + exp(-x)) */
static void gated(const Job *job, const Layer *l, const Own *own, long begin, long end) {
    const Model *m = job->model;
    for (long o = begin; o < end; o += GROUP) {
        int n = end - o < GROUP ? end - o : GROUP;
        product(m->dtype, l->gate, l->gate_bias, o, n, m->hidden, own->x, job->count, own->y, own->room);
        product(m->dtype, l->up, l->up_bias, o, n, m->hidden, own->x, job->count, own->z, own->room);
        float *g = (float *)own->y, *u = (float *)own->z; /* there is room behind the last */
        for (int i = 0; i < job->count * GROUP; i += LANES) store(g + i, load(g + i) / (1.0f + exponential(-load(g + i))) * load(u + i));
        for (int r = 0; r < job->count; r++) put(read_size(m->dtype), job->opened, r * m->inner + o, own->y[r], n);
    }
}

static void scores_of(const Job *job, const Own *own, long begin, long end) {
    const Model *m = job->model;
    for (long o = begin; o < end; o += GROUP) {
        int n = end - o < GROUP ? end - o : GROUP;
        product(m->dtype, m->head, NULL, o, n, m->hidden, own->x, job->wanted, own->y, own->room);
        for (int r = 0; r < job->wanted; r++) memcpy(job->logits + r * m->vocab + o, own->y[r], n * sizeof(float));
    }
}

/* all rows normed as products read them, to this thread's own memory */
static void normed_rows(const Job *job, const void *weight, const Own *own) {
    const Model *m = job->model;
    for (int r = 0; r < job->count; r++) {
        normed(m->dtype, job->residual + r * m->hidden, weight, m->hidden, m->eps, own->line);
        put(read_size(m->dtype), own->x, r * m->hidden, own->line, m->hidden);
    }
}

/* the hidden states before a layer, or after the last and its norm, where they are asked for */
static void shown(const Job *job, int layer, int thread) {
    const Model *m = job->model;
    if (thread || !job->states || !job->states[layer]) return;
    if (layer < job->layers) memcpy(job->states[layer], job->residual, sizeof(float) * job->count * m->hidden);
    else for (int r = 0; r < job->count; r++) normed(m->dtype, job->residual + r * m->hidden, m->norm, m->hidden, m->eps, job->states[layer] + r * m->hidden);
}

/* lay out at `at` what a thread has of its own; returns how many bytes it takes */
static size_t laid_out(const Model *m, int rows, char *at, Own *own) {
    size_t products = sizeof(float) * (rows * GROUP + LANES), inputs = most(m->hidden, most(m->heads * m->width, m->inner)), taken = 0;
    size_t sizes[] = {rows * m->hidden * read_size(m->dtype), products, products, sizeof(float) * m->hidden, sizeof(float) * ABREAST * (PIECE + m->width), sizeof(float) * GROUP * inputs};
    void *parts[6];
    for (int i = 0; i < 6; i++) parts[i] = at + taken, taken += (sizes[i] + LINE - 1) / LINE * LINE;
    *own = (Own){parts[0], parts[1], parts[2], parts[3], parts[4], parts[5]};
    return taken;
}

static void pass(void *argument, int thread, int threads) {
    const Job *job = argument;
    const Model *m = job->model;
    Own own;
    laid_out(m, job->count, job->own + thread * job->own_size, &own);
    Counter *counter = job->counters;
    long begin, end, qkv = (m->heads + 2 * m->kv_heads) * m->width;

    while (next_share(counter, 1, job->count, &begin, &end))
        for (int64_t i = 0; i < m->hidden; i++) job->residual[begin * m->hidden + i] = one_as(m->dtype, m->embed, job->rows[begin].id * m->hidden + i);
    counter++;
    barrier(threads);
    for (int layer = 0; layer < job->layers; layer++) {
        const Layer *l = m->layers + layer;
        shown(job, layer, thread);
        normed_rows(job, l->attention_norm, &own);
        while (next_share(counter, share(qkv, threads), qkv, &begin, &end)) queries_keys_values(job, layer, &own, begin, end);
        counter++;
        barrier(threads);
        while (next_share(counter, 1, job->count, &begin, &end)) placed(job, layer, begin);
        counter++;
        barrier(threads);
        long all = (long)job->count * m->kv_heads * job->pieces;
        while (next_share(counter, 1, all, &begin, &end)) {
            int p = begin % job->pieces, kv_head = begin / job->pieces % m->kv_heads, r = begin / job->pieces / m->kv_heads;
            if (p < pieces_of(l, job->rows + r)) attended(job, layer, r, kv_head, p, own.scores);
        }
        counter++;
        barrier(threads);
        while (next_share(counter, share(m->hidden, threads), m->hidden, &begin, &end))
            added(job, l->o, l->o_bias, m->heads * m->width, job->attended, &own, begin, end);
        counter++;
        barrier(threads);
        normed_rows(job, l->feed_norm, &own);
        while (next_share(counter, share(m->inner, threads), m->inner, &begin, &end)) gated(job, l, &own, begin, end);
        counter++;
        barrier(threads);
        while (next_share(counter, share(m->hidden, threads), m->hidden, &begin, &end))
            added(job, l->down, l->down_bias, m->inner, job->opened, &own, begin, end);
        counter++;
        barrier(threads);
    }
    shown(job, job->layers, thread);
    if (!job->wanted) return;
    for (int r = 0; r < job->count; r++)
        if (job->rows[r].wanted >= 0) {
            normed(m->dtype, job->residual + r * m->hidden, m->norm, m->hidden, m->eps, own.line);
            put(read_size(m->dtype), own.x, job->rows[r].wanted * m->hidden, own.line, m->hidden);
        }
    while (next_share(counter, share(m->vocab, threads), m->vocab, &begin, &end)) scores_of(job, &own, begin, end);
}

/* Take so many rows through the first `layers` layers: logits, [rows wanted, vocab], and the hidden states of the layers that have a place in
   `states`. Returns 0, or 1 where there is no memory. */
int seodang_step(const Model *m, int layers, const Row *rows, int count, const float *cos, const float *sin, float *logits, float *const *states, int threads) {
    static char *memory;
    static size_t had;
    int counters = 2 + 6 * layers, failed = 0;
    pthread_mutex_lock(&pool.calls);
    threads = ready(threads < 1 ? 1 : threads);
    Job job = {.model = m, .rows = rows, .cos = cos, .sin = sin, .logits = logits, .states = states, .count = count, .layers = layers, .pieces = 1};
    for (int r = 0; r < count; r++) {
        job.wanted += rows[r].wanted >= 0;
        for (int layer = 0; layer < layers; layer++) {
            int pieces = pieces_of(m->layers + layer, rows + r);
            if (pieces > job.pieces) job.pieces = pieces;
        }
    }
    Own own;
    job.own_size = laid_out(m, count, NULL, &own);
    size_t heads = m->heads * m->width, sizes[] = {
        sizeof(float) * count * m->hidden, sizeof(float) * count * (m->heads + 2 * m->kv_heads) * m->width, sizeof(float) * count * m->heads * job.pieces * (m->width + 2),
        count * heads * read_size(m->dtype), count * m->inner * read_size(m->dtype), sizeof(Counter) * counters, sizeof(atomic_long) * count * m->kv_heads, threads * job.own_size,
    }, wanted = LINE;
    void *parts[8];
    for (int i = 0; i < 8; i++) wanted += sizes[i] = (sizes[i] + LINE - 1) / LINE * LINE;
    if (wanted > had) {
        char *old = memory;
        memory = NULL, had = 0; /* before it goes: a child that is forked in this moment has no claim to it */
        free(old);
        memory = malloc(wanted);
        had = memory ? wanted : 0;
    }
    if (memory) {
        char *at = (char *)(((uintptr_t)memory + LINE - 1) / LINE * LINE);
        for (int i = 0; i < 8; at += sizes[i++]) parts[i] = at;
        job.residual = parts[0], job.qkv = parts[1], job.partial = parts[2], job.attended = parts[3], job.opened = parts[4];
        job.counters = parts[5], job.done = parts[6], job.own = parts[7];
        memset(parts[5], 0, sizes[5] + sizes[6]);
        together(pass, &job, threads);
    } else {
        failed = 1;
    }
    pthread_mutex_unlock(&pool.calls);
    return failed;
}

/* ---- beside the pass ---- */

#include "scores.h"

/* What this was built for. */
const char *seodang_built_for(void) {
#if defined(__AVX512BF16__)
    return "AVX512-BF16";
#elif defined(__AVX512F__)
    return "AVX512";
#elif defined(__AVX2__)
    return "AVX2";
#elif defined(__ARM_NEON)
    return "NEON";
#else
    return "plain C";
#endif
}
