/* A cache in 8 bits: of each position and key head `width` levels from -127 to 127, and behind them their scale, the upper half of a float32 (a bfloat16): level * scale.

   A few numbers of a key are far greater than the others, at every position the same, and would take the levels for themselves: so keys, and queries with them, are
   turned by a Hadamard matrix first (QuaRot, Ashkboos et al., 2024), which spreads each number over all and leaves their products as they are. Queries and the weights of values stay in float32, and the sums are those of attention.h: by pieces, each in one order whatever runs beside it. Nothing here is aligned. */

#pragma once
#include "activations.h"
#include "model.h"
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

enum { SCALE8 = 2 }; /* bytes of a scale */

/* numbers of the cache's own from one position to the next */
static inline size_t line_of(const Model *m) { return m->cache == INT8 ? m->width + SCALE8 : m->width; }
/* and bytes of one */
static inline size_t cached_size(const Model *m) { return m->cache == INT8 ? 1 : size_of(m->cache); }

static inline float scale8(const char *behind) { uint16_t bits; memcpy(&bits, behind, sizeof bits); return wide(bits); }

/* so many levels, as floats */
INLINE vf levels8(const char *at) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)at)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
#elif defined(__SSE2__) && LANES == 4
    __m128i bytes = _mm_cvtsi32_si128(four(at));
    bytes = _mm_unpacklo_epi8(bytes, bytes); /* each number comes to the top of its lane, and down by its sign */
    return (vf)_mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(bytes, bytes), 24));
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (vf)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8((uint32_t)four(at))))));
#else
    typedef int8_t vb __attribute__((vector_size(LANES)));
    vb bytes;
    memcpy(&bytes, at, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, vi), vf);
#endif
}

INLINE void butterflies(float *x, size_t width, size_t step) {
    for (size_t i = 0; i < width; i += 2 * step)
        for (size_t j = i; j < i + step; j++) {
            float a = x[j], b = x[j + step];
            x[j] = a + b, x[j + step] = a - b;
        }
}

/* a vector times Sylvester's Hadamard matrix of unit rows, by blocks of the greatest power of two that divides its width */
static void spread(float *x, size_t width) {
    const size_t block = width & -width;
    const float by = 1.0f / sqrtf(block);
    if (block > 1) butterflies(x, width, 1); /* steps that the compiler knows: four times as fast */
    if (block > 2) butterflies(x, width, 2);
    if (block > 4) butterflies(x, width, 4);
    if (block > 8) butterflies(x, width, 8);
    for (size_t step = 16; step < block; step *= 2)
        for (size_t i = 0; i < width; i += 2 * step)
            for (size_t j = i; j < i + step; j += LANES) {
                vf a = load(x + j), b = load(x + j + step);
                store(x + j, a + b), store(x + j + step, a - b);
            }
    for (size_t i = 0; i < width; i++) x[i] *= by;
}

/* A vector written in 8 bits: by its largest, whose 127th, rounded up so that no level is beyond 127, is the scale. One that is not finite makes it nan. */
static void put8(char *to, const float *x, size_t width) {
    const float magic = 12582912.0f;
    const size_t whole = width / LANES * LANES;
    vf size = every(0), strange = every(0);
    for (size_t i = 0; i < whole; i += LANES) size = larger(size_of_each(load(x + i)), size), strange += load(x + i) * 0.0f;
    float largest = largest_of(size), odd = sum(strange), scale;
    for (size_t i = whole; i < width; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest, odd += x[i] * 0.0f;
    largest = largest / 127.0f + odd;
    uint32_t bits;
    memcpy(&bits, &largest, sizeof bits);
    bits = (bits + 0xffff) & 0xffff0000;
    memcpy(&scale, &bits, sizeof bits);
    float by = scale >= 1.17549435e-38f ? 1.0f / scale : 0; /* below, its inverse is none */
    for (size_t i = 0; i < whole; i += LANES) {
        vi level = (vi)(load(x + i) * by + magic) - (vi)every(magic);
        for (int j = 0; j < LANES; j++) to[i + j] = (char)level[j];
    }
    for (size_t i = whole; i < width; i++) {
        float shifted = fused(x[i], by, magic) - magic;
        to[i] = (char)(int)(odd == odd ? shifted : 0);
    }
    uint16_t upper = bits >> 16;
    memcpy(to + width, &upper, sizeof upper);
}

/* the sums of four vectors */
INLINE v4 sums8(vf a, vf b, vf c, vf d) {
#if defined(__AVX512F__)
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d), _mm512_unpackhi_ps((__m512)c, (__m512)d));
    __m512d left = _mm512_unpacklo_pd((__m512d)ab, (__m512d)cd), right = _mm512_unpackhi_pd((__m512d)ab, (__m512d)cd);
    return folded((vf)_mm512_add_ps((__m512)left, (__m512)right));
#else
    return sums(a, b, c, d);
#endif
}

