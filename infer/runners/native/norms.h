/* Norms, each over `count` numbers. */

#pragma once
#include "kernels.h"

typedef struct { /* root mean square; with a bias a layer norm, which takes the mean away first. One that is not there has no weight. */
    const void *weight, *bias;
    int64_t count;
    double eps, offset; /* what the weight is less than it counts: 1 in Gemma */
} Norm;

INLINE float sum_of(const float *x, size_t count) {
    vf acc = every(0);
    float rest = 0;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) acc += load(x + i);
    for (; i < count; i++) rest += x[i];
    return sum(acc) + rest;
}

/* x may be `to` */
INLINE void normed_as(int dtype, const Norm *norm, const float *x, float *to) {
    size_t count = norm->count, i = 0;
    vf acc = every(0);
    float rest = 0, mean = norm->bias ? sum_of(x, count) / count : 0, offset = norm->offset;
    for (; i + LANES <= count; i += LANES) acc += (load(x + i) - mean) * (load(x + i) - mean);
    for (; i < count; i++) rest += (x[i] - mean) * (x[i] - mean);
    float by = 1.0f / sqrtf((sum(acc) + rest) / count + (float)norm->eps);
    for (i = 0; i + LANES <= count; i += LANES) {
        vf y = (load(x + i) - mean) * by * (load_as(dtype, norm->weight, i) + offset);
        store(to + i, norm->bias ? y + load_as(dtype, norm->bias, i) : y);
    }
    for (; i < count; i++) {
        float y = (x[i] - mean) * by * (one_as(dtype, norm->weight, i) + offset);
        to[i] = norm->bias ? y + one_as(dtype, norm->bias, i) : y;
    }
}
static void normed(int dtype, const Norm *norm, const float *x, float *to) {
    if (dtype == FLOAT32) normed_as(FLOAT32, norm, x, to);
    else normed_as(BFLOAT16, norm, x, to);
}

/* the same of each `count` of so many numbers, in their place, where there is a norm: a head's, or all heads' at once */
static void normed_in_place(int dtype, const Norm *norm, float *x, size_t numbers) {
    for (size_t at = 0; norm->weight && at < numbers; at += norm->count) normed(dtype, norm, x + at, x + at);
}
