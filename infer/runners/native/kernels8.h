/* Products in 8 bits: weights and inputs in groups of 32 inputs with a scale each, as GGUF's Q8_0 has them (ggml, `block_q8_0`).

   A weight lies in packs of BLOCK outputs: group by group its levels, 32 inputs of 16 outputs as 8 runs of 4 inputs, each the 4 bytes of one output behind
   those of another; behind all groups their scales, float16 [groups, BLOCK], filled up to whole lines. So an integer dot product of four bytes, which every
   CPU with such an instruction has, fills a lane with an output: nothing is summed across lanes, and memory is read in its order.

   The integers are exact. Of floats, an output of a row sums its groups in their order, whatever runs beside it. */

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

enum { SET = 32, RUN = 4, RUNS = SET / RUN, LEVELS = SET * BLOCK, FAR = 16384 }; /* inputs that share a scale; how they lie; bytes ahead, at which memory is asked */
#if defined(__AVX512VNNI__)
enum { TILE8 = 8 }; /* rows whose sums are in registers at a time */
#else
enum { TILE8 = 4 };
#endif

/* bytes of a pack, and of a row's inputs: levels, then a float32 scale and an int32 a group: what the levels' sum of a dot product begins with */
static size_t pack_size(size_t inputs) { return inputs / SET * LEVELS + (inputs / SET * 2 * BLOCK + LINE - 1) / LINE * LINE; }
static size_t row8_size(size_t inputs) { return (inputs + inputs / SET * 8 + LINE - 1) / LINE * LINE; }

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
INLINE int32_t total_of(vi v) {
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
    int32_t *begins = (int32_t *)(scales + inputs / SET);
    vf strange = every(0);
    for (size_t g = 0; g < inputs / SET; g++, x += SET, to += SET) {
        vf size = every(0);
        vi total = {0};
        int32_t levels[SET];
        UNROLL for (int i = 0; i < SET; i += LANES) {
            size = larger((vf)((vi)load(x + i) & 0x7fffffff), size);
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
#if defined(__AVX512VNNI__)
        begins[g] = -128 * total_of(total); /* weights are read as levels + 128 */
#else
        begins[g] = 0;
#endif
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

/* y[row][output] of one pack and so many rows; of what comes next in memory each tile of a pack asks for its part, every `parts`th line from `part` on */
INLINE void tile8(int rows, const char *w, size_t inputs, const char *x, size_t stride, float (*y)[BLOCK], int part, int parts) {
    const size_t groups = inputs / SET;
    const uint16_t *scales = (const uint16_t *)(w + groups * LEVELS);
    const char *next = w + (parts > 1 ? pack_size(inputs) : FAR);
#define SCALE(r) (*(const float *)(x + (r) * stride + inputs + 4 * g))
#define BEGIN(r) (*(const int32_t *)(x + (r) * stride + inputs + 4 * groups + 4 * g))
#if defined(__AVX512VNNI__)
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    __m512 acc[TILE8];
    UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm512_setzero_ps();
    for (size_t g = 0; g < groups; g++) {
        __m512i dot[TILE8];
        UNROLL for (int r = 0; r < rows; r++) dot[r] = _mm512_set1_epi32(BEGIN(r));
        for (int line = part; line < RUNS; line += parts) __builtin_prefetch(next + g * LEVELS + line * LINE, 0, 2);
        UNROLL for (int run = 0; run < RUNS; run++) {
            __m512i left = _mm512_xor_si512(_mm512_loadu_si512(w + g * LEVELS + run * 4 * BLOCK), flip);
            UNROLL for (int r = 0; r < rows; r++) dot[r] = _mm512_dpbusd_epi32(dot[r], left, _mm512_set1_epi32(four(x + r * stride + g * SET + run * RUN)));
        }
        __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scales + g * BLOCK)));
        UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), _mm512_mul_ps(scale, _mm512_set1_ps(SCALE(r))), acc[r]);
    }
    UNROLL for (int r = 0; r < rows; r++) _mm512_storeu_ps(y[r], acc[r]);
