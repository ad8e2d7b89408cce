/* One pass of a decoder of the Llama kind over rows of new tokens, whole in one call: norms, products, rotation, cache, attention, feed-forward, head.

   Weights are read where the model keeps them, [outputs, inputs] each, and once a pass for all rows. Whatever runs beside it and on however many
   threads, a row's numbers are the same to the bit: each output of each row is summed in one order, by lanes along the inputs and then across the
   lanes, and attention by pieces of PIECE keys, put together in their order. Built for the CPU that it runs on; see compiler.py. */

#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define TILE 6    /* so many rows by GROUP outputs keep their sums in registers */
#define ABREAST 4 /* so many queries by GROUP keys */
#elif defined(__AVX__)
#define LANES 8
#define TILE 3
#define ABREAST 2
#else
#define LANES 4
#define TILE 3
#define ABREAST 2
#endif
enum { GROUP = 4, PIECE = 256, SPINS = 4000, LINE = 64, AHEAD = 8192, BETWEEN = 8 };
enum { FLOAT32 = 0, BFLOAT16 = 1 };

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef float v4 __attribute__((vector_size(16)));
typedef float v8 __attribute__((vector_size(32)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

#ifdef __AVX512BF16__
enum { ROUNDED = 1 }; /* bfloat16 meets bfloat16: what a product reads is rounded */
#else
enum { ROUNDED = 0 };
#endif

/* ---- numbers ---- */

INLINE vf load(const float *at) { vf v; memcpy(&v, at, sizeof v); return v; }
INLINE void store(float *at, vf v) { memcpy(at, &v, sizeof v); }
INLINE vf every(float x) { return x - (vf){0}; }
INLINE vf widened(const uint16_t *at) { vh v; memcpy(&v, at, sizeof v); return (vf)(__builtin_convertvector(v, vu) << 16); }
INLINE vf load_as(int dtype, const void *at, size_t i) { return dtype == FLOAT32 ? load((const float *)at + i) : widened((const uint16_t *)at + i); }
INLINE vf chosen(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

static inline float wide(uint16_t x) { uint32_t bits = (uint32_t)x << 16; float f; memcpy(&f, &bits, 4); return f; }
static inline float one_as(int dtype, const void *at, size_t i) { return dtype == FLOAT32 ? ((const float *)at)[i] : wide(((const uint16_t *)at)[i]); }

/* a * b + c, rounded once wherever that is one instruction: left to itself, a compiler fuses the two in the loop of some numbers of rows, and not of others */
static inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

static inline uint16_t rounded(float x) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : up;
}

/* e to the x to float32's rounding: two to the nearest whole power, times a polynomial (Cephes) */
INLINE vf exponential(vf x) {
    const float magic = 12582912.0f;
    x = chosen(x < every(-87.0f), every(-87.0f), x);
    x = chosen(x > every(88.0f), every(88.0f), x);
    vf whole = x * 1.44269504f + magic;
    vi power = (vi)whole - (vi)every(magic);
    whole = whole - magic;
    vf rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vf p = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * (rest * rest) + rest + 1.0f;
    return (vf)((vi)p + (power << 23));
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

/* the sums of four vectors, each over its lanes in one order */
INLINE v4 folded(vf v) {
    v4 parts[LANES / 4];
    memcpy(parts, &v, sizeof v);
#if LANES == 16
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
#elif LANES == 8
    return parts[0] + parts[1];
#else
    return parts[0];
#endif
}
INLINE v4 sums(vf a, vf b, vf c, vf d) {
    v4 p = folded(a), q = folded(b), r = folded(c), s = folded(d);
#ifdef SHUFFLES
    v4 one = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
    v4 two = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
    return __builtin_shufflevector(one, two, 0, 1, 4, 5) + __builtin_shufflevector(one, two, 2, 3, 6, 7);
#else
    return (v4){(p[0] + p[2]) + (p[1] + p[3]), (q[0] + q[2]) + (q[1] + q[3]), (r[0] + r[2]) + (r[1] + r[3]), (s[0] + s[2]) + (s[1] + s[3])};
#endif
}
INLINE float sum(vf v) { return sums(v, v, v, v)[0]; }

/* ---- products ---- */

/* Memory gives all it has to who reads it in its order; the outputs of a group are read side by side, at half that pace. So a product asks every few
   steps for some lines of what comes next, in order, and all the tiles of a group together for all of the next group. */
typedef struct { const char *next; int lines; } Ahead;
INLINE Ahead ahead(const void *w, size_t inputs, size_t size, int outputs, int lanes, int part, int parts) {
    int whole = BETWEEN * outputs * lanes * (int)size / LINE, lines = (whole + parts - 1) / parts;
    size_t begin = part * lines * (inputs / lanes / BETWEEN) * LINE;
    return (Ahead){(const char *)w + outputs * inputs * size + AHEAD + begin, begin < outputs * inputs * size ? lines : 0};
}
INLINE void ask(Ahead *a) {
    for (int line = 0; line < a->lines; line++, a->next += LINE) __builtin_prefetch(a->next, 0, 2); /* to the second cache: the first is full of what is read now */
}

/* y[row][output] = w[output] . x[row] of so many outputs (4 or 1) and rows */
INLINE void tile(int dtype, int outputs, int rows, const void *w, size_t inputs, const void *x, float (*y)[GROUP], int part, int parts) {
    const size_t size = dtype == FLOAT32 ? 4 : 2, lanes = dtype == BFLOAT16 && ROUNDED ? 2 * LANES : LANES, whole = inputs / lanes * lanes;
    Ahead next = ahead(w, inputs, size, outputs, lanes, part, parts);
    vf acc[GROUP][TILE];
    UNROLL for (int o = 0; o < outputs; o++) {
        UNROLL for (int r = 0; r < rows; r++) acc[o][r] = every(0);
    }
    for (size_t i = 0; i < whole;) {
        size_t end = i + BETWEEN * lanes < whole ? i + BETWEEN * lanes : whole;
        if (outputs > 1) ask(&next);
        for (; i < end; i += lanes) {
#ifdef __AVX512BF16__
            if (dtype == BFLOAT16) {
                __m512bh right[TILE];
                UNROLL for (int r = 0; r < rows; r++) right[r] = (__m512bh)_mm512_loadu_si512((const uint16_t *)x + r * inputs + i);
                UNROLL for (int o = 0; o < outputs; o++) {
                    __m512bh left = (__m512bh)_mm512_loadu_si512((const uint16_t *)w + o * inputs + i);
                    UNROLL for (int r = 0; r < rows; r++) acc[o][r] = (vf)_mm512_dpbf16_ps((__m512)acc[o][r], left, right[r]);
                }
                continue;
            }
#endif
            vf right[TILE];
            UNROLL for (int r = 0; r < rows; r++) right[r] = load((const float *)x + r * inputs + i);
            UNROLL for (int o = 0; o < outputs; o++) {
                vf left = load_as(dtype, w, o * inputs + i);
                UNROLL for (int r = 0; r < rows; r++) acc[o][r] += left * right[r];
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        v4 s = outputs == GROUP ? sums(acc[0][r], acc[1][r], acc[2][r], acc[3][r]) : sums(acc[0][r], acc[0][r], acc[0][r], acc[0][r]);
        UNROLL for (int o = 0; o < outputs; o++) y[r][o] = s[o];
    }
    if (whole < inputs) /* what no vector holds */
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < outputs; o++) {
                float rest = 0;
                for (size_t i = whole; i < inputs; i++) rest = fused(one_as(dtype, w, o * inputs + i), one_as(lanes > LANES ? BFLOAT16 : FLOAT32, x, r * inputs + i), rest);
                y[r][o] += rest;
            }
}

/* a function of its own for each number of rows, so that its sums stay in registers */
typedef void Tile(const void *w, size_t inputs, const void *x, float (*y)[GROUP], int part, int parts);
#define TILES(name, dtype, outputs, rows) \
    static __attribute__((noinline)) void name##_##rows(const void *w, size_t inputs, const void *x, float (*y)[GROUP], int part, int parts) { tile(dtype, outputs, rows, w, inputs, x, y, part, parts); }
#define ALL_TILES(name, dtype, outputs) \
    TILES(name, dtype, outputs, 1) TILES(name, dtype, outputs, 2) TILES(name, dtype, outputs, 3) MORE_TILES(name, dtype, outputs) \
    static Tile *const name[] = {name##_1, name##_2, name##_3, MORE_NAMES(name)};
#if TILE == 6
#define MORE_TILES(name, dtype, outputs) TILES(name, dtype, outputs, 4) TILES(name, dtype, outputs, 5) TILES(name, dtype, outputs, 6)
#define MORE_NAMES(name) name##_4, name##_5, name##_6
#else
#define MORE_TILES(name, dtype, outputs)
#define MORE_NAMES(name)
#endif
ALL_TILES(float32_by_four, FLOAT32, GROUP)
ALL_TILES(float32_by_one, FLOAT32, 1)
ALL_TILES(bfloat16_by_four, BFLOAT16, GROUP)
ALL_TILES(bfloat16_by_one, BFLOAT16, 1)

/* y[row][output] of all rows, tile by tile */
static void tiled(Tile *const *by_rows, const void *w, size_t inputs, const char *x, size_t size, int rows, float (*y)[GROUP]) {
    int parts = (rows + TILE - 1) / TILE;
    for (int part = 0; part < parts; part++) {
        int n = rows / parts + (part < rows % parts);
        by_rows[n - 1](w, inputs, x, y, part, parts);
        x += n * inputs * size;
        y += n;
    }
}

/* the products of so many outputs (up to 4) from `at` on, with their biases, of all rows: y[row][output] */
static void product(int dtype, const void *weight, const void *bias, size_t at, int outputs, size_t inputs, const void *x, int rows, float (*y)[GROUP]) {
    size_t size = dtype == FLOAT32 ? 4 : 2, of_x = dtype == FLOAT32 || !ROUNDED ? 4 : 2;
    const char *w = (const char *)weight + at * inputs * size;
    if (outputs == GROUP && rows > 1) /* one row has no use for a group, and memory is quicker without */
        tiled(dtype == FLOAT32 ? float32_by_four : bfloat16_by_four, w, inputs, x, of_x, rows, y);
    else
        for (int o = 0; o < outputs; o++) /* one by one, each to its place */
            tiled(dtype == FLOAT32 ? float32_by_one : bfloat16_by_one, w + o * inputs * size, inputs, x, of_x, rows, (float(*)[GROUP])((float *)y + o));
    if (bias)
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < outputs; o++) y[r][o] += one_as(dtype, bias, at + o);
}

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
    _Alignas(LINE) atomic_long next;
} Counter;

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

static size_t most(size_t a, size_t b) { return a > b ? a : b; }
static size_t read_size(const Model *m) { return m->dtype == FLOAT32 || !ROUNDED ? 4 : 2; }

/* so many numbers as products read them */
static void put(const Model *m, void *to, size_t at, const float *from, size_t count) {
    if (read_size(m) == 4) {
        memcpy((float *)to + at, from, 4 * count);
    } else {
        uint16_t *out = (uint16_t *)to + at;
        for (size_t i = 0; i < count; i++) out[i] = rounded(from[i]);
    }
}

/* the root mean square norm of so many numbers, to `to` */
INLINE void normed_as(int dtype, const float *x, const void *weight, size_t count, float eps, float *to) {
    vf acc = every(0);
    float rest = 0;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) acc += load(x + i) * load(x + i);
    for (; i < count; i++) rest += x[i] * x[i];
    float by = 1.0f / sqrtf((sum(acc) + rest) / count + eps);
    for (i = 0; i + LANES <= count; i += LANES) store(to + i, load(x + i) * by * load_as(dtype, weight, i));
    for (; i < count; i++) to[i] = x[i] * by * one_as(dtype, weight, i);
}
static void normed(const Model *m, const float *x, const void *weight, size_t count, float *to) {
    if (m->dtype == FLOAT32) normed_as(FLOAT32, x, weight, count, m->eps, to);
    else normed_as(BFLOAT16, x, weight, count, m->eps, to);
}

static void turned(float *x, const float *cos, const float *sin, size_t half) { /* sin has its first half's sign turned */
    for (size_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] + b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

static void written(const Model *m, void *to, size_t at, const float *from) {
    if (m->dtype == FLOAT32) memcpy((float *)to + at, from, 4 * m->width);
    else for (int64_t i = 0; i < m->width; i++) ((uint16_t *)to)[at + i] = rounded(from[i]);
}

/* a row's heads turned to its position, its keys and values put into the cache */
static void placed(const Job *job, int layer, int r) {
    const Model *m = job->model;
    const Layer *l = m->layers + layer;
    const Row *row = job->rows + r;
    const float *cos = job->cos + row->position * m->width, *sin = job->sin + row->position * m->width;
    float *x = job->qkv + (size_t)r * (m->heads + 2 * m->kv_heads) * m->width;
    void *cache = (void *)row->keys;
    size_t at = layer * row->layer_stride + row->place * m->width;
    for (int64_t h = 0; h < m->heads; h++, x += m->width) {
        if (l->q_norm) normed(m, x, l->q_norm, m->width, x);
        turned(x, cos, sin, m->width / 2);
        for (int64_t i = 0; i < m->width; i++) x[i] *= (float)l->scale;
    }
    for (int64_t h = 0; h < m->kv_heads; h++, x += m->width) {
        if (l->k_norm) normed(m, x, l->k_norm, m->width, x);
        turned(x, cos, sin, m->width / 2);
        written(m, cache, at + h * row->head_stride, x);
    }
    for (int64_t h = 0; h < m->kv_heads; h++, x += m->width) written(m, cache, at + row->part_stride + h * row->head_stride, x);
}

/* ---- attention ---- */

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
                UNROLL for (int h = 0; h < heads; h++) acc[h][j] += load((const float *)q + h * width + i) * key;
            }
        }
        UNROLL for (int h = 0; h < heads; h++) {
            v4 s = sums(acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
            memcpy(scores + h * PIECE + k, &s, sizeof s); /* there is room behind the last */
        }
        if (whole < width) /* what no vector holds */
            for (int h = 0; h < heads; h++)
                for (int j = 0; j < GROUP; j++)
                    for (size_t i = whole; i < width; i++)
                        scores[h * PIECE + k + j] += one_as(lanes > LANES ? BFLOAT16 : FLOAT32, q, h * width + i) * one_as(dtype, keys, at[j] + i);
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
            UNROLL for (int h = 0; h < heads; h++) acc[h][v] += weights[h * PIECE + k] * value;
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
            for (size_t k = 0; k < count; k++) s += weights[h * PIECE + k] * one_as(dtype, values, k * width + i);
            to[h * to_stride + i] = s;
        }
}

