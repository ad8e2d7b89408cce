/* Attention of neighbouring new tokens of one slot, which read the keys together: a prompt's, or guesses'. What a row gets is to the bit what it gets by itself
   (attention.h): its scores have the same sums in the same order, but lie along the lanes by keys, and its mixtures begin and end at its own keys. */

#include "attention.h"

enum { MOST_QUERIES = 96, LEAST_QUERIES = 12 }; /* of a stretch, at most; and at least, for fewer do not make good what it takes to lay keys across */

#if defined(__AVX512F__)
enum { MIXED = 6 }; /* queries whose mixtures of 4 vectors are in registers at a time */
#else
enum { MIXED = 2 };
#endif

/* Keys laid across: LANES of them side by side, number by number, or where bfloat16 meets bfloat16 pair by pair, 4 bytes each; behind those that fill whole vectors of a
   key, `words` of them, the `rest` as float32. A query has its words and its rest in the same order. */
typedef struct { size_t words, rest; } Across;

static Across across_of(int dtype, size_t width) {
    const size_t pair = dtype == BFLOAT16 && ROUNDED ? 2 : 1, whole = width / (pair * LANES) * (pair * LANES);
    return (Across){whole / pair, width - whole};
}

static void query_laid(int dtype, Across across, const float *from, float *to) {
    const size_t pair = dtype == BFLOAT16 && ROUNDED ? 2 : 1;
    put(4 / pair, to, 0, from, across.words * pair);
    for (size_t i = 0; i < across.rest; i++) to[across.words + i] = pair == 2 ? wide(rounded(from[across.words * pair + i])) : from[across.words + i];
}

/* words 4 bytes long of four keys, across */
INLINE void four_across(const char *const *keys, size_t word, float *to) {
#ifdef SHUFFLES
    v4 in[4];
    UNROLL for (int k = 0; k < 4; k++) memcpy(in + k, keys[k] + 4 * word, sizeof *in);
    v4 a = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5), b = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7);
    v4 c = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5), d = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
    v4 out[4] = {
        __builtin_shufflevector(a, c, 0, 1, 4, 5), __builtin_shufflevector(a, c, 2, 3, 6, 7), __builtin_shufflevector(b, d, 0, 1, 4, 5), __builtin_shufflevector(b, d, 2, 3, 6, 7),
    };
    UNROLL for (int i = 0; i < 4; i++) memcpy(to + i * LANES, out + i, sizeof *out);
#else
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++) memcpy(to + i * LANES + k, keys[k] + 4 * (word + i), 4);
#endif
}

/* so many keys (up to LANES, the last of which stands for those behind it) laid across */
INLINE void keys_across(int dtype, Across across, const char *keys, size_t count, size_t width, float *to) {
    const size_t size = size_of(dtype), pair = dtype == BFLOAT16 && ROUNDED ? 2 : 1;
    for (size_t k = 0; k < LANES; k += 4) {
        const char *at[4];
        for (size_t j = 0; j < 4; j++) at[j] = keys + (k + j < count ? k + j : count - 1) * width * size;
        for (size_t i = 0; i < across.words; i += 4) {
            if (pair * size == 4) four_across(at, i, to + i * LANES + k);
            else
                for (int word = 0; word < 4; word++)
                    for (int j = 0; j < 4; j++) to[(i + word) * LANES + k + j] = wide(((const uint16_t *)at[j])[i + word]);
        }
        for (size_t i = 0; i < across.rest; i++)
            for (size_t j = 0; j < 4; j++) to[(across.words + i) * LANES + k + j] = one_as(dtype, at[j], across.words * pair + i);
    }
}

typedef struct { vf of[ABREAST]; } Abreast;
INLINE Abreast both(int queries, Abreast a, Abreast b) {
    UNROLL for (int h = 0; h < queries; h++) a.of[h] += b.of[h];
    return a;
}

/* what `scored` has in lane number j: every so many words, from this one on */
INLINE Abreast lane_of(int dtype, int queries, size_t words, const float *keys, const float *q, size_t apart, size_t j) {
    Abreast acc;
    (void)dtype;
    UNROLL for (int h = 0; h < queries; h++) acc.of[h] = every(0);
    for (size_t i = j; i < words; i += LANES) {
        vf key = load(keys + i * LANES);
        KEPT(key);
#ifdef __AVX512BF16__
        if (dtype == BFLOAT16) {
            UNROLL for (int h = 0; h < queries; h++)
                acc.of[h] = (vf)_mm512_dpbf16_ps((__m512)acc.of[h], (__m512bh)key, (__m512bh)_mm512_set1_epi32(four((const char *)(q + h * apart + i))));
            continue;
        }
#endif
        UNROLL for (int h = 0; h < queries; h++) acc.of[h] = fused_each(every(q[h * apart + i]), key, acc.of[h]);
    }
    return acc;
}

