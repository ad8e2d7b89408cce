/* Products of integers: weights in 8 to 4 bits and inputs in 8, in groups of 32 inputs, as GGUF's files have them (ggml, `ggml-common.h`). A weight is

   INT8           level * scale, levels -128 to 127                            Q8_0
   INT4, INT5     level * scale + offset, levels from 0 on                     Q4_0, Q4_1; Q5_0, Q5_1
   SUPER4, SUPER5 level * (d * share) - dmin * share of the offset             Q4_K, Q5_K: d and dmin of 8 groups, shares 0 to 63 of each
   SUPER6         (level - 32) * (d * share), levels from 0 on                 Q6_K: d of 8 groups, shares -128 to 127 of each half of a group

   A weight lies in packs of BLOCK outputs: group by group its levels, 32 inputs of 16 outputs as 8 runs of 4 inputs, each the 4 bytes of one output behind
   those of another; in less than 8 bits the first 4 runs are the lower halves of the bytes and the others the upper. A fifth bit is in a run's worth of bytes behind
   these, the bit of each run at its number, a fifth and sixth in two such, for 4 runs each. Behind all groups their scales, float16 [groups, BLOCK],
   or [groups, 2, BLOCK] with the offsets; of SUPER4 and SUPER5 by 8 groups float16 d and dmin, [2, BLOCK], and bytes, shares and those of offsets, [8, 2, BLOCK];
   of SUPER6 d, [BLOCK], and bytes [16, BLOCK]; filled up to whole lines. A float16 times a byte is exact in float32: nothing is lost of what a file says.
   So an integer dot product of four bytes, which every CPU with such an instruction has, fills a lane with an output: nothing is summed across lanes, and
   memory is read in its order.

   The integers are exact. Of floats, an output of a row sums its groups in their order, whatever runs beside it. */

#pragma once
#include "kernels.h"
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

enum { INT5 = INT4 + 1, SUPER4, SUPER5, SUPER6 };
enum { SET = 32, RUN = 4, RUNS = SET / RUN, SUPER = 8, FAR = 16384 }; /* inputs that share a scale; how they lie; groups that share d; bytes ahead, at which memory is asked */
#if defined(__AVX512VNNI__)
enum { TILE8 = 8 }; /* rows whose sums are in registers at a time */
#else
enum { TILE8 = 4 };
#endif

/* bytes of a group's levels in a pack, of all scales (and offsets), and of a pack */
static inline int bits_of(int dtype) { return dtype == INT8 ? 8 : dtype == INT4 || dtype == SUPER4 ? 4 : dtype == INT5 || dtype == SUPER5 ? 5 : 6; }
static inline size_t levels_size(int dtype) { return SET * BLOCK / 8 * bits_of(dtype); }
static inline size_t super_size(int dtype) { return dtype == SUPER6 ? 2 * BLOCK + 2 * SUPER * BLOCK : 4 * BLOCK + 2 * SUPER * BLOCK; } /* of the scales of 8 groups */
static inline size_t scales_size(int dtype, size_t groups) { return dtype >= SUPER4 ? groups / SUPER * super_size(dtype) : groups * (dtype == INT8 ? 2 * BLOCK : 4 * BLOCK); }
static inline size_t pack_size(int dtype, size_t inputs) { return inputs / SET * levels_size(dtype) + (scales_size(dtype, inputs / SET) + LINE - 1) / LINE * LINE; }

/* bytes of a row's inputs: levels, then of each group a float32 scale, the float32 sum of what its levels stand for, and int32 sums of its levels and of their first half */
static size_t row8_size(size_t inputs) { return (inputs + inputs / SET * 16 + LINE - 1) / LINE * LINE; }

typedef int32_t v4i __attribute__((vector_size(16)));