/* what so many queries of a key head make of one piece of its keys: of each [width] mixed values, their largest score, the sum of their weights */
INLINE void abreast(int dtype, int heads, const void *q, const void *keys, const void *values, size_t count, size_t width, float *scores, float *to, size_t to_stride) {
    scored(dtype, heads, q, keys, count, width, scores);
    for (int h = 0; h < heads; h++) {
        float *s = scores + h * PIECE, largest = s[0];
        size_t padded = (count + LANES - 1) / LANES * LANES;
        vf total = every(0);
        for (size_t k = 1; k < count; k++) largest = s[k] > largest ? s[k] : largest;
        for (size_t k = count; k < padded; k++) s[k] = largest;
        for (size_t k = 0; k < padded; k += LANES) store(s + k, exponential(load(s + k) - largest));
        for (size_t k = count; k < padded; k++) s[k] = 0;
        for (size_t k = 0; k < padded; k += LANES) total += load(s + k);
        to[h * to_stride + width] = largest;
        to[h * to_stride + width + 1] = sum(total);
    }
    mixture(dtype, heads, scores, values, count, width, to, to_stride);
}

INLINE void piece_as(int dtype, const Model *m, const float *q, const void *keys, const void *values, size_t count, float *scores, float *to, size_t to_stride) {
    const size_t heads = m->heads / m->kv_heads, width = m->width;
    void *read = scores + ABREAST * PIECE; /* queries as their products read them */
    for (size_t h = 0; h < heads;) {
        int n = heads - h < ABREAST ? heads - h : ABREAST;
        put(m, read, 0, q + h * width, n * width);
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
    size_t at = layer * row->layer_stride + kv_head * row->head_stride + from * width, size = m->dtype == FLOAT32 ? 4 : 2;
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
        put(m, job->attended, ((size_t)r * m->heads + kv_head * heads + h) * width, scores, width);
    }
}