/* scores of so many queries (1 to ABREAST), which lie so far apart, against LANES keys: the lanes of `scored`, put together in the order of `sums` */
INLINE void scored_across(int dtype, int queries, size_t words, size_t rest, const float *keys, const float *q, size_t apart, float *scores, size_t scores_apart) {
#define OF(j) lane_of(dtype, queries, words, keys, q, apart, j)
#define BOTH(a, b) both(queries, a, b)
#if LANES == 16
#define FOLDED(j) BOTH(BOTH(OF(j), OF(j + 8)), BOTH(OF(j + 4), OF(j + 12)))
#elif LANES == 8
#define FOLDED(j) BOTH(OF(j), OF(j + 4))
#else
#define FOLDED(j) OF(j)
#endif
    Abreast all;
    UNROLL for (int h = 0; h < queries; h++) all.of[h] = every(0);
    if (words) all = BOTH(BOTH(FOLDED(0), FOLDED(2)), BOTH(FOLDED(1), FOLDED(3)));
#undef FOLDED
#undef BOTH
#undef OF
    for (size_t i = words; i < words + rest; i++) {
        UNROLL for (int h = 0; h < queries; h++) all.of[h] = fused_each(every(q[h * apart + i]), load(keys + i * LANES), all.of[h]);
    }
    UNROLL for (int h = 0; h < queries; h++) store(scores + h * scores_apart, all.of[h]);
}

/* functions of their own, so that sums stay in registers; for heads of 64 numbers and 128, of which loops are none */
typedef void ScoredAcross(Across across, const float *keys, const float *q, float *scores, size_t scores_apart);
#define SCORED(name, dtype, queries) \
    static __attribute__((noinline)) void name(Across across, const float *keys, const float *q, float *scores, size_t scores_apart) { \
        const size_t usual = (dtype) == BFLOAT16 && ROUNDED ? 32 : 64, apart = across.words + across.rest; \
        if (!across.rest && across.words == usual) scored_across(dtype, queries, usual, 0, keys, q, usual, scores, scores_apart); \
        else if (!across.rest && across.words == 2 * usual) scored_across(dtype, queries, 2 * usual, 0, keys, q, 2 * usual, scores, scores_apart); \
        else scored_across(dtype, queries, across.words, across.rest, keys, q, apart, scores, scores_apart); \
    }
SCORED(float32_abreast, FLOAT32, ABREAST)
SCORED(float32_alone, FLOAT32, 1)
#ifdef __AVX512BF16__
SCORED(bfloat16_abreast, BFLOAT16, ABREAST)
SCORED(bfloat16_alone, BFLOAT16, 1)
#else /* keys are widened as they are laid across */
#define bfloat16_abreast float32_abreast
#define bfloat16_alone float32_alone
#endif

/* Values mixed by the weights of so many queries, of so many vectors from number `i` of a value on: what stands at `to` goes on. */
INLINE void mixed_further(int dtype, int queries, int vectors, const float *weights, size_t apart, const void *values, size_t count, size_t width, size_t i, float *const *to) {
    vf acc[MIXED][4];
    UNROLL for (int h = 0; h < queries; h++) {
        UNROLL for (int v = 0; v < vectors; v++) acc[h][v] = load(to[h] + i + v * LANES);
    }
    for (size_t k = 0; k < count; k++) {
        vf value[4];
        UNROLL for (int v = 0; v < vectors; v++) value[v] = load_as(dtype, values, k * width + i + v * LANES);
        UNROLL for (int v = 0; v < vectors; v++) KEPT(value[v]);
        UNROLL for (int h = 0; h < queries; h++) {
            vf weight = every(weights[h * apart + k]);
            UNROLL for (int v = 0; v < vectors; v++) acc[h][v] = fused_each(weight, value[v], acc[h][v]);
        }
    }
    UNROLL for (int h = 0; h < queries; h++) {
        UNROLL for (int v = 0; v < vectors; v++) store(to[h] + i + v * LANES, acc[h][v]);
    }
}
INLINE void mixture_further(int dtype, int queries, const float *weights, size_t apart, const void *values, size_t count, size_t width, float *const *to) {
    size_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) mixed_further(dtype, queries, 4, weights, apart, values, count, width, i, to);
    for (; i + LANES <= width; i += LANES) mixed_further(dtype, queries, 1, weights, apart, values, count, width, i, to);
    for (; i < width; i++)
        for (int h = 0; h < queries; h++) {
            float s = to[h][i];
            for (size_t k = 0; k < count; k++) s = fused(weights[h * apart + k], one_as(dtype, values, k * width + i), s);
            to[h][i] = s;
        }
}
typedef void Mixture(const float *weights, size_t apart, const void *values, size_t count, size_t width, float *const *to);
#define MIXTURE(name, dtype, queries) \
    static __attribute__((noinline)) void name(const float *weights, size_t apart, const void *values, size_t count, size_t width, float *const *to) { mixture_further(dtype, queries, weights, apart, values, count, width, to); }
