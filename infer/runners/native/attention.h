/* Attention over a piece of keys, for as many of the queries that share them as registers hold. */

#include "activations.h"
#include "model.h"

/* scores of so many queries (1 to ABREAST) against so many keys, [queries, PIECE] */
INLINE void scored(int dtype, int heads, const void *q, const void *keys, size_t count, size_t width, float *scores) {
    const size_t lanes = dtype == BFLOAT16 && ROUNDED ? 2 * LANES : LANES, whole = width / lanes * lanes;
    for (size_t k = 0; k < count; k += GROUP) {
        size_t at[GROUP];
        vf acc[ABREAST][GROUP];
        UNROLL for (int j = 0; j < GROUP; j++) at[j] = (k + j < count ? k + j : count - 1) * width;
        UNROLL for (int h = 0; h < heads; h++) {
            UNROLL for (int j = 0; j < GROUP; j++) acc[h][j] = every(0);
        }
        for (size_t i = 0; i < whole; i += lanes) {
#ifdef __AVX512BF16__
            if (dtype == BFLOAT16) {
                UNROLL for (int j = 0; j < GROUP; j++) {
                    __m512bh key = (__m512bh)_mm512_loadu_si512((const uint16_t *)keys + at[j] + i);
                    UNROLL for (int h = 0; h < heads; h++)
                        acc[h][j] = (vf)_mm512_dpbf16_ps((__m512)acc[h][j], key, (__m512bh)_mm512_loadu_si512((const uint16_t *)q + h * width + i));
                }
                continue;
            }
#endif
            UNROLL for (int j = 0; j < GROUP; j++) {
                vf key = load_as(dtype, keys, at[j] + i);
                UNROLL for (int h = 0; h < heads; h++) acc[h][j] = fused_each(load((const float *)q + h * width + i), key, acc[h][j]);
            }
        }
        UNROLL for (int h = 0; h < heads; h++) {
            v4 s = sums(acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
            memcpy(scores + h * PIECE + k, &s, sizeof s); /* there is room behind the last */
        }
        if (whole < width) /* what no vector holds */
            for (int h = 0; h < heads; h++)
                for (int j = 0; j < GROUP; j++)
                    for (size_t i = whole; i < width; i++) {
                        float *score = scores + h * PIECE + k + j;
                        *score = fused(one_as(lanes > LANES ? BFLOAT16 : FLOAT32, q, h * width + i), one_as(dtype, keys, at[j] + i), *score);
                    }
    }
}

/* mixtures of values by so many heads' weights (1 to ABREAST), of so many vectors from number `i` of a value on */
INLINE void mixed(int dtype, int heads, int vectors, const float *weights, const void *values, size_t count, size_t width, size_t i, float *to, size_t to_stride) {
    vf acc[ABREAST][4];
    UNROLL for (int h = 0; h < heads; h++) {
        UNROLL for (int v = 0; v < vectors; v++) acc[h][v] = every(0);
    }
    for (size_t k = 0; k < count; k++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            vf value = load_as(dtype, values, k * width + i + v * LANES);
            UNROLL for (int h = 0; h < heads; h++) acc[h][v] = fused_each(every(weights[h * PIECE + k]), value, acc[h][v]);
        }
    }
    UNROLL for (int h = 0; h < heads; h++) {
        UNROLL for (int v = 0; v < vectors; v++) store(to + h * to_stride + i + v * LANES, acc[h][v]);
    }
}

INLINE void mixture(int dtype, int heads, const float *weights, const void *values, size_t count, size_t width, float *to, size_t to_stride) {
    size_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) mixed(dtype, heads, 4, weights, values, count, width, i, to, to_stride);
    for (; i + LANES <= width; i += LANES) mixed(dtype, heads, 1, weights, values, count, width, i, to, to_stride);
    for (; i < width; i++)
        for (int h = 0; h < heads; h++) {
            float s = 0;
            for (size_t k = 0; k < count; k++) s = fused(weights[h * PIECE + k], one_as(dtype, values, k * width + i), s);
            to[h * to_stride + i] = s;
        }
}

/* scores of a piece made the weights of its values, zeros behind the last; their largest and the weights' sum are written to `sums_at` */
INLINE void weighed_piece(float *s, size_t count, float softcap, float *sums_at) {
    size_t padded = (count + LANES - 1) / LANES * LANES;
    if (softcap) bound_softly(s, softcap, padded);
    for (size_t k = count; k < padded; k++) s[k] = s[0];
    vf greatest = load(s), total = every(0);
    for (size_t k = LANES; k < padded; k += LANES) greatest = larger(load(s + k), greatest);
    float largest = largest_of(greatest);
    for (size_t k = 0; k < padded; k += LANES) store(s + k, exponential(load(s + k) - largest));
    for (size_t k = count; k < padded; k++) s[k] = 0;
    for (size_t k = 0; k < padded; k += LANES) total += load(s + k);
    sums_at[0] = largest;
    sums_at[1] = sum(total);
}