/* ---- threads ----

   Those of the OpenMP runtime that torch computes with, where it is handed over: its threads spin for a while behind each operation of torch's, and
   would take the cores from any others. Else a pool of our own, in a child of a fork too, which that runtime does not outlive. */

typedef void Work(void *argument, int thread, int threads);

static struct {
    pthread_mutex_t calls, mutex; /* one pass at a time; what follows */
    pthread_cond_t wake;
    int threads; /* that wait for work, beside who calls */
    long round;
    Work *work;
    void *argument;
    int wanted;
    atomic_int busy;
    _Alignas(LINE) atomic_int arrived;
    _Alignas(LINE) atomic_long turn; /* of the barrier */
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */
    int (*number)(void), (*count)(void);                            /* omp_get_thread_num, omp_get_num_threads */
} pool = {.calls = PTHREAD_MUTEX_INITIALIZER, .mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void pause_for(int spun) {
    if (spun > SPINS) sched_yield(); /* another program has the core that we wait for */
#if defined(__x86_64__) || defined(__i386__)
    else __builtin_ia32_pause();
#elif defined(__aarch64__)
    else __asm__ volatile("yield");
#endif
}

static void barrier(int threads) {
    if (threads == 1) return;
    long turn = atomic_load_explicit(&pool.turn, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool.arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool.turn, turn + 1, memory_order_release);
        return;
    }
    for (int spun = 0; atomic_load_explicit(&pool.turn, memory_order_acquire) == turn; spun++) pause_for(spun);
}

