/* One pass of a decoder of the Llama kind and its kin over rows of new tokens, whole in one call: norms, products, rotation, cache, attention, feed-forward, head.

   Weights are read where the model keeps them, and once a pass for all rows. Whatever runs beside it and on however many
   threads, a row's numbers are the same to the bit: each output of each row is summed in one order, by lanes along the inputs and then across the
   lanes (or by fours of inputs, across.h), and attention by pieces of PIECE keys, put together in their order. Built for the CPU that it runs on; see compiler.py. */

#if defined(_WIN32) && defined(__AVX__) && defined(__GNUC__) && !defined(__clang__)
#error "gcc keeps vectors where Windows does not align the stack for them (its bug 54412), of which a process dies: use clang or zig"
#endif
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "prompt_attention.h"

static void turned(float *x, const float *cos, const float *sin, size_t half) { /* sin has its first half's sign turned */
    for (size_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] + b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* a head's key or value put into the cache, `at` so many of its numbers */
static void cached(const Model *m, const Row *row, size_t at, const float *x) {
    if (m->cache == INT8) put8((char *)row->keys + at, x, m->width);
    else put(size_of(m->cache), (void *)row->keys, at, x, m->width);
}

/* a row's heads turned to its position, its keys and values put into the cache */
static void placed(const Job *job, int layer, int r) {
    const Model *m = job->model;
    const Layer *l = m->layers + layer;
    const Row *row = job->rows + r;
    const float *cos = job->cos + row->position * l->turned, *sin = job->sin + row->position * l->turned;
    float *x = job->qkv + (size_t)r * (m->heads + 2 * m->kv_heads) * m->width;
    size_t at = layer * row->layer_stride + row->place * line_of(m);
    normed_in_place(m->dtype, &l->q_norm, x, m->heads * m->width);
    normed_in_place(m->dtype, &l->k_norm, x + m->heads * m->width, m->kv_heads * m->width);
    for (int64_t h = 0; h < m->heads; h++, x += m->width) {
        turned(x, cos, sin, l->turned / 2);
        for (int64_t i = 0; i < m->width; i++) x[i] *= (float)l->scale;
        if (m->cache == INT8) spread(x, m->width);
    }
    for (int64_t h = 0; h < m->kv_heads; h++, x += m->width) {
        turned(x, cos, sin, l->turned / 2);
        if (m->cache == INT8) spread(x, m->width);
        cached(m, row, at + h * row->head_stride, x);
    }
    for (int64_t h = 0; h < m->kv_heads; h++, x += m->width) cached(m, row, at + row->part_stride + h * row->head_stride, x);
}

/* ---- the pass ---- */

/* the outputs of a linear layer in whole blocks, which are what threads share */
static long in_blocks(const Linear *linear) { return (linear->outputs + BLOCK - 1) / BLOCK * BLOCK; }

/* A block's outputs where weights lie [inputs, outputs]: they are computed with those behind them in the thread's share. */
static void from_panel(const Linear *linear, long at, int outputs, const void *x, int first, int rows, float (*y)[BLOCK], Panel *panel) {
    if (panel->linear != linear || at < panel->at || at >= panel->end || panel->first != first) {
        panel->linear = linear, panel->at = at, panel->first = first, panel->end = linear->outputs - at < panel->most ? linear->outputs : at + panel->most;
        across(linear->dtype, (const char *)linear->weight + at * size_of(linear->dtype), linear->stride, panel->end - at, linear->inputs, x, rows, panel->y);
    }
    for (int r = 0; r < rows; r++) memcpy(y[r], panel->y[r] + at - panel->at, outputs * sizeof(float));
}

/* rows that a linear layer is going to read, in 8 bits where it reads them so */
static void readied(const Linear *linear, const void *x, long begin, long end, const Own *own) {
    if (linear->dtype < INT8) return;
    for (long r = begin; r < end; r++) eight_bits((const float *)x + r * linear->inputs, linear->inputs, own->x8 + r * row8_size(linear->inputs));
}

#include "adapters.h"

/* A linear layer's next outputs, from `at` on, of so many rows from the first of these on: y[row][output]; returns how many there are, up to BLOCK. */
static int product(const Job *job, const Linear *linear, long at, const void *x, int first, int rows, float (*y)[BLOCK], const Own *own) {
    int outputs = linear->outputs - at < BLOCK ? linear->outputs - at : BLOCK;
    const char *from = (const char *)x + first * linear->inputs * read_size(linear->dtype);
    if (linear->dtype >= INT8) block8(linear->dtype, linear->weight, at / BLOCK, linear->inputs, own->x8 + first * row8_size(linear->inputs), rows, y);
    else if (linear->stride) from_panel(linear, at, outputs, from, first, rows, y, own->panel);
    else block(linear->dtype, linear->weight, at, outputs, linear->inputs, from, rows, y, own->room);
    if (linear->bias)
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < outputs; o++) y[r][o] += one_as(job->model->dtype, linear->bias, at + o);
    raised_all(job, linear, at, outputs, first, rows, y);
    return outputs;
}