INLINE vf larger(vf a, vf b) { return chosen(a > b, a, b); }
INLINE float largest_of(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#endif
    float parts[LANES];
    v4 fours[LANES / 4];
    memcpy(fours, &v, sizeof v);
    for (int i = 1; i < LANES / 4; i++) fours[0] = (v4)(((v4i)fours[0] & (fours[0] > fours[i])) | ((v4i)fours[i] & ~(fours[0] > fours[i])));
    memcpy(parts, fours, sizeof fours[0]);
    float a = parts[0] > parts[1] ? parts[0] : parts[1], b = parts[2] > parts[3] ? parts[2] : parts[3];
    return a > b ? a : b;
}
INLINE int32_t lanes_total(vi v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#endif
    v4i fours[LANES / 4];
    memcpy(fours, &v, sizeof v);
    for (int i = 1; i < LANES / 4; i++) fours[0] += fours[i];
    return (fours[0][0] + fours[0][1]) + (fours[0][2] + fours[0][3]);
}

/* A row's inputs in 8 bits: each group by its own largest, which becomes 127. One that is not finite makes the row's products nan. */
static void eight_bits(const float *x, size_t inputs, char *to) {
    const float magic = 12582912.0f;
    float *scales = (float *)(to + inputs);
    float *wholes = scales + inputs / SET;
    int32_t *totals = (int32_t *)(wholes + inputs / SET), *firsts = totals + inputs / SET;
    vf strange = every(0);
    for (size_t g = 0; g < inputs / SET; g++, x += SET, to += SET) {
        vf size = every(0);
        vi total = {0}, first = {0};
        int32_t levels[SET];
        UNROLL for (int i = 0; i < SET; i += LANES) {
            size = larger(size_of_each(load(x + i)), size);
            strange += load(x + i) * 0.0f;
        }
        float largest = largest_of(size), by = largest > 0 ? 127.0f / largest : 0;
        UNROLL for (int i = 0; i < SET; i += LANES) {
            vi level = (vi)(load(x + i) * by + magic) - (vi)every(magic);
            memcpy(levels + i, &level, sizeof level);
            if (i == SET / 2) first = total;
            total += level;
        }
        for (int i = 0; i < SET; i++) to[i] = (char)levels[i];
        scales[g] = largest / 127.0f;
        totals[g] = lanes_total(total);
        firsts[g] = lanes_total(first);
        wholes[g] = scales[g] * totals[g];
    }
    scales[0] += sum(strange);
}

static inline float half(uint16_t x) { /* of float16 */
    uint32_t sign = (uint32_t)(x & 0x8000) << 16, rest = x & 0x7fff, bits = rest >= 0x7c00 ? sign | 0x7f800000 | (rest & 0x3ff) << 13 : sign | ((rest << 13) + 0x38000000);
    float f;
    if (rest < 0x400) return (sign ? -1.0f : 1.0f) * rest * 5.9604644775390625e-8f; /* subnormal: units of 2^-24 */
    memcpy(&f, &bits, 4);
    return f;
}

static inline int32_t four(const char *at) { int32_t x; memcpy(&x, at, 4); return x; }

/* ---- the levels of a run of weights, as this CPU multiplies them: of 16 outputs, or of 8 ---- */