static void *waiting(void *number) {
    int thread = (int)(intptr_t)number;
    long seen = 0;
    for (;;) {
        pthread_mutex_lock(&pool.mutex);
        while (pool.round == seen || thread >= pool.wanted) {
            seen = pool.round;
            pthread_cond_wait(&pool.wake, &pool.mutex);
        }
        seen = pool.round;
        Work *work = pool.work;
        void *argument = pool.argument;
        int threads = pool.wanted;
        pthread_mutex_unlock(&pool.mutex);
        work(argument, thread, threads);
        atomic_fetch_sub_explicit(&pool.busy, 1, memory_order_release);
    }
    return NULL;
}

#ifndef _WIN32
static void forked(void) { /* a child has none of its parent's threads */
    pthread_mutex_init(&pool.calls, NULL);
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.threads = 0;
    pool.round = 0;
    pool.parallel = NULL;
    atomic_store(&pool.busy, 0);
    atomic_store(&pool.arrived, 0);
}
#endif

/* start what is missing of so many threads; returns how many there are, who calls among them */
static int ready(int threads) {
    static int watched;
    pthread_attr_t attributes;
#ifndef _WIN32
    if (!watched) watched = !pthread_atfork(NULL, NULL, forked);
#endif
    if (pool.parallel || pool.threads + 1 >= threads) return threads;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (pool.threads + 1 < threads) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, waiting, (void *)(intptr_t)(pool.threads + 1))) break;
        pool.threads++;
    }
    pthread_attr_destroy(&attributes);
    return pool.threads + 1;
}