static void queries_keys_values(const Job *job, int layer, const Own *own, Part part) {
    const Layer *l = job->model->layers + layer;
    const Linear *linears[] = {&l->q, &l->k, &l->v};
    long width = l->q.outputs + l->k.outputs + l->v.outputs, before = 0, offset = 0; /* in the rows of qkv, and in blocks */
    for (int i = 0; i < 3; i++) {
        const Linear *linear = linears[i];
        long from = part.begin > offset ? part.begin - offset : 0, to = part.end - offset < in_blocks(linear) ? part.end - offset : in_blocks(linear);
        for (long o = from; o < to; o += BLOCK) {
            int n = product(job, linear, o, own->x, part.first, part.rows, own->y, own);
            for (int r = 0; r < part.rows; r++) memcpy(job->qkv + (part.first + r) * width + before + o, own->y[r], n * sizeof(float));
        }
        before += linear->outputs;
        offset += in_blocks(linear);
    }
}

/* a layer's outputs added to the residual stream, or where a norm stands behind it, laid aside */
static void added(const Job *job, const Linear *linear, const Norm *behind, const void *x, const Own *own, Part part) {
    for (long o = part.begin; o < part.end; o += BLOCK) {
        int n = product(job, linear, o, x, part.first, part.rows, own->y, own);
        for (int r = 0; r < part.rows; r++) {
            float *to = (behind->weight ? job->aside : job->residual) + (part.first + r) * linear->outputs + o;
            for (int i = 0; i < n; i++) to[i] = behind->weight ? own->y[r][i] : to[i] + own->y[r][i];
        }
    }
}

/* what was laid aside of a row, normed and added */
static void settled(const Job *job, const Norm *norm, int r, const Own *own) {
    size_t hidden = job->model->hidden;
    normed(job->model->dtype, norm, job->aside + r * hidden, own->line);
    for (size_t i = 0; i < hidden; i++) job->residual[r * hidden + i] += own->line[i];
}

/* Of so many rows, what the feed-forward layer opens of its outputs from `o` on, to own->y: the gate's or where there is none its own are activated. */
static int opened(const Job *job, const Linear *gate, const Linear *up, long o, const void *x, int first, int rows, const Own *own) {
    int n = product(job, up, o, x, first, rows, gate->weight ? own->z : own->y, own);
    if (gate->weight) product(job, gate, o, x, first, rows, own->y, own);
    activate(job->model->activation, (float *)own->y, gate->weight ? (float *)own->z : NULL, rows * BLOCK);
    return n;
}

static void all_opened(const Job *job, const Layer *l, const Own *own, Part part) {
    for (long o = part.begin; o < part.end; o += BLOCK) {
        int n = opened(job, &l->gate, &l->up, o, own->x, part.first, part.rows, own);
        for (int r = 0; r < part.rows; r++) put(read_size(l->down.dtype), job->opened, (part.first + r) * l->down.inputs + o, own->y[r], n);
    }
}

static void scores_of(const Job *job, const Own *own, Part part) {
    const Linear *head = &job->model->head;
    for (long o = part.begin; o < part.end; o += BLOCK) {
        int n = product(job, head, o, own->x, part.first, part.rows, own->y, own);
        if (job->model->softcap) bound_softly((float *)own->y, job->model->softcap, part.rows * BLOCK);
        for (int r = 0; r < part.rows; r++) memcpy(job->logits + (part.first + r) * head->outputs + o, own->y[r], n * sizeof(float));
    }
}