#if defined(__AVX512VNNI__)
enum { OFFSET = 128 }; /* of 8 bits: dot products take levels from 0 on */
INLINE __m512i run_of(int dtype, const char *at, int run) {
    if (dtype == INT8) return _mm512_xor_si512(_mm512_loadu_si512(at + run * LINE), _mm512_set1_epi8((char)OFFSET));
    __m512i two = _mm512_loadu_si512(at + run % 4 * LINE);
    __m512i low = _mm512_and_si512(run < 4 ? two : _mm512_srli_epi16(two, 4), _mm512_set1_epi8(15));
    if (bits_of(dtype) == 4) return low;
    __m512i high = _mm512_loadu_si512(at + (4 + (bits_of(dtype) == 6 ? run / 4 : 0)) * LINE);
    int to = 4 - (bits_of(dtype) == 6 ? 2 * (run % 4) : run);
    high = to > 0 ? _mm512_slli_epi16(high, to) : _mm512_srli_epi16(high, -to);
    return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(bits_of(dtype) == 6 ? 48 : 16), 0xf8); /* low | high & these */
}
#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
#define HALVES
#if defined(__AVXVNNI__)
enum { OFFSET = 128 };
#else
enum { OFFSET = 0 };
#endif
INLINE __m256i of_line(const char *at) { return _mm256_loadu_si256((const __m256i *)at); }
INLINE __m256i run_of(int dtype, const char *at, int run) {
    if (dtype == INT8) return _mm256_xor_si256(of_line(at + run * LINE), _mm256_set1_epi8((char)OFFSET));
    __m256i two = of_line(at + run % 4 * LINE);
    __m256i low = _mm256_and_si256(run < 4 ? two : _mm256_srli_epi16(two, 4), _mm256_set1_epi8(15));
    if (bits_of(dtype) == 4) return low;
    __m256i high = of_line(at + (4 + (bits_of(dtype) == 6 ? run / 4 : 0)) * LINE);
    int to = 4 - (bits_of(dtype) == 6 ? 2 * (run % 4) : run);
    high = to > 0 ? _mm256_slli_epi16(high, to) : _mm256_srli_epi16(high, -to);
    return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(bits_of(dtype) == 6 ? 48 : 16)));
}
#elif defined(__ARM_FEATURE_DOTPROD)
INLINE int8x16_t run_of(int dtype, const uint8_t *at, int run) { /* of 4 outputs */
    if (dtype == INT8) return vreinterpretq_s8_u8(vld1q_u8(at + run * LINE));
    uint8x16_t two = vld1q_u8(at + run % 4 * LINE), low = run < 4 ? vandq_u8(two, vdupq_n_u8(15)) : vshrq_n_u8(two, 4);
    if (bits_of(dtype) != 4) {
        uint8x16_t high = vld1q_u8(at + (4 + (bits_of(dtype) == 6 ? run / 4 : 0)) * LINE);
        high = vshlq_u8(high, vdupq_n_s8((int8_t)(4 - (bits_of(dtype) == 6 ? 2 * (run % 4) : run)))); /* to the right where that is less than 0 */
        low = vorrq_u8(low, vandq_u8(high, vdupq_n_u8(bits_of(dtype) == 6 ? 48 : 16)));
    }
    return dtype == SUPER6 ? vsubq_s8(vreinterpretq_s8_u8(low), vdupq_n_s8(32)) : vreinterpretq_s8_u8(low);
}
#else
INLINE int level_at(int dtype, const uint8_t *at, int run, int byte) {
    if (dtype == INT8) return (int8_t)at[run * LINE + byte];
    int low = at[run % 4 * LINE + byte] >> (run < 4 ? 0 : 4) & 15;
    if (bits_of(dtype) == 5) return low | (at[4 * LINE + byte] >> run & 1) << 4;
    return bits_of(dtype) == 4 ? low : (low | (at[(4 + run / 4) * LINE + byte] >> 2 * (run % 4) & 3) << 4) - 32;
}
#endif

/* ---- the scales of a group, or of its half, and what its offsets add; `at` is where a pack's scales begin, `o` the first of these outputs ---- */