static void teamed(void *argument) { pool.work(argument, pool.number(), pool.count()); }

/* have at most so many threads do a piece of work, each with its number and how many they are */
static void together(Work *work, void *argument, int threads) {
    if (threads == 1) {
        work(argument, 0, 1);
        return;
    }
    pool.work = work;
    if (pool.parallel) {
        pool.parallel(teamed, argument, threads, 0);
        return;
    }
    pthread_mutex_lock(&pool.mutex);
    pool.argument = argument;
    pool.wanted = threads;
    atomic_store(&pool.busy, threads - 1);
    pool.round++;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.mutex);
    work(argument, 0, threads);
    for (int spun = 0; atomic_load_explicit(&pool.busy, memory_order_acquire); spun++) pause_for(spun);
}

/* Compute with the threads of an OpenMP runtime from now on: its GOMP_parallel, omp_get_thread_num and omp_get_num_threads. */
void seodang_use_team(void *parallel, void *number, void *count) {
    memcpy(&pool.number, &number, sizeof number); /* a pointer to a function is none to an object, to C */
    memcpy(&pool.count, &count, sizeof count);
    memcpy(&pool.parallel, &parallel, sizeof parallel);
}

/* ---- the pass ---- */

/* how many outputs go to a thread at a time */
static long share(long outputs, int threads) {
    long part = outputs / (6L * threads) / GROUP * GROUP;
    return part < 16 ? 16 : part > 256 ? 256 : part;
}

