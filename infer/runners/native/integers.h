/* Products of integers: weights in 8 or 4 bits and inputs in 8, in groups of 32 inputs with a scale each, as GGUF's Q8_0 and Q4_1 have them (ggml, `block_q8_0`,
   `block_q4_1`). A weight is level * scale, of 4 bits level * scale + offset, with levels from -127 to 127 and from 0 to 15.

   A weight lies in packs of BLOCK outputs: group by group its levels, 32 inputs of 16 outputs as 8 runs of 4 inputs, each the 4 bytes of one output behind
   those of another; in 4 bits the first 4 runs are the lower halves of the bytes and the others the upper. Behind all groups their scales, float16 [groups, BLOCK],
   or [groups, 2, BLOCK] with the offsets, filled up to whole lines. So an integer dot product of four bytes, which every CPU with such an instruction has, fills
   a lane with an output: nothing is summed across lanes, and memory is read in its order.

   The integers are exact. Of floats, an output of a row sums its groups in their order, whatever runs beside it. */

#pragma once
#include "kernels.h"
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

enum { SET = 32, RUN = 4, RUNS = SET / RUN, FAR = 16384 }; /* inputs that share a scale; how they lie; bytes ahead, at which memory is asked */
#if defined(__AVX512VNNI__)
enum { TILE8 = 8 }; /* rows whose sums are in registers at a time */
#else
enum { TILE8 = 4 };
#endif

/* bytes of a group's levels and of its scales (and offsets) in a pack, and of a pack */
static inline size_t levels_size(int dtype) { return dtype == INT8 ? SET * BLOCK : SET * BLOCK / 2; }
static inline size_t scales_size(int dtype) { return dtype == INT8 ? 2 * BLOCK : 4 * BLOCK; }
static inline size_t pack_size(int dtype, size_t inputs) { return inputs / SET * levels_size(dtype) + (inputs / SET * scales_size(dtype) + LINE - 1) / LINE * LINE; }

/* bytes of a row's inputs: levels, then of each group a float32 scale, the float32 sum of what its levels stand for, and the int32 sum of its levels */
static size_t row8_size(size_t inputs) { return (inputs + inputs / SET * 12 + LINE - 1) / LINE * LINE; }

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
    int32_t *totals = (int32_t *)(wholes + inputs / SET);
    vf strange = every(0);
    for (size_t g = 0; g < inputs / SET; g++, x += SET, to += SET) {
        vf size = every(0);
        vi total = {0};
        int32_t levels[SET];
        UNROLL for (int i = 0; i < SET; i += LANES) {
            size = larger(size_of_each(load(x + i)), size);
            strange += load(x + i) * 0.0f;
        }
        float largest = largest_of(size), by = largest > 0 ? 127.0f / largest : 0;
        UNROLL for (int i = 0; i < SET; i += LANES) {
            vi level = (vi)(load(x + i) * by + magic) - (vi)every(magic);
            memcpy(levels + i, &level, sizeof level);
            total += level;
        }
        for (int i = 0; i < SET; i++) to[i] = (char)levels[i];
        scales[g] = largest / 127.0f;
        totals[g] = lanes_total(total);
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
    return _mm512_and_si512(run < 4 ? two : _mm512_srli_epi16(two, 4), _mm512_set1_epi8(15));
}
#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
#define HALVES
#if defined(__AVXVNNI__)
enum { OFFSET = 128 };
#else
enum { OFFSET = 0 };
#endif
INLINE __m256i run_of(int dtype, const char *at, int run) {
    if (dtype == INT8) return _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(at + run * LINE)), _mm256_set1_epi8((char)OFFSET));
    __m256i two = _mm256_loadu_si256((const __m256i *)(at + run % 4 * LINE));
    return _mm256_and_si256(run < 4 ? two : _mm256_srli_epi16(two, 4), _mm256_set1_epi8(15));
}
#endif