enum { MIDDLE = 32 }; /* of 6 bits: the level that stands for 0 */
INLINE const char *shares_of(int dtype, const char *at, size_t g) { return at + g / SUPER * super_size(dtype); }
INLINE const uint8_t *share_of(int dtype, const char *at, size_t g, int half) {
    return (const uint8_t *)shares_of(dtype, at, g) + (dtype == SUPER6 ? 2 : 4) * BLOCK + (2 * (g % SUPER) + half) * BLOCK;
}
INLINE const uint16_t *halves_of(int dtype, const char *at, size_t g, int second) { /* float16 */
    if (dtype >= SUPER4) return (const uint16_t *)shares_of(dtype, at, g) + second * BLOCK;
    return (const uint16_t *)at + (dtype == INT8 ? g : 2 * g + second) * BLOCK;
}
#if defined(__AVX512VNNI__)
INLINE __m512 sixteen(const uint16_t *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }
INLINE __m512 scales_of(int dtype, const char *at, size_t g, int half) {
    __m512 d = sixteen(halves_of(dtype, at, g, 0));
    if (dtype < SUPER4) return d;
    __m128i bytes = _mm_loadu_si128((const __m128i *)share_of(dtype, at, g, half));
    return _mm512_mul_ps(d, _mm512_cvtepi32_ps(dtype == SUPER6 ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes)));
}
INLINE __m512 with_offsets(int dtype, const char *at, size_t g, __m512 whole, __m512 sum) {
    __m512 d = sixteen(halves_of(dtype, at, g, 1));
    if (dtype < SUPER4) return _mm512_fmadd_ps(d, whole, sum);
    return _mm512_fnmadd_ps(_mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)share_of(dtype, at, g, 1))))), whole, sum);
}
#elif defined(HALVES)
INLINE __m256 eight(const uint16_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }
INLINE __m256 scales_of(int dtype, const char *at, size_t g, int half, int o) {
    __m256 d = eight(halves_of(dtype, at, g, 0) + o);
    if (dtype < SUPER4) return d;
    __m128i bytes = _mm_loadl_epi64((const __m128i *)(share_of(dtype, at, g, half) + o));
    return _mm256_mul_ps(d, _mm256_cvtepi32_ps(dtype == SUPER6 ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes)));
}
INLINE __m256 with_offsets(int dtype, const char *at, size_t g, __m256 whole, __m256 sum, int o) {
    __m256 d = eight(halves_of(dtype, at, g, 1) + o);
    if (dtype < SUPER4) return _mm256_fmadd_ps(d, whole, sum);
    return _mm256_fnmadd_ps(_mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(share_of(dtype, at, g, 1) + o))))), whole, sum);
}
#else
INLINE float one_scale(int dtype, const char *at, size_t g, int part, int o) {
    float d = half(halves_of(dtype, at, g, 0)[o]);
    if (dtype < SUPER4) return d;
    uint8_t share = share_of(dtype, at, g, part)[o];
    return d * (dtype == SUPER6 ? (int8_t)share : share);
}
INLINE float one_offset(int dtype, const char *at, size_t g, int o) {
    float d = half(halves_of(dtype, at, g, 1)[o]);
    return dtype < SUPER4 ? d : -(d * share_of(dtype, at, g, 1)[o]);
}
#endif

/* y[row][output] of one pack and so many rows; of what comes next in memory each tile of a pack asks for its part, every `parts`th line from `part` on */
INLINE void tile8(int dtype, int rows, const char *w, size_t inputs, const char *x, size_t stride, float (*y)[BLOCK], int part, int parts) {
    const size_t groups = inputs / SET, size = levels_size(dtype), lines = size / LINE;
    const char *scales = w + groups * size;
    const char *next = w + (parts > 1 ? pack_size(dtype, inputs) : FAR);
    const int pieces = dtype == SUPER6 ? 2 : 1, each = RUNS / pieces; /* of a group: what has a scale of its own */
    const int offsets = dtype != INT8 && dtype != SUPER6;
#define LEVELS(r) (x + (r) * stride + g * SET)
#define SCALE(r) (*(const float *)(x + (r) * stride + inputs + 4 * g))
#define WHOLE(r) (*(const float *)(x + (r) * stride + inputs + 4 * (groups + g)))
#define TOTAL(r) (*(const int32_t *)(x + (r) * stride + inputs + 4 * (2 * groups + g)))
#define FIRST(r) (*(const int32_t *)(x + (r) * stride + inputs + 4 * (3 * groups + g)))
#define ABOVE(r) (dtype == SUPER6 ? MIDDLE * (piece ? TOTAL(r) - FIRST(r) : FIRST(r)) : dtype == INT8 ? OFFSET * TOTAL(r) : 0) /* what levels from 0 on add */
#if defined(__AVX512VNNI__)
    __m512 acc[TILE8];
    UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm512_setzero_ps();
    for (size_t g = 0; g < groups; g++) {
        __m512i dot[TILE8];
        for (size_t line = part; line < lines; line += parts) __builtin_prefetch(next + g * size + line * LINE, 0, 2);
        UNROLL for (int piece = 0; piece < pieces; piece++) {
            UNROLL for (int r = 0; r < rows; r++) dot[r] = _mm512_set1_epi32(-ABOVE(r));
            UNROLL for (int run = piece * each; run < (piece + 1) * each; run++) {
                __m512i left = run_of(dtype, w + g * size, run);
                UNROLL for (int r = 0; r < rows; r++) dot[r] = _mm512_dpbusd_epi32(dot[r], left, _mm512_set1_epi32(four(LEVELS(r) + run * RUN)));
            }
            __m512 scale = scales_of(dtype, scales, g, piece);
            UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), _mm512_mul_ps(scale, _mm512_set1_ps(SCALE(r))), acc[r]);
        }
        if (offsets) UNROLL for (int r = 0; r < rows; r++) acc[r] = with_offsets(dtype, scales, g, _mm512_set1_ps(WHOLE(r)), acc[r]);
    }
    UNROLL for (int r = 0; r < rows; r++) _mm512_storeu_ps(y[r], acc[r]);