static int next_share(Counter *counter, long part, long all, long *begin, long *end) {
    *begin = atomic_fetch_add_explicit(&counter->next, part, memory_order_relaxed);
    *end = *begin + part < all ? *begin + part : all;
    return *begin < all;
}

static void queries_keys_values(const Job *job, int layer, const void *x, long begin, long end, float (*y)[GROUP]) {
    const Model *m = job->model;
    const Layer *l = m->layers + layer;
    const void *weights[] = {l->q, l->k, l->v}, *biases[] = {l->q_bias, l->k_bias, l->v_bias};
    long sizes[] = {m->heads * m->width, m->kv_heads * m->width, m->kv_heads * m->width}, all = sizes[0] + 2 * sizes[1], offset = 0;
    for (int part = 0; part < 3; offset += sizes[part++]) {
        long from = begin > offset ? begin : offset, to = end < offset + sizes[part] ? end : offset + sizes[part];
        for (long o = from; o < to; o += GROUP) {
            int n = to - o < GROUP ? to - o : GROUP;
            product(m->dtype, weights[part], biases[part], o - offset, n, m->hidden, x, job->count, y);
            for (int r = 0; r < job->count; r++) memcpy(job->qkv + r * all + o, y[r], n * sizeof(float));
        }
    }
}

/* a layer's outputs added to the residual stream */
static void added(const Job *job, const void *weight, const void *bias, long inputs, const void *x, long begin, long end, float (*y)[GROUP]) {
    const Model *m = job->model;
    for (long o = begin; o < end; o += GROUP) {
        int n = end - o < GROUP ? end - o : GROUP;
        product(m->dtype, weight, bias, o, n, inputs, x, job->count, y);
        for (int r = 0; r < job->count; r++)
            for (int i = 0; i < n; i++) job->residual[r * m->hidden + o + i] += y[r][i];
    }
}

/* the feed-forward layer's two branches, one of which opens and shuts the other by x / (1 + exp(-x)) */
static void gated(const Job *job, const Layer *l, const void *x, long begin, long end, float (*y)[GROUP], float (*z)[GROUP]) {
    const Model *m = job->model;
    for (long o = begin; o < end; o += GROUP) {
        int n = end - o < GROUP ? end - o : GROUP;
        product(m->dtype, l->gate, l->gate_bias, o, n, m->hidden, x, job->count, y);
        product(m->dtype, l->up, l->up_bias, o, n, m->hidden, x, job->count, z);
        float *g = (float *)y, *u = (float *)z; /* there is room behind the last */
        for (int i = 0; i < job->count * GROUP; i += LANES) store(g + i, load(g + i) / (1.0f + exponential(-load(g + i))) * load(u + i));
        for (int r = 0; r < job->count; r++) put(m, job->opened, r * m->inner + o, y[r], n);
    }
}