/* y[row][output] of one pack and so many rows; of what comes next in memory each tile of a pack asks for its part, every `parts`th line from `part` on */
INLINE void tile8(int dtype, int rows, const char *w, size_t inputs, const char *x, size_t stride, float (*y)[BLOCK], int part, int parts) {
    const size_t groups = inputs / SET, size = levels_size(dtype), lines = size / LINE;
    const uint16_t *scales = (const uint16_t *)(w + groups * size);
    const size_t step = scales_size(dtype) / 2; /* of a group's scales, behind which its offsets are */
    const char *next = w + (parts > 1 ? pack_size(dtype, inputs) : FAR);
#define LEVELS(r) (x + (r) * stride + g * SET)
#define SCALE(r) (*(const float *)(x + (r) * stride + inputs + 4 * g))
#define WHOLE(r) (*(const float *)(x + (r) * stride + inputs + 4 * (groups + g)))
#define TOTAL(r) (*(const int32_t *)(x + (r) * stride + inputs + 4 * (2 * groups + g)))
#if defined(__AVX512VNNI__)
    __m512 acc[TILE8];
    UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm512_setzero_ps();
    for (size_t g = 0; g < groups; g++) {
        __m512i dot[TILE8];
        UNROLL for (int r = 0; r < rows; r++) dot[r] = dtype == INT8 ? _mm512_set1_epi32(-OFFSET * TOTAL(r)) : _mm512_setzero_si512();
        for (size_t line = part; line < lines; line += parts) __builtin_prefetch(next + g * size + line * LINE, 0, 2);
        UNROLL for (int run = 0; run < RUNS; run++) {
            __m512i left = run_of(dtype, w + g * size, run);
            UNROLL for (int r = 0; r < rows; r++) dot[r] = _mm512_dpbusd_epi32(dot[r], left, _mm512_set1_epi32(four(LEVELS(r) + run * RUN)));
        }
        __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scales + g * step)));
        UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), _mm512_mul_ps(scale, _mm512_set1_ps(SCALE(r))), acc[r]);
        if (dtype == INT4) {
            __m512 offset = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scales + g * step + BLOCK)));
            UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(WHOLE(r)), acc[r]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) _mm512_storeu_ps(y[r], acc[r]);
#elif defined(HALVES)
    for (int side = 0; side < 2; side++) { /* 8 outputs at a time */
        __m256 acc[TILE8];
        UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm256_setzero_ps();
        for (size_t g = 0; g < groups; g++) {
            __m256i dot[TILE8];
            UNROLL for (int r = 0; r < rows; r++) dot[r] = OFFSET && dtype == INT8 ? _mm256_set1_epi32(-OFFSET * TOTAL(r)) : _mm256_setzero_si256();
            for (size_t line = 2 * part + side; line < lines; line += 2 * parts) __builtin_prefetch(next + g * size + line * LINE, 0, 2);
            UNROLL for (int run = 0; run < RUNS; run++) {
                __m256i left = run_of(dtype, w + g * size + side * 32, run);
                UNROLL for (int r = 0; r < rows; r++) {
                    __m256i right = _mm256_set1_epi32(four(LEVELS(r) + run * RUN));
#if defined(__AVXVNNI__)
                    dot[r] = _mm256_dpbusd_avx_epi32(dot[r], left, right);
#else
                    if (dtype == INT8) /* levels are at most 127, so that no pair overflows 16 bits */
                        dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_sign_epi8(left, left), _mm256_sign_epi8(right, left)), _mm256_set1_epi16(1)));
                    else /* nor do all of 4 bits */
                        dot[r] = _mm256_add_epi16(dot[r], _mm256_maddubs_epi16(left, right));
                    __asm__("" : "+x"(dot[r])); /* gcc would add the runs up in pairs, and run out of registers */
#endif
                }
            }
#if !defined(__AVXVNNI__)
            if (dtype == INT4) UNROLL for (int r = 0; r < rows; r++) dot[r] = _mm256_madd_epi16(dot[r], _mm256_set1_epi16(1));