#elif defined(HALVES)
    const int apart = dtype == INT8 || bits_of(dtype) == 4 ? each : bits_of(dtype) == 5 ? 4 : 2; /* runs whose pairs' sums, of levels up to 15, 31 or 63, do not overflow 16 bits */
    for (int side = 0; side < 2; side++) { /* 8 outputs at a time */
        __m256 acc[TILE8];
        UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm256_setzero_ps();
        for (size_t g = 0; g < groups; g++) {
            for (size_t line = 2 * part + side; line < lines; line += 2 * parts) __builtin_prefetch(next + g * size + line * LINE, 0, 2);
            UNROLL for (int piece = 0; piece < pieces; piece++) {
                __m256i dot[TILE8], whole[TILE8];
                UNROLL for (int r = 0; r < rows; r++) whole[r] = dot[r] = _mm256_set1_epi32(-ABOVE(r));
                UNROLL for (int run = piece * each; run < (piece + 1) * each; run++) {
                    __m256i left = run_of(dtype, w + g * size + side * 32, run);
                    UNROLL for (int r = 0; r < rows; r++) {
                        __m256i right = _mm256_set1_epi32(four(LEVELS(r) + run * RUN));
#if defined(__AVXVNNI__)
                        dot[r] = _mm256_dpbusd_avx_epi32(dot[r], left, right);
#else
                        if (dtype == INT8) /* levels are at most 128, of inputs 127, so that no pair overflows 16 bits */
                            dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_sign_epi8(left, left), _mm256_sign_epi8(right, left)), _mm256_set1_epi16(1)));
                        else
                            dot[r] = run % apart ? _mm256_add_epi16(dot[r], _mm256_maddubs_epi16(left, right)) : _mm256_maddubs_epi16(left, right);
                        __asm__("" : "+x"(dot[r])); /* gcc would add the runs up in pairs, and run out of registers */
                        if (dtype != INT8 && run % apart == apart - 1) whole[r] = _mm256_add_epi32(whole[r], _mm256_madd_epi16(dot[r], _mm256_set1_epi16(1)));
#endif
                    }
                }
#if !defined(__AVXVNNI__)
                if (dtype != INT8) UNROLL for (int r = 0; r < rows; r++) dot[r] = whole[r];
#endif
                __m256 scale = scales_of(dtype, scales, g, piece, side * 8);
                UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r]), _mm256_mul_ps(scale, _mm256_set1_ps(SCALE(r))), acc[r]);
            }
            if (offsets) UNROLL for (int r = 0; r < rows; r++) acc[r] = with_offsets(dtype, scales, g, _mm256_set1_ps(WHOLE(r)), acc[r], side * 8);
        }
        UNROLL for (int r = 0; r < rows; r++) _mm256_storeu_ps(y[r] + side * 8, acc[r]);
    }
