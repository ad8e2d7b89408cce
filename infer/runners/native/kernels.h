/* What a pass is made of, for the vectors of the CPU that it is built for: numbers, and products of a few rows.

   Plain C with the vector extensions that gcc and clang share; two instructions beside, a product with a sum and the dot product of bfloat16 pairs. Whatever the number of rows
   or heads that a function takes at a time, each is summed in the same order. */

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
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
enum { GROUP = 4, BLOCK = 16, PIECE = 256, LINE = 64, AHEAD = 8192, BETWEEN = 8 };
enum { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef float v4 __attribute__((vector_size(16)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

/* keep a vector in a register: where it is enough for an instruction, gcc reads it from memory again for each sum, and memory is the slower */
#if defined(__AVX512F__)
#define KEPT(v) __asm__("" : "+v"(v))
#elif defined(__AVX__)
#define KEPT(v) __asm__("" : "+x"(v))
#else
#define KEPT(v) (void)0
#endif

#ifdef __AVX512BF16__
enum { ROUNDED = 1 }; /* bfloat16 meets bfloat16: what a product reads is rounded */
#else
enum { ROUNDED = 0 };
#endif

/* ---- numbers ---- */

INLINE vf load(const float *at) { vf v; memcpy(&v, at, sizeof v); return v; }
INLINE void store(float *at, vf v) { memcpy(at, &v, sizeof v); }
INLINE vf every(float x) { return x - (vf){0}; }
INLINE vf widened(const uint16_t *at) {
#if defined(__AVX2__) && !defined(__AVX512F__) /* which gcc takes five instructions for */
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at)), 16);
#endif
    vh v;
    memcpy(&v, at, sizeof v);
    return (vf)(__builtin_convertvector(v, vu) << 16);
}
INLINE vf load_as(int dtype, const void *at, size_t i) { return dtype == FLOAT32 ? load((const float *)at + i) : widened((const uint16_t *)at + i); }
INLINE vf chosen(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf size_of_each(vf x) { return (vf)((vi)x & 0x7fffffff); }

static inline size_t most(size_t a, size_t b) { return a > b ? a : b; }
static inline float wide(uint16_t x) { uint32_t bits = (uint32_t)x << 16; float f; memcpy(&f, &bits, 4); return f; }
static inline float one_as(int dtype, const void *at, size_t i) { return dtype == FLOAT32 ? ((const float *)at)[i] : wide(((const uint16_t *)at)[i]); }

/* a * b + c, rounded once wherever that is one instruction: left to itself, a compiler fuses the two in the loop of some numbers of rows, and not of
   others (gcc for Zen 2 and 3 does so for vectors, too: sums that wait for each other it takes apart) */
INLINE vf fused_each(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_FMA)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
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

#ifdef __AVX512F__
/* the same of four times four vectors at once: sums of a[0][i] to a[3][i] in the i-th four lanes */
INLINE __m512 all_sums(vf (*a)[TILE], const int *of) {
    __m512 parts[4];
    UNROLL for (int o = 0; o < 4; o++) {
        __m512 p = (__m512)a[o][of[0]], q = (__m512)a[o][of[1]], r = (__m512)a[o][of[2]], s = (__m512)a[o][of[3]];
        p = _mm512_add_ps(_mm512_shuffle_f32x4(p, q, 0x44), _mm512_shuffle_f32x4(p, q, 0xee));
        r = _mm512_add_ps(_mm512_shuffle_f32x4(r, s, 0x44), _mm512_shuffle_f32x4(r, s, 0xee));
        parts[o] = _mm512_add_ps(_mm512_shuffle_f32x4(p, r, 0x88), _mm512_shuffle_f32x4(p, r, 0xdd));
    }
    __m512 one = _mm512_add_ps(_mm512_unpacklo_ps(parts[0], parts[1]), _mm512_unpackhi_ps(parts[0], parts[1]));
    __m512 two = _mm512_add_ps(_mm512_unpacklo_ps(parts[2], parts[3]), _mm512_unpackhi_ps(parts[2], parts[3]));
    return _mm512_add_ps(_mm512_shuffle_ps(one, two, 0x44), _mm512_shuffle_ps(one, two, 0xee));
}
#endif

/* bytes of a number as it is kept, and as products with weights of this dtype read it; before it is rounded to 8 bits it is whole */
static size_t size_of(int dtype) { return dtype == FLOAT32 ? 4 : 2; }
static size_t read_size(int dtype) { return dtype == BFLOAT16 && ROUNDED ? 2 : 4; }

/* so many numbers, in so many bytes each */
static void put(size_t size, void *to, size_t at, const float *from, size_t count) {
    if (size == 4) {
        memcpy((float *)to + at, from, 4 * count);
    } else {
        uint16_t *out = (uint16_t *)to + at;
        for (size_t i = 0; i < count; i++) out[i] = rounded(from[i]);
    }
}

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
INLINE void tile(int dtype, int outputs, int rows, const void *w, size_t inputs, const void *x, float (*y)[BLOCK], int part, int parts) {
    const size_t size = size_of(dtype), lanes = dtype == BFLOAT16 && ROUNDED ? 2 * LANES : LANES, whole = inputs / lanes * lanes;
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
                UNROLL for (int r = 0; r < rows; r++) KEPT(right[r]);
                UNROLL for (int o = 0; o < outputs; o++) {
                    __m512bh left = (__m512bh)_mm512_loadu_si512((const uint16_t *)w + o * inputs + i);
                    UNROLL for (int r = 0; r < rows; r++) acc[o][r] = (vf)_mm512_dpbf16_ps((__m512)acc[o][r], left, right[r]);
                }
                continue;
            }
#endif
            vf right[TILE];
            UNROLL for (int r = 0; r < rows; r++) right[r] = load((const float *)x + r * inputs + i);
            const int kept = rows > 1 && (dtype == FLOAT32 || LANES > 8); /* to widen takes a register more */
            if (kept) UNROLL for (int r = 0; r < rows; r++) KEPT(right[r]);
            UNROLL for (int o = 0; o < outputs; o++) {
                vf left = load_as(dtype, w, o * inputs + i);
                if (kept) KEPT(left);
                UNROLL for (int r = 0; r < rows; r++) acc[o][r] = fused_each(left, right[r], acc[o][r]);
            }
        }
    }