/* a row, normed where there is a norm, as products of this dtype read it, to this thread's own memory */
static void normed_row(const Job *job, int r, const Norm *norm, int dtype, int to, const Own *own) {
    const Model *m = job->model;
    const float *x = job->residual + r * m->hidden;
    if (norm->weight) normed(m->dtype, norm, x, own->line);
    put(read_size(dtype), own->x, to * m->hidden, norm->weight ? own->line : x, m->hidden);
}

static void normed_rows(const Job *job, const Norm *norm, const Linear *linear, long begin, long end, const Own *own) {
    for (long r = begin; r < end; r++) normed_row(job, r, norm, linear->dtype, r, own);
    readied(linear, own->x, begin, end, own);
}

/* the same of the rows whose logits are wanted, as the head reads them */
static void normed_wanted(const Job *job, long begin, long end, const Own *own) {
    const Model *m = job->model;
    for (long r = begin; r < end; r++) {
        long to = job->rows[r].wanted;
        if (to < 0) continue;
        normed_row(job, r, &m->norm, m->head.dtype, to, own);
        readied(&m->head, own->x, to, to + 1, own);
    }
}

/* the hidden states before a layer, or after the last and its norm, where they are asked for */
static void shown(const Job *job, int layer, int thread) {
    const Model *m = job->model;
    if (thread || !job->states || !job->states[layer]) return;
    if (layer < job->layers) memcpy(job->states[layer], job->residual, sizeof(float) * job->count * m->hidden);
    else for (int r = 0; r < job->count; r++) normed(m->dtype, &m->norm, job->residual + r * m->hidden, job->states[layer] + r * m->hidden);
}

#include "experts.h" /* which reads what stands above */

/* lay out at `at` so many pieces of memory; returns how many bytes they take */
static size_t laid_out(const size_t *sizes, int count, char *at, void **parts) {
    size_t taken = 0;
    for (int i = 0; i < count; i++) parts[i] = at + taken, taken += (sizes[i] + LINE - 1) / LINE * LINE;
    return taken;
}

/* the same of what a thread has of its own */
static size_t own_of(const Model *m, int rows, int stretched, char *at, Own *own) {
    size_t products = sizeof(float) * rows * BLOCK, inputs = most(m->hidden, most(m->heads * m->width, m->inner));
    size_t sizes[] = {
        rows * m->hidden * sizeof(float), rows * row8_size(inputs), products, products, sizeof(float) * m->hidden, sizeof(float) * ABREAST * (PIECE + m->width), sizeof(float) * GROUP * inputs,
        m->experts ? sizeof(float) * rows * inputs : 0, sizeof(int32_t) * rows, sizeof(Panel) + (m->layers->o.stride ? sizeof(float) * rows * WIDE : 0),
        stretched ? sizeof(float) * stretch_room(m) : 0,
    };
    void *parts[11];
    size_t taken = laid_out(sizes, 11, at, parts);
    *own = (Own){parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], parts[6], parts[10], parts[7], parts[8], parts[9]};
    return taken;
}

/* a token's embedding, and that of its position */
static void embedded(const Job *job, int r) {
    const Model *m = job->model;
    const Row *row = job->rows + r;
    for (int64_t i = 0; i < m->hidden; i++) {
        float x = one_as(m->dtype, m->embed, row->id * m->hidden + i) * (float)m->embed_scale;
        job->residual[r * m->hidden + i] = m->positions ? x + one_as(m->dtype, m->positions, row->position * m->hidden + i) : x;
    }
}

/* what adapters make of the input of these linear layers */
#define LOWERED(x, ...) counter = lowered_all(job, (const Linear *[]){__VA_ARGS__}, sizeof((const Linear *[]){__VA_ARGS__}) / sizeof(Linear *), x, &own, counter, threads)

enum {
    MANY_ROWS = 24,     /* rows from which on each thread readies some of them, and not all for itself: the others' are waited for */
    CHUNK_ROWS = 96,    /* rows of a share at most: whole tiles of every kind, whose inputs with the weights of SHARE_OUTPUTS outputs stay in a core's second cache */
    PANEL_ROWS = 32,    /* the same where weights lie [inputs, outputs], whose sums are in memory */
    SHARE_OUTPUTS = 64, MOST_OUTPUTS = 1024 /* outputs of a share where there are more rows than that, and at most of a share of all rows, which memory gives in long pieces */
};