static void scores_of(const Job *job, const void *x, long begin, long end, float (*y)[GROUP]) {
    const Model *m = job->model;
    for (long o = begin; o < end; o += GROUP) {
        int n = end - o < GROUP ? end - o : GROUP;
        product(m->dtype, m->head, NULL, o, n, m->hidden, x, job->wanted, y);
        for (int r = 0; r < job->wanted; r++) memcpy(job->logits + r * m->vocab + o, y[r], n * sizeof(float));
    }
}

/* all rows normed as products read them, to this thread's own memory */
static void normed_rows(const Job *job, const void *weight, void *x, float *line) {
    const Model *m = job->model;
    for (int r = 0; r < job->count; r++) {
        normed(m, job->residual + r * m->hidden, weight, m->hidden, line);
        put(m, x, r * m->hidden, line, m->hidden);
    }
}

/* the hidden states before a layer, or after the last and its norm, where they are asked for */
static void shown(const Job *job, int layer, int thread) {
    const Model *m = job->model;
    if (thread || !job->states || !job->states[layer]) return;
    if (layer < job->layers) memcpy(job->states[layer], job->residual, sizeof(float) * job->count * m->hidden);
    else for (int r = 0; r < job->count; r++) normed(m, job->residual + r * m->hidden, m->norm, m->hidden, job->states[layer] + r * m->hidden);
}

/* how much of its own each thread has: normed rows, the products of four outputs twice, a line, scores of queries abreast and the queries */
static size_t own_of(const Model *m, int rows) {
    size_t sums_of = sizeof(float) * ((size_t)rows * GROUP + LANES), line = sizeof(float) * most(m->hidden, m->width);
    size_t scores = sizeof(float) * ABREAST * (PIECE + m->width);
    return (rows * m->hidden * read_size(m) + 2 * sums_of + line + scores + 8 * LINE) / LINE * LINE;
}