/* scores of so many queries (1 to ABREAST) against so many keys, [queries, PIECE]; of what is read `next`, as long, memory is asked meanwhile */
INLINE void scored8(int heads, const float *q, const char *keys, const char *next, size_t count, size_t width, float *scores) {
    const size_t line = width + SCALE8, whole = width / LANES * LANES;
    for (size_t k = 0; k < count; k += GROUP) {
        const char *at[GROUP];
        for (size_t ahead = 0; ahead < GROUP * line; ahead += LINE) __builtin_prefetch(next + k * line + ahead);
        v4 scale;
        vf acc[ABREAST][GROUP];
        UNROLL for (int j = 0; j < GROUP; j++) at[j] = keys + (k + j < count ? k + j : count - 1) * line, scale[j] = scale8(at[j] + width);
        UNROLL for (int h = 0; h < heads; h++) {
            UNROLL for (int j = 0; j < GROUP; j++) acc[h][j] = every(0);
        }
        for (size_t i = 0; i < whole; i += LANES) {
            UNROLL for (int j = 0; j < GROUP; j++) {
                vf key = levels8(at[j] + i);
                UNROLL for (int h = 0; h < heads; h++) acc[h][j] = fused_each(load(q + h * width + i), key, acc[h][j]);
            }
        }
        UNROLL for (int h = 0; h < heads; h++) {
            v4 s = sums8(acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
            for (size_t i = whole; i < width; i++) /* what no vector holds */
                for (int j = 0; j < GROUP; j++) s[j] = fused(q[h * width + i], (int8_t)at[j][i], s[j]);
            s *= scale;
            memcpy(scores + h * PIECE + k, &s, sizeof s); /* there is room behind the last */
        }
    }
}

/* mixtures of values by so many heads' weights, of so many vectors from number `i` of a value on; memory is asked for what is read `next`, if anything */
INLINE void mixed8(int heads, int vectors, const float *weights, const char *values, const char *next, size_t count, size_t width, size_t i, float *to, size_t to_stride) {
    vf acc[ABREAST][4];
    UNROLL for (int h = 0; h < heads; h++) {
        UNROLL for (int v = 0; v < vectors; v++) acc[h][v] = every(0);
    }
    for (size_t k = 0; k < count; k++) {
        if (next) __builtin_prefetch(next + k * (width + SCALE8));
        UNROLL for (int v = 0; v < vectors; v++) {
            vf value = levels8(values + k * (width + SCALE8) + i + v * LANES);
            UNROLL for (int h = 0; h < heads; h++) acc[h][v] = fused_each(every(weights[h * PIECE + k]), value, acc[h][v]);
        }
    }
    UNROLL for (int h = 0; h < heads; h++) {
        UNROLL for (int v = 0; v < vectors; v++) store(to + h * to_stride + i + v * LANES, acc[h][v]);
    }
}

/* what `abreast` of attention.h makes of float keys, of keys and values in 8 bits; the scales of values go into their weights */
INLINE void abreast8(int heads, const float *q, const char *keys, const char *values, size_t count, size_t width, float softcap, float *scores, float *to, size_t to_stride) {
    scored8(heads, q, keys, values, count, width, scores);
    for (int h = 0; h < heads; h++) {
        float *s = scores + h * PIECE;
        weighed_piece(s, count, softcap, to + h * to_stride + width);
        for (size_t k = 0; k < count; k++) s[k] *= scale8(values + k * (width + SCALE8) + width);
    }
    size_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) mixed8(heads, 4, scores, values, i ? NULL : keys + count * (width + SCALE8), count, width, i, to, to_stride);
    for (; i + LANES <= width; i += LANES) mixed8(heads, 1, scores, values, NULL, count, width, i, to, to_stride);
    for (; i < width; i++)
        for (int h = 0; h < heads; h++) {
            float s = 0;
            for (size_t k = 0; k < count; k++) s = fused(scores[h * PIECE + k], (int8_t)values[k * (width + SCALE8) + i], s);
            to[h * to_stride + i] = s;
        }
}

/* one piece for all queries of a key head */
static void piece8(const Model *m, float softcap, const float *q, const char *keys, const char *values, size_t count, float *scores, float *to, size_t to_stride) {
    const size_t heads = m->heads / m->kv_heads, width = m->width;
    for (size_t h = 0; h < heads; h += ABREAST) {
        const float *own = q + h * width;
        float *out = to + h * to_stride;
        switch (heads - h < ABREAST ? heads - h : ABREAST) {
            case 1: abreast8(1, own, keys, values, count, width, softcap, scores, out, to_stride); break;
            case 2: abreast8(2, own, keys, values, count, width, softcap, scores, out, to_stride); break;
#if ABREAST > 2
            case 3: abreast8(3, own, keys, values, count, width, softcap, scores, out, to_stride); break;
            case 4: abreast8(4, own, keys, values, count, width, softcap, scores, out, to_stride); break;
#endif
        }
    }
}
