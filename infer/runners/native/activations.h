/* What a feed-forward layer does to each of its numbers, to float32's rounding. */

#pragma once
#include "kernels.h"

enum { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

INLINE vf signed_as(vf size, vf x) { return (vf)((vi)size | ((vi)x & (int32_t)0x80000000)); }

/* the hyperbolic tangent: a polynomial about zero (Cephes), beyond it by e to the 2x */
INLINE vf tangent(vf x) {
    vf size = size_of_each(x), square = x * x;
    vf p = square * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    return chosen(size > every(0.625f), signed_as(1.0f - 2.0f / (exponential(size + size) + 1.0f), x), p * square * x + x);
}

/* the error function: a polynomial about zero, beyond it 1 less e to another (N. Juffa) */
INLINE vf error_function(vf x) {
    vf size = size_of_each(x), square = x * x;
    vf far = size * -1.72853470e-5f + 3.83197126e-4f;
    far = far * square + (size * -3.88396438e-3f + 2.42546219e-2f);
    far = far * size - 1.06777877e-1f;
    far = far * size - 6.34846687e-1f;
    far = far * size - 1.28717512e-1f;
    far = far * size - size;
    vf near = square * -5.96761703e-4f + 4.99119423e-3f;
    near = near * square - 2.67681349e-2f;
    near = near * square + 1.12819925e-1f;
    near = near * square - 3.76125336e-1f;
    near = near * square + 1.28379166e-1f;
    return chosen(size > every(0.927734375f), signed_as(1.0f - exponential(far), x), near * x + x);
}

/* GELU by the tangent is x (1 + tanh(u)) / 2, which is x / (1 + exp(-2u)) */
INLINE vf activated(int kind, vf x) {
    if (kind == SILU) return x / (1.0f + exponential(-x));
    if (kind == GELU) return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    if (kind == GELU_TANH) return x / (1.0f + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));
    return chosen(x < every(0), every(0), x);
}

/* so many numbers, in whole vectors, each activated, and multiplied with one of `by` where there is one */
INLINE void activate_as(int kind, float *x, const float *by, size_t count) {
    for (size_t i = 0; i < count; i += LANES) store(x + i, by ? activated(kind, load(x + i)) * load(by + i) : activated(kind, load(x + i)));
}
static void activate(int kind, float *x, const float *by, size_t count) {
    switch (kind) {
        case SILU: activate_as(SILU, x, by, count); break;
        case GELU: activate_as(GELU, x, by, count); break;
        case GELU_TANH: activate_as(GELU_TANH, x, by, count); break;
        default: activate_as(RELU, x, by, count);
    }
}

/* so many numbers, in whole vectors, softly held between -bound and bound */
INLINE void bound_softly(float *x, float bound, size_t count) {
    for (size_t i = 0; i < count; i += LANES) store(x + i, bound * tangent(load(x + i) / bound));
}