#else
    for (int r = 0; r < rows; r++) {
        float acc[BLOCK] = {0};
        for (size_t g = 0; g < groups; g++) {
            const int8_t *right = (const int8_t *)LEVELS(r);
            int32_t dot[2][BLOCK] = {{0}};
            for (size_t line = part; r == 0 && line < lines; line += parts) __builtin_prefetch(next + g * size + line * LINE, 0, 2);
#if defined(__ARM_FEATURE_DOTPROD)
            int8x16_t first = vld1q_s8(right), second = vld1q_s8(right + 16);
            for (int quarter = 0; quarter < 4; quarter++) { /* 4 outputs at a time */
                const uint8_t *at = (const uint8_t *)w + g * size + quarter * 16;
                int8x16_t left[RUNS];
                int32x4_t sums = vdupq_n_s32(0);
                UNROLL for (int run = 0; run < RUNS; run++) left[run] = run_of(dtype, at, run);
                sums = vdotq_laneq_s32(sums, left[0], first, 0);
                sums = vdotq_laneq_s32(sums, left[1], first, 1);
                sums = vdotq_laneq_s32(sums, left[2], first, 2);
                sums = vdotq_laneq_s32(sums, left[3], first, 3);
                if (pieces == 2) vst1q_s32(dot[0] + quarter * 4, sums), sums = vdupq_n_s32(0);
                sums = vdotq_laneq_s32(sums, left[4], second, 0);
                sums = vdotq_laneq_s32(sums, left[5], second, 1);
                sums = vdotq_laneq_s32(sums, left[6], second, 2);
                sums = vdotq_laneq_s32(sums, left[7], second, 3);
                vst1q_s32(dot[pieces - 1] + quarter * 4, sums);
            }
#else
            for (int run = 0; run < RUNS; run++) {
                const uint8_t *left = (const uint8_t *)w + g * size;
                int32_t *sums = dot[run / each];
                for (int o = 0; o < BLOCK; o++)
                    for (int i = 0; i < RUN; i++) sums[o] += level_at(dtype, left, run, o * RUN + i) * right[run * RUN + i];
            }
#endif
            for (int o = 0; o < BLOCK; o++) {
                for (int piece = 0; piece < pieces; piece++) acc[o] = fused((float)dot[piece][o], one_scale(dtype, scales, g, piece, o) * SCALE(r), acc[o]);
                if (offsets) acc[o] = fused(one_offset(dtype, scales, g, o), WHOLE(r), acc[o]);
            }
        }
        memcpy(y[r], acc, sizeof acc);
    }
#endif
#undef LEVELS
#undef SCALE
#undef WHOLE
#undef TOTAL
#undef FIRST
#undef ABOVE
}

typedef void Tile8(const char *w, size_t inputs, const char *x, size_t stride, float (*y)[BLOCK], int part, int parts);
#define TILE8S(name, dtype, rows) \
    static __attribute__((noinline)) void name##_##rows(const char *w, size_t inputs, const char *x, size_t stride, float (*y)[BLOCK], int part, int parts) { tile8(dtype, rows, w, inputs, x, stride, y, part, parts); }
#if defined(__AVX512VNNI__)
#define MORE_TILES8(name, dtype) TILE8S(name, dtype, 5) TILE8S(name, dtype, 6) TILE8S(name, dtype, 7) TILE8S(name, dtype, 8)
#define MORE_NAMES8(name) , name##_5, name##_6, name##_7, name##_8
#else
#define MORE_TILES8(name, dtype)
#define MORE_NAMES8(name)
#endif
#define ALL_TILES8(name, dtype) \
    TILE8S(name, dtype, 1) TILE8S(name, dtype, 2) TILE8S(name, dtype, 3) TILE8S(name, dtype, 4) MORE_TILES8(name, dtype) \
    static Tile8 *const name[] = {name##_1, name##_2, name##_3, name##_4 MORE_NAMES8(name)};
ALL_TILES8(int8, INT8)
ALL_TILES8(int4, INT4)
ALL_TILES8(int5, INT5)
ALL_TILES8(super4, SUPER4)
ALL_TILES8(super5, SUPER5)
ALL_TILES8(super6, SUPER6)
static Tile8 *const *const tiles_of[] = {int8, int4, int5, super4, super5, super6}; /* from INT8 on */

/* the products of the pack number `pack` of a weight with all rows, which are in 8 bits */
static void block8(int dtype, const void *weight, size_t pack, size_t inputs, const char *x, int rows, float (*y)[BLOCK]) {
    const char *w = (const char *)weight + pack * pack_size(dtype, inputs);
    size_t stride = row8_size(inputs);
    int tiles = (rows + TILE8 - 1) / TILE8;
    for (int tile = 0; tile < tiles; tile++) {
        int n = rows / tiles + (tile < rows % tiles);
        tiles_of[dtype - INT8][n - 1](w, inputs, x, stride, y, tile, tiles);
        x += n * stride, y += n;
    }
}