MIXTURE(float32_mixtures, FLOAT32, MIXED)
MIXTURE(float32_mixture, FLOAT32, 1)
MIXTURE(bfloat16_mixtures, BFLOAT16, MIXED)
MIXTURE(bfloat16_mixture, BFLOAT16, 1)

/* ---- of a pass's rows ---- */

typedef struct { /* a stretch's rows over a piece of keys, for one of their heads; keys are numbered from the first that any of them sees */
    size_t heads, width, count;            /* queries of a row, keys */
    int first, rows;                       /* those that see any of these keys */
    const char *keys, *values;
    size_t begin[MOST_QUERIES], end[MOST_QUERIES];   /* of the keys that a row sees */
    float *across, *q, *scores;            /* keys laid across, queries, [MOST_QUERIES, KEY_ROOM] */
} Together;

enum { KEY_ROOM = PIECE + 2 * LANES };

static size_t stretch_room(const Model *m) { return LANES * m->width + MOST_QUERIES * (m->width + KEY_ROOM); }

/* scores of all rows against all keys, where a row sees any of LANES neighbours */
static void all_scored(int dtype, const Together *t) {
    const Across across = across_of(dtype, t->width);
    const size_t apart = across.words + across.rest;
    ScoredAcross *by_some = dtype == FLOAT32 ? float32_abreast : bfloat16_abreast, *by_one = dtype == FLOAT32 ? float32_alone : bfloat16_alone;
    for (size_t k = 0; k < t->count; k += LANES) {
        keys_across(dtype, across, t->keys + k * t->width * size_of(dtype), t->count - k, t->width, t->across);
        size_t from = 0, to = t->rows;
        while (from < to && t->end[from] <= k) from++;
        while (from < to && t->begin[to - 1] >= k + LANES) to--;
        size_t query = from * t->heads, end = to * t->heads;
        for (; query + ABREAST <= end; query += ABREAST) by_some(across, t->across, t->q + query * apart, t->scores + query * KEY_ROOM + k, KEY_ROOM);
        for (; query < end; query++) by_one(across, t->across, t->q + query * apart, t->scores + query * KEY_ROOM + k, KEY_ROOM);
    }
}

/* the mixtures of so many neighbouring queries (MIXED or 1), each of its own keys in their order: of those that all see, together */
static void mixed_together(int dtype, const Together *t, size_t query, int queries, float *const *to) {
    Mixture *one = dtype == FLOAT32 ? float32_mixture : bfloat16_mixture, *all = queries == 1 ? one : dtype == FLOAT32 ? float32_mixtures : bfloat16_mixtures;
    const size_t row = query / t->heads, last = (query + queries - 1) / t->heads, step = t->width * size_of(dtype);
    const size_t end = t->end[row], begin = t->begin[last] < end ? t->begin[last] : end; /* rows begin and end in their order */
    const float *weights = t->scores + query * KEY_ROOM;
    for (int h = 0; h < queries; h++) {
        size_t own = t->begin[(query + h) / t->heads];
        memset(to[h], 0, t->width * sizeof(float));
        if (own < begin) one(weights + h * KEY_ROOM + own, KEY_ROOM, t->values + own * step, begin - own, t->width, to + h);
    }
    if (begin < end) all(weights + begin, KEY_ROOM, t->values + begin * step, end - begin, t->width, to);
    for (int h = 0; h < queries; h++) {
        size_t own = t->begin[(query + h) / t->heads], from = own > end ? own : end, till = t->end[(query + h) / t->heads];
        if (from < till) one(weights + h * KEY_ROOM + from, KEY_ROOM, t->values + from * step, till - from, t->width, to + h);
    }
}

static void all_mixed(int dtype, float softcap, const Together *t, float *const *to) {
    const size_t queries = t->rows * t->heads;
    size_t query = 0;
    all_scored(dtype, t);
    for (size_t i = 0; i < queries; i++) {
        size_t row = i / t->heads;
        weighed_piece(t->scores + i * KEY_ROOM + t->begin[row], t->end[row] - t->begin[row], softcap, to[i] + t->width);
    }
    for (; query + MIXED <= queries; query += MIXED) mixed_together(dtype, t, query, MIXED, to + query);
    for (; query < queries; query++) mixed_together(dtype, t, query, 1, to + query);
}