/* what so many queries of a key head make of one piece of its keys: of each [width] mixed values, their largest score, the sum of their weights */
INLINE void abreast(int dtype, int heads, const void *q, const void *keys, const void *values, size_t count, size_t width, float softcap, float *scores, float *to, size_t to_stride) {
    scored(dtype, heads, q, keys, count, width, scores);
    for (int h = 0; h < heads; h++) weighed_piece(scores + h * PIECE, count, softcap, to + h * to_stride + width);
    mixture(dtype, heads, scores, values, count, width, to, to_stride);
}

#include "cache8.h" /* which reads what stands above */

/* ---- of a pass's rows ---- */

INLINE void piece_as(int dtype, const Model *m, float softcap, const float *q, const void *keys, const void *values, size_t count, float *scores, float *to, size_t to_stride) {
    const size_t heads = m->heads / m->kv_heads, width = m->width;
    void *read = scores + ABREAST * PIECE; /* queries as their products read them */
    for (size_t h = 0; h < heads;) {
        int n = heads - h < ABREAST ? heads - h : ABREAST;
        put(read_size(m->dtype), read, 0, q + h * width, n * width);
        float *out = to + h * to_stride;
        switch (n) {
            case 1: abreast(dtype, 1, read, keys, values, count, width, softcap, scores, out, to_stride); break;
            case 2: abreast(dtype, 2, read, keys, values, count, width, softcap, scores, out, to_stride); break;
#if ABREAST > 2
            case 3: abreast(dtype, 3, read, keys, values, count, width, softcap, scores, out, to_stride); break;
            case 4: abreast(dtype, 4, read, keys, values, count, width, softcap, scores, out, to_stride); break;
#endif
        }
        h += n;
    }
}

static size_t first_key(const Layer *l, const Row *row) {
    return l->window && row->place + 1 > l->window ? row->place + 1 - l->window : 0;
}
static int pieces_of_stretch(const Layer *l, const Row *first, const Row *last) { /* of neighbours, in their order */
    return (last->seen + PIECE - 1) / PIECE - first_key(l, first) / PIECE;
}
static int pieces_of(const Layer *l, const Row *row) { return pieces_of_stretch(l, row, row); }

/* what all pieces of a row's key head give, in their order; there is room for a head at `room` */
static void put_together(const Job *job, const Layer *l, int r, int kv_head, float *room) {
    const Model *m = job->model;
    size_t heads = m->heads / m->kv_heads, width = m->width, stride = job->pieces * (width + 2);
    const float *partial = job->partial + ((size_t)r * m->heads + kv_head * heads) * stride;
    int pieces = pieces_of(l, job->rows + r);
    for (size_t h = 0; h < heads; h++) {
        const float *all = partial + h * stride;
        float largest = all[width], total = 0;
        for (int i = 1; i < pieces; i++) largest = all[i * (width + 2) + width] > largest ? all[i * (width + 2) + width] : largest;
        for (size_t i = 0; i < width; i++) room[i] = 0;
        for (int i = 0; i < pieces; i++) {
            const float *one = all + i * (width + 2);
            float by = expf(one[width] - largest);
            total = fused(by, one[width + 1], total);
            for (size_t j = 0; j < width; j++) room[j] = fused(by, one[j], room[j]);
        }
        for (size_t j = 0; j < width; j++) room[j] /= total;
        put(read_size(l->o.dtype), job->attended, ((size_t)r * m->heads + kv_head * heads + h) * width, room, width);
    }
}

/* piece number p of a row's key head; whoever ends the last puts all together, in their order */
static void attended(const Job *job, int layer, int r, int kv_head, int p, float *scores) {
    const Model *m = job->model;
    const Layer *l = m->layers + layer;
    const Row *row = job->rows + r;
    size_t heads = m->heads / m->kv_heads, width = m->width, stride = job->pieces * (width + 2);
    size_t begin = first_key(l, row), piece = begin / PIECE + p, from = most(begin, piece * PIECE);
    size_t end = (piece + 1) * PIECE < (size_t)row->seen ? (piece + 1) * PIECE : (size_t)row->seen;
    size_t at = layer * row->layer_stride + kv_head * row->head_stride + from * line_of(m), size = cached_size(m);
    const char *keys = (const char *)row->keys + at * size, *values = keys + row->part_stride * size;
    const float *q = job->qkv + (size_t)r * (m->heads + 2 * m->kv_heads) * width + kv_head * heads * width;
    float *partial = job->partial + ((size_t)r * m->heads + kv_head * heads) * stride;
    float *to = partial + p * (width + 2);
    if (m->cache == INT8) piece8(m, l->softcap, q, keys, values, end - from, scores, to, stride);
    else if (m->dtype == FLOAT32) piece_as(FLOAT32, m, l->softcap, q, keys, values, end - from, scores, to, stride);
    else piece_as(BFLOAT16, m, l->softcap, q, keys, values, end - from, scores, to, stride);
    int pieces = pieces_of(l, row);
    if (pieces > 1 && atomic_fetch_add(job->done + r * m->kv_heads + kv_head, 1) + 1 < pieces) return;
    atomic_store(job->done + r * m->kv_heads + kv_head, 0);
    put_together(job, l, r, kv_head, scores);
}