#endif
            __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + g * step + side * 8)));
            UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r]), _mm256_mul_ps(scale, _mm256_set1_ps(SCALE(r))), acc[r]);
            if (dtype == INT4) {
                __m256 offset = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + g * step + BLOCK + side * 8)));
                UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm256_fmadd_ps(offset, _mm256_set1_ps(WHOLE(r)), acc[r]);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) _mm256_storeu_ps(y[r] + side * 8, acc[r]);
    }
#else
    for (int r = 0; r < rows; r++) {
        float acc[BLOCK] = {0};
        for (size_t g = 0; g < groups; g++) {
            const int8_t *right = (const int8_t *)LEVELS(r);
            int32_t dot[BLOCK] = {0};
            for (size_t line = part; r == 0 && line < lines; line += parts) __builtin_prefetch(next + g * size + line * LINE, 0, 2);
#if defined(__ARM_FEATURE_DOTPROD)
            int8x16_t first = vld1q_s8(right), second = vld1q_s8(right + 16);
            for (int quarter = 0; quarter < 4; quarter++) { /* 4 outputs at a time */
                const int8_t *at = (const int8_t *)w + g * size + quarter * 16;
                int8x16_t left[RUNS];
                int32x4_t sums = vdupq_n_s32(0);
                UNROLL for (int run = 0; run < RUNS; run++) {
                    left[run] = vld1q_s8(at + (dtype == INT8 ? run : run % 4) * LINE);
                    if (dtype == INT4) left[run] = vandq_s8(run < 4 ? left[run] : vshrq_n_s8(left[run], 4), vdupq_n_s8(15));
                }
                sums = vdotq_laneq_s32(sums, left[0], first, 0);
                sums = vdotq_laneq_s32(sums, left[1], first, 1);
                sums = vdotq_laneq_s32(sums, left[2], first, 2);
                sums = vdotq_laneq_s32(sums, left[3], first, 3);
                sums = vdotq_laneq_s32(sums, left[4], second, 0);
                sums = vdotq_laneq_s32(sums, left[5], second, 1);
                sums = vdotq_laneq_s32(sums, left[6], second, 2);
                sums = vdotq_laneq_s32(sums, left[7], second, 3);
                vst1q_s32(dot + quarter * 4, sums);
            }
#else
            for (int run = 0; run < RUNS; run++) {
                const uint8_t *left = (const uint8_t *)w + g * size + (dtype == INT8 ? run : run % 4) * LINE;
                for (int o = 0; o < BLOCK; o++)
                    for (int i = 0; i < RUN; i++) dot[o] += (dtype == INT8 ? (int8_t)left[o * RUN + i] : left[o * RUN + i] >> (run < 4 ? 0 : 4) & 15) * right[run * RUN + i];
            }
#endif
            for (int o = 0; o < BLOCK; o++) {
                acc[o] = fused((float)dot[o], half(scales[g * step + o]) * SCALE(r), acc[o]);
                if (dtype == INT4) acc[o] = fused(half(scales[g * step + BLOCK + o]), WHOLE(r), acc[o]);
            }
        }
        memcpy(y[r], acc, sizeof acc);
    }
#endif
#undef LEVELS
#undef SCALE
#undef WHOLE
#undef TOTAL
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

/* the products of the pack number `pack` of a weight with all rows, which are in 8 bits */
static void block8(int dtype, const void *weight, size_t pack, size_t inputs, const char *x, int rows, float (*y)[BLOCK]) {
    const char *w = (const char *)weight + pack * pack_size(dtype, inputs);
    size_t stride = row8_size(inputs);
    int tiles = (rows + TILE8 - 1) / TILE8;
    for (int tile = 0; tile < tiles; tile++) {
        int n = rows / tiles + (tile < rows % tiles);
        (dtype == INT8 ? int8 : int4)[n - 1](w, inputs, x, stride, y, tile, tiles);
        x += n * stride, y += n;
    }
}