static void pass(void *argument, int thread, int threads) {
    const Job *job = argument;
    const Model *m = job->model;
    size_t sums_of = (sizeof(float) * ((size_t)job->count * GROUP + LANES) + LINE - 1) / LINE * LINE;
    char *own = job->own + thread * job->own_size;
    float(*y)[GROUP] = (float(*)[GROUP])own, (*z)[GROUP] = (float(*)[GROUP])(own + sums_of);
    void *x = own + 2 * sums_of;
    float *line = (float *)((char *)x + (job->count * m->hidden * read_size(m) + LINE - 1) / LINE * LINE), *scores = line + m->hidden;
    Counter *counter = job->counters;
    long begin, end, qkv = (m->heads + 2 * m->kv_heads) * m->width;

    while (next_share(counter, 1, job->count, &begin, &end))
        for (int64_t i = 0; i < m->hidden; i++) job->residual[begin * m->hidden + i] = one_as(m->dtype, m->embed, job->rows[begin].id * m->hidden + i);
    counter++;
    barrier(threads);
    for (int layer = 0; layer < job->layers; layer++) {
        const Layer *l = m->layers + layer;
        shown(job, layer, thread);
        normed_rows(job, l->attention_norm, x, line);
        while (next_share(counter, share(qkv, threads), qkv, &begin, &end)) queries_keys_values(job, layer, x, begin, end, y);
        counter++;
        barrier(threads);
        while (next_share(counter, 1, job->count, &begin, &end)) placed(job, layer, begin);
        counter++;
        barrier(threads);
        long all = (long)job->count * m->kv_heads * job->pieces;
        while (next_share(counter, 1, all, &begin, &end)) {
            int p = begin % job->pieces, kv_head = begin / job->pieces % m->kv_heads, r = begin / job->pieces / m->kv_heads;
            if (p < pieces_of(l, job->rows + r)) attended(job, layer, r, kv_head, p, scores);
        }
        counter++;
        barrier(threads);
        while (next_share(counter, share(m->hidden, threads), m->hidden, &begin, &end))
            added(job, l->o, l->o_bias, m->heads * m->width, job->attended, begin, end, y);
        counter++;
        barrier(threads);
        normed_rows(job, l->feed_norm, x, line);
        while (next_share(counter, share(m->inner, threads), m->inner, &begin, &end)) gated(job, l, x, begin, end, y, z);
        counter++;
        barrier(threads);
        while (next_share(counter, share(m->hidden, threads), m->hidden, &begin, &end))
            added(job, l->down, l->down_bias, m->inner, job->opened, begin, end, y);
        counter++;
        barrier(threads);
    }
    shown(job, job->layers, thread);
    if (!job->wanted) return;
    for (int r = 0; r < job->count; r++)
        if (job->rows[r].wanted >= 0) {
            normed(m, job->residual + r * m->hidden, m->norm, m->hidden, line);
            put(m, x, job->rows[r].wanted * m->hidden, line, m->hidden);
        }
    while (next_share(counter, share(m->vocab, threads), m->vocab, &begin, &end)) scores_of(job, x, begin, end, y);
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
    size_t heads = m->heads * m->width, sizes[] = {
        sizeof(float) * count * m->hidden, sizeof(float) * count * (m->heads + 2 * m->kv_heads) * m->width, sizeof(float) * count * m->heads * job.pieces * (m->width + 2),
        count * heads * read_size(m), count * m->inner * read_size(m), sizeof(Counter) * counters, sizeof(atomic_long) * count * m->kv_heads, threads * own_of(m, count),
    }, wanted = LINE;
    void *parts[8];
    for (int i = 0; i < 8; i++) wanted += sizes[i] = (sizes[i] + LINE - 1) / LINE * LINE;
    if (wanted > had) {
        free(memory);
        memory = malloc(wanted);
        had = memory ? wanted : 0;
    }
    if (memory) {
        char *at = (char *)(((uintptr_t)memory + LINE - 1) / LINE * LINE);
        for (int i = 0; i < 8; at += sizes[i++]) parts[i] = at;
        job.residual = parts[0], job.qkv = parts[1], job.partial = parts[2], job.attended = parts[3], job.opened = parts[4];
        job.counters = parts[5], job.done = parts[6], job.own = parts[7], job.own_size = own_of(m, count);
        memset(parts[5], 0, sizes[5] + sizes[6]);
        together(pass, &job, threads);
    } else {
        failed = 1;
    }
    pthread_mutex_unlock(&pool.calls);
    return failed;
}

/* ---- beside the pass ---- */

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

typedef struct { const char *from; size_t size; Counter *counter; } Reading;

static void reading(void *argument, int thread, int threads) {
    const Reading *job = argument;
    long begin, end, part = 1 << 20;
    vf acc[4] = {{0}};
    (void)thread, (void)threads;
    while (next_share(job->counter, part, job->size, &begin, &end))
        for (; begin + (long)sizeof acc <= end; begin += sizeof acc)
            for (int i = 0; i < 4; i++) acc[i] += load((const float *)(job->from + begin) + i * LANES);
    volatile float kept_result = sum(acc[0] + acc[1] + acc[2] + acc[3]);
    (void)kept_result;
}

/* Read so many bytes once, on so many threads; returns the seconds that it took. */
double seodang_read(const void *from, size_t size, int threads) {
    static Counter counter;
    struct timespec began, ended;
    pthread_mutex_lock(&pool.calls);
    Reading job = {from, size, &counter};
    atomic_store(&counter.next, 0);
    threads = ready(threads < 1 ? 1 : threads);
    clock_gettime(CLOCK_MONOTONIC, &began);
    together(reading, &job, threads);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    pthread_mutex_unlock(&pool.calls);
    return (ended.tv_sec - began.tv_sec) + 1e-9 * (ended.tv_nsec - began.tv_nsec);
}