/* the next share of a stage's outputs and rows; returns whether there is one */
static int next_part(Counter *counter, int across, int threads, long all, int rows, Part *part) {
    const int chunk = across ? PANEL_ROWS : CHUNK_ROWS, chunks = (rows + chunk - 1) / chunk, even = ((rows + chunks - 1) / chunks + 23) / 24 * 24, size = across ? chunk : even;
    const long share = across ? WIDE : SHARE_OUTPUTS;
    if (rows <= chunk) {
        *part = (Part){.first = 0, .rows = rows};
        return next_blocks(counter, BLOCK, across ? WIDE : MOST_OUTPUTS, threads, all, &part->begin, &part->end);
    }
    long number = atomic_fetch_add_explicit(&counter->next, 1, memory_order_relaxed), begin = number / chunks * share;
    int first = number % chunks * size;
    *part = (Part){begin, begin + share < all ? begin + share : all, first, rows - first < size ? rows - first : size};
    return begin < all;
}

/* what all threads take shares of, before any goes on: of rows or of others one each, of all rows that are to be readied, of outputs */
#define SHARED(all, work) \
    do { \
        while (next_share(counter, 1, all, &begin, &end)) work; \
        counter++; \
        barrier(threads); \
    } while (0)
#define READIED(work) \
    do { \
        if (job->readied) { \
            while (next_share(counter, BETWEEN, job->count, &begin, &end)) work; \
            counter++; \
            barrier(threads); \
        } else { \
            begin = 0, end = job->count; \
            work; \
        } \
    } while (0)
#define IN_PARTS(all, of, work) \
    do { \
        while (next_part(counter, across, threads, all, of, &part)) { \
            own.panel->most = part.end - part.begin; \
            work; \
        } \
        counter++; \
        barrier(threads); \
    } while (0)

static void pass(void *argument, int thread, int threads) {
    const Job *job = argument;
    const Model *m = job->model;
    Own own;
    own_of(m, job->count, job->stretches < job->count, job->own + thread * job->own_size, &own);
    own.panel->linear = NULL;
    if (job->readied) own.x = job->readied, own.x8 = job->readied + job->count * m->hidden * sizeof(float);
    Counter *counter = job->counters;
    const int across = m->layers->o.stride != 0;
    long begin, end;
    Part part;

    SHARED(job->count, embedded(job, begin));
    for (int layer = 0; layer < job->layers; layer++) {
        const Layer *l = m->layers + layer;
        shown(job, layer, thread);
        READIED(normed_rows(job, &l->attention_norm, &l->q, begin, end, &own));
        LOWERED(own.x, &l->q, &l->k, &l->v);
        long qkv = in_blocks(&l->q) + in_blocks(&l->k) + in_blocks(&l->v);
        IN_PARTS(qkv, job->count, queries_keys_values(job, layer, &own, part));
        SHARED(job->count, placed(job, layer, begin));
        SHARED((long)job->stretches * m->kv_heads * job->pieces, attend(job, layer, begin, &own));
        LOWERED(job->attended, &l->o);
        if (l->o.dtype >= INT8) READIED(readied(&l->o, job->attended, begin, end, &own));
        IN_PARTS(m->hidden, job->count, added(job, &l->o, &l->after_attention, job->attended, &own, part));
        if (l->after_attention.weight) SHARED(job->count, settled(job, &l->after_attention, begin, &own));

        READIED(normed_rows(job, &l->feed_norm, &l->up, begin, end, &own));
        if (l->router.weight) {
            long up = m->experts * in_blocks(&l->up), down = m->experts * in_blocks(&l->down);
            SHARED(job->count, routed(job, l, begin, &own));
            IN_PARTS(up, 1, experts_opened(job, l, &own, part.begin, part.end));
            IN_PARTS(down, 1, experts_shut(job, l, &own, part.begin, part.end));
            SHARED(job->count, weighed(job, l, begin));
        } else {
            LOWERED(own.x, &l->gate, &l->up);
            IN_PARTS(l->up.outputs, job->count, all_opened(job, l, &own, part));
            LOWERED(job->opened, &l->down);
            if (l->down.dtype >= INT8) READIED(readied(&l->down, job->opened, begin, end, &own));
            IN_PARTS(m->hidden, job->count, added(job, &l->down, &l->after_feed, job->opened, &own, part));
            if (l->after_feed.weight) SHARED(job->count, settled(job, &l->after_feed, begin, &own));
        }
    }
    shown(job, job->layers, thread);
    if (!job->wanted) return;
    READIED(normed_wanted(job, begin, end, &own));
    IN_PARTS(m->vocab, job->wanted, scores_of(job, &own, part));
}