/* piece number p of the keys of a stretch's key head; whoever ends the last puts all together */
static void stretch_attended(const Job *job, int layer, const Stretch *stretch, int kv_head, int p, float *room) {
    const Model *m = job->model;
    const Layer *l = m->layers + layer;
    const Row *rows = job->rows + stretch->first, *last = rows + stretch->rows - 1;
    const size_t heads = m->heads / m->kv_heads, width = m->width, stride = job->pieces * (width + 2), size = size_of(m->dtype);
    const size_t piece = first_key(l, rows) / PIECE + p, begin = most(first_key(l, rows), piece * PIECE);
    const size_t end = (piece + 1) * PIECE < (size_t)last->seen ? (piece + 1) * PIECE : (size_t)last->seen;
    const Across across = across_of(m->dtype, width);
    const char *keys = (const char *)rows->keys + (layer * rows->layer_stride + kv_head * rows->head_stride + begin * width) * size;
    float *to[MOST_QUERIES];
    Together t = {.heads = heads, .width = width, .count = end - begin, .keys = keys, .values = keys + rows->part_stride * size};
    t.across = room, t.q = t.across + LANES * width, t.scores = t.q + MOST_QUERIES * width;
    for (int r = 0; r < stretch->rows; r++) {
        size_t own = most(first_key(l, rows + r), begin), till = (size_t)rows[r].seen < end ? (size_t)rows[r].seen : end;
        if (own >= till) continue; /* those that see none of these keys stand before or behind all others */
        const float *q = job->qkv + ((size_t)(stretch->first + r) * (m->heads + 2 * m->kv_heads) + kv_head * heads) * width;
        float *partial = job->partial + ((size_t)(stretch->first + r) * m->heads + kv_head * heads) * stride + (piece - first_key(l, rows + r) / PIECE) * (width + 2);
        t.begin[t.rows] = own - begin, t.end[t.rows] = till - begin;
        for (size_t h = 0; h < heads; h++) {
            size_t query = t.rows * heads + h;
            query_laid(m->dtype, across, q + h * width, t.q + query * (across.words + across.rest));
            to[query] = partial + h * stride;
        }
        t.rows++;
    }
    all_mixed(m->dtype, l->softcap, &t, to);
    int pieces = pieces_of_stretch(l, rows, last);
    if (pieces > 1 && atomic_fetch_add(job->done + stretch->first * m->kv_heads + kv_head, 1) + 1 < pieces) return;
    atomic_store(job->done + stretch->first * m->kv_heads + kv_head, 0);
    for (int r = 0; r < stretch->rows; r++) put_together(job, l, stretch->first + r, kv_head, room);
}

/* Attention by its number among all stretches', key heads' and pieces, where there is such a piece. */
static void attend(const Job *job, int layer, long number, const Own *own) {
    int p = number % job->pieces, kv_head = number / job->pieces % job->model->kv_heads;
    const Stretch *stretch = job->stretch + number / job->pieces / job->model->kv_heads;
    const Row *rows = job->rows + stretch->first;
    if (p >= pieces_of_stretch(job->model->layers + layer, rows, rows + stretch->rows - 1)) return;
    if (stretch->rows > 1) stretch_attended(job, layer, stretch, kv_head, p, own->together);
    else attended(job, layer, stretch->first, kv_head, p, own->scores);
}

/* The stretches of a pass: rows one by one, or where enough neighbours are new tokens of a slot, each behind the other, together; from `stretch` on where it is
   not NULL. Returns how many they are; `pieces` becomes what the keys of any have in any layer, if that is more. */
static int stretches_of(const Model *m, int layers, const Row *rows, int count, Stretch *stretch, int *pieces) {
    const int heads = m->heads / m->kv_heads, longest = MOST_QUERIES / heads;
    int found = 0;
    for (int r = 0; r < count;) {
        int n = 1;
        while (r + n < count && n < longest && rows[r + n].keys == rows[r].keys && rows[r + n].place == rows[r].place + n && rows[r + n].seen >= rows[r + n - 1].seen) n++;
        if (n * heads < LEAST_QUERIES || m->cache == INT8) n = 1; /* of a cache in 8 bits each row reads its own */
        if (stretch) stretch[found] = (Stretch){r, n};
        for (int layer = 0; layer < layers; layer++) {
            int those = pieces_of_stretch(m->layers + layer, rows + r, rows + r + n - 1);
            if (those > *pieces) *pieces = those;
        }
        found++, r += n;
    }
    return found;
}