#ifdef __AVX512F__
    if (outputs == GROUP && rows > 1) {
        UNROLL for (int r = 0; r < rows; r += 4) {
            const int last = rows - 1, of[] = {r, r + 1 < last ? r + 1 : last, r + 2 < last ? r + 2 : last, r + 3 < last ? r + 3 : last};
            __m512 s = all_sums(acc, of);
            UNROLL for (int i = 0; i < 4; i++)
                if (r + i < rows) memcpy(y[r + i], (char *)&s + 16 * i, 16);
        }
    } else
#endif
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
typedef void Tile(const void *w, size_t inputs, const void *x, float (*y)[BLOCK], int part, int parts);
#define TILES(name, dtype, outputs, rows) \
    static __attribute__((noinline)) void name##_##rows(const void *w, size_t inputs, const void *x, float (*y)[BLOCK], int part, int parts) { tile(dtype, outputs, rows, w, inputs, x, y, part, parts); }
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
static void tiled(Tile *const *by_rows, const void *w, size_t inputs, const char *x, size_t size, int rows, float (*y)[BLOCK]) {
    int parts = (rows + TILE - 1) / TILE;
    for (int part = 0; part < parts; part++) {
        int n = rows / parts + (part < rows % parts);
        by_rows[n - 1](w, inputs, x, y, part, parts);
        x += n * inputs * size;
        y += n;
    }
}

/* The products of a group's outputs (up to 4, whose weights lie at `w`) with all rows: y[row][output]. There is room for GROUP x inputs numbers at `room`. */
static void group(int dtype, const char *w, int outputs, size_t inputs, const void *x, int rows, float (*y)[BLOCK], float *room) {
    size_t size = size_of(dtype), of_x = read_size(dtype);
    if (outputs == GROUP && rows > 2 * TILE && dtype == BFLOAT16 && !ROUNDED) { /* several tiles: widened once for all of them */
        for (size_t i = 0; i < GROUP * inputs; i++) room[i] = wide(((const uint16_t *)w)[i]);
        tiled(float32_by_four, room, inputs, x, of_x, rows, y);
    } else if (outputs == GROUP && rows > 1) /* one row has no use for a group, and memory is quicker without */
        tiled(dtype == FLOAT32 ? float32_by_four : bfloat16_by_four, w, inputs, x, of_x, rows, y);
    else
        for (int o = 0; o < outputs; o++) /* one by one, each to its place */
            tiled(dtype == FLOAT32 ? float32_by_one : bfloat16_by_one, w + o * inputs * size, inputs, x, of_x, rows, (float(*)[BLOCK])((float *)y + o));
}

/* The same of so many outputs (up to BLOCK) from `at` on of a whole weight, [outputs, inputs]. */
static void block(int dtype, const void *weight, size_t at, int outputs, size_t inputs, const void *x, int rows, float (*y)[BLOCK], float *room) {
    for (int o = 0; o < outputs; o += GROUP)
        group(dtype, (const char *)weight + (at + o) * inputs * size_of(dtype), outputs - o < GROUP ? outputs - o : GROUP, inputs, x, rows, (float(*)[BLOCK])((float *)y + o), room);
}