/* Take so many rows through the first `layers` layers: logits, [rows wanted, vocab], and the hidden states of the layers that have a place in
   `states`. Returns 0, or 1 where there is no memory. */
int seodang_step(const Model *m, int layers, const Row *rows, int count, const float *cos, const float *sin, float *logits, float *const *states, int threads) {
    static char *memory;
    static size_t had;
    int counters = 3 + 18 * layers, failed = 0; /* of a layer, as many at most as `pass` has stages */
    pthread_mutex_lock(&pool.calls);
    threads = ready(threads < 1 ? 1 : threads);
    Job job = {.model = m, .rows = rows, .cos = cos, .sin = sin, .logits = logits, .states = states, .count = count, .layers = layers, .pieces = 1};
    job.runs = runs_of(rows, count, NULL, &job.ranks);
    job.stretches = stretches_of(m, layers, rows, count, NULL, &job.pieces);
    for (int r = 0; r < count; r++) job.wanted += rows[r].wanted >= 0;
    Own own;
    job.own_size = own_of(m, count, job.stretches < count, NULL, &own);
    size_t hidden = sizeof(float) * count * m->hidden, choices = sizeof(float) * count * m->chosen, sizes[] = {
        hidden, hidden, sizeof(float) * count * (m->heads + 2 * m->kv_heads) * m->width, sizeof(float) * count * m->heads * job.pieces * (m->width + 2),
        sizeof(float) * count * m->heads * m->width, sizeof(float) * count * most(m->chosen, 1) * m->inner,
        sizeof(float) * count * m->experts, choices, choices * m->hidden, choices,
        sizeof(Counter) * counters, sizeof(atomic_long) * count * m->kv_heads, threads * job.own_size,
        sizeof(Run) * job.runs, sizeof(float) * ABEAM * job.ranks * count * BLOCK, sizeof(Stretch) * job.stretches,
        count < MANY_ROWS ? 0 : count * (m->hidden * sizeof(float) + row8_size(most(m->hidden, most(m->heads * m->width, m->inner)))),
    };
    void *parts[17];
    size_t wanted = laid_out(sizes, 17, NULL, parts) + LINE;
    if (wanted > had) {
        char *old = memory;
        memory = NULL, had = 0; /* before it goes: a child that is forked in this moment has no claim to it */
        free(old);
        memory = malloc(wanted);
        had = memory ? wanted : 0;
    }
    if (memory) {
        laid_out(sizes, 17, (char *)(((uintptr_t)memory + LINE - 1) / LINE * LINE), parts);
        job.residual = parts[0], job.aside = parts[1], job.qkv = parts[2], job.partial = parts[3], job.attended = parts[4], job.opened = parts[5];
        job.odds = parts[6], job.shares = parts[7], job.given = parts[8], job.experts = parts[9];
        job.counters = parts[10], job.done = parts[11], job.own = parts[12], job.run = parts[13], job.reduced = parts[14], job.stretch = parts[15], job.readied = count < MANY_ROWS ? NULL : parts[16];
        stretches_of(m, layers, rows, count, job.stretch, &job.pieces);
        runs_of(rows, count, job.run, &job.ranks);
        memset(job.counters, 0, sizes[10]);
        memset(job.done, 0, sizes[11]);
        together(pass, &job, threads);
    } else {
        failed = 1;
    }
    pthread_mutex_unlock(&pool.calls);
    return failed;
}

/* ---- beside the pass ---- */

#include "product.h"
#include "scores.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define DOTS " and VNNI"
#elif defined(__ARM_FEATURE_DOTPROD)
#define DOTS " and dot products"
#else
#define DOTS ""
#endif

/* What this was built for. */
const char *seodang_built_for(void) {
#if defined(__AVX512BF16__)
    return "AVX512-BF16" DOTS;
#elif defined(__AVX512F__)
    return "AVX512" DOTS;
#elif defined(__AVX2__)
    return "AVX2" DOTS;
#elif defined(__ARM_NEON)
    return "NEON" DOTS;
#else
    return "plain C";
#endif
}