#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
    for (int side = 0; side < 2; side++) { /* 8 outputs at a time */
        __m256 acc[TILE8];
        UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm256_setzero_ps();
        for (size_t g = 0; g < groups; g++) {
            __m256i dot[TILE8];
            UNROLL for (int r = 0; r < rows; r++) dot[r] = _mm256_setzero_si256();
            for (int line = 2 * part + side; line < RUNS; line += 2 * parts) __builtin_prefetch(next + g * LEVELS + line * LINE, 0, 2);
            UNROLL for (int run = 0; run < RUNS; run++) {
                __m256i left = _mm256_loadu_si256((const __m256i *)(w + g * LEVELS + run * 4 * BLOCK + side * 32)), size = _mm256_sign_epi8(left, left);
                UNROLL for (int r = 0; r < rows; r++) {
                    __m256i right = _mm256_sign_epi8(_mm256_set1_epi32(four(x + r * stride + g * SET + run * RUN)), left);
#if defined(__AVXVNNI__)
                    dot[r] = _mm256_dpbusd_avx_epi32(dot[r], size, right);
#else /* levels are at most 127, so that no pair overflows 16 bits */
                    dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(_mm256_maddubs_epi16(size, right), _mm256_set1_epi16(1)));
                    __asm__("" : "+x"(dot[r])); /* gcc would add the runs up in pairs, and run out of registers */
#endif
                }
            }
            __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + g * BLOCK + side * 8)));
            UNROLL for (int r = 0; r < rows; r++) acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r]), _mm256_mul_ps(scale, _mm256_set1_ps(SCALE(r))), acc[r]);
        }
        UNROLL for (int r = 0; r < rows; r++) _mm256_storeu_ps(y[r] + side * 8, acc[r]);
    }
#else
    for (int r = 0; r < rows; r++) {
        float acc[BLOCK] = {0};
        for (size_t g = 0; g < groups; g++) {
            int32_t dot[BLOCK] = {0};
            for (int line = part; r == 0 && line < RUNS; line += parts) __builtin_prefetch(next + g * LEVELS + line * LINE, 0, 2);
#if defined(__ARM_FEATURE_DOTPROD)
            int8x16_t first = vld1q_s8((const int8_t *)x + r * stride + g * SET), second = vld1q_s8((const int8_t *)x + r * stride + g * SET + 16);
            for (int four = 0; four < 4; four++) { /* outputs at a time */
                const int8_t *at = (const int8_t *)w + g * LEVELS + four * 16;
                int32x4_t sums = vdupq_n_s32(0);
                sums = vdotq_laneq_s32(sums, vld1q_s8(at), first, 0);
                sums = vdotq_laneq_s32(sums, vld1q_s8(at + 4 * BLOCK), first, 1);
                sums = vdotq_laneq_s32(sums, vld1q_s8(at + 8 * BLOCK), first, 2);
                sums = vdotq_laneq_s32(sums, vld1q_s8(at + 12 * BLOCK), first, 3);
                sums = vdotq_laneq_s32(sums, vld1q_s8(at + 16 * BLOCK), second, 0);
                sums = vdotq_laneq_s32(sums, vld1q_s8(at + 20 * BLOCK), second, 1);
                sums = vdotq_laneq_s32(sums, vld1q_s8(at + 24 * BLOCK), second, 2);
                sums = vdotq_laneq_s32(sums, vld1q_s8(at + 28 * BLOCK), second, 3);
                vst1q_s32(dot + four * 4, sums);
            }
#else
            for (int run = 0; run < RUNS; run++)
                for (int o = 0; o < BLOCK; o++)
                    for (int i = 0; i < RUN; i++) dot[o] += (int32_t)((const int8_t *)w)[g * LEVELS + run * 4 * BLOCK + o * RUN + i] * ((const int8_t *)x)[r * stride + g * SET + run * RUN + i];
#endif
            for (int o = 0; o < BLOCK; o++) acc[o] = fused((float)dot[o], half(scales[g * BLOCK + o]) * SCALE(r), acc[o]);
        }
        memcpy(y[r], acc, sizeof acc);
    }
#endif
#undef SCALE
#undef BEGIN
}

#define TILE8S(rows) \
    static __attribute__((noinline)) void tile8_##rows(const char *w, size_t inputs, const char *x, size_t stride, float (*y)[BLOCK], int part, int parts) { tile8(rows, w, inputs, x, stride, y, part, parts); }
TILE8S(1) TILE8S(2) TILE8S(3) TILE8S(4)
#if defined(__AVX512VNNI__)
TILE8S(5) TILE8S(6) TILE8S(7) TILE8S(8)
#define MORE_8 , tile8_5, tile8_6, tile8_7, tile8_8
#else
#define MORE_8
#endif
static void (*const by_rows8[])(const char *, size_t, const char *, size_t, float (*)[BLOCK], int, int) = {tile8_1, tile8_2, tile8_3, tile8_4 MORE_8};

/* the products of the pack number `pack` of a weight with all rows, which are in 8 bits */
static void block8(const void *weight, size_t pack, size_t inputs, const char *x, int rows, float (*y)[BLOCK]) {
    const char *w = (const char *)weight + pack * pack_size(inputs);
    size_t stride = row8_size(inputs);
    int tiles = (rows + TILE8 - 1) / TILE8;
    for (int tile = 0; tile < tiles; tile++) {
        int n = rows / tiles + (tile < rows % tiles);
        by_rows8[n - 1](w, inputs, x, stride, y, tile, tiles);
        x += n * stride, y += n;
    }
}
