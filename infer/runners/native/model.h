/* What is computed, as `library.py` lays it out, and what a pass has. */

#pragma once
#include "across.h"
#include "integers.h"
#include "kernels.h"
#include "low_rank.h"
#include "norms.h"
#include "threads.h"

/* A linear layer: its weights in their dtype, and biases, [outputs] in the model's, or NULL. Weights lie [outputs, inputs], or where it has a
   `stride`, [inputs, outputs] with so many numbers from an input's to the next one's, or of few bits in packs (integers.h). One that is not there has no weight. */
typedef struct {
    int64_t dtype, inputs, outputs, stride;
    int64_t number; /* by which adapters know it, or -1; those of the same input follow one another */
    const void *weight, *bias;
} Linear;

typedef struct { /* one layer; `gate`, `up` and `down` are those of the first of its experts where it has a router, which a row chooses `chosen` of */
    Linear q, k, v, o, gate, up, down, router;
    Norm attention_norm, q_norm, k_norm, after_attention, feed_norm, after_feed;
    int64_t window, turned, chosen, normalised; /* 0: none; how many of a head's numbers turn with the position; whether shares of experts sum to 1 */
    double scale, softcap;                      /* 0: none */
} Layer;

typedef struct { /* `dtype` is that of embeddings, norms and biases, `cache` that of keys and values, or INT8 (cache8.h); of `inner`, `experts` and `chosen`, any layer's most */
    int64_t dtype, hidden, heads, kv_heads, width, inner, vocab, activation, experts, chosen, cache;
    double embed_scale, softcap; /* of logits; 0: none */
    Linear head;
    Norm norm;
    const void *embed, *positions; /* learned ones, or NULL */
    const Layer *layers;
} Model;

typedef struct { /* one new token */
    int64_t keys;                                  /* address of its lane's keys in the first layer */
    int64_t layer_stride, part_stride, head_stride; /* numbers from a layer to the next, from keys to values, from a head to the next */
    int64_t place, seen;                           /* where its key goes, and how many keys it sees */
    int64_t position, id, wanted;                  /* which row of the logits is its own, or -1 */
    int64_t adapter;                               /* address of its adapter, or 0 */
} Row;

typedef struct { int first, rows; } Stretch; /* neighbouring rows whose attention is computed together */

typedef struct {
    const Model *model;
    const Row *rows;
    Stretch *stretch;
    const float *cos, *sin; /* [positions, turned] */
    float *logits;
    float *const *states; /* one a layer and one of the last norm, [rows, hidden] or NULL */
    int count, wanted, layers, pieces, stretches;
    int runs, ranks; /* of rows with adapters, and blocks of the greatest rank */
    Run *run;
    Numbers *reduced; /* what adapters make of a stage's inputs: [ABEAM, ranks, rows, BLOCK] */
    float *residual, *aside, *qkv, *partial; /* [rows, hidden] twice, [rows, (heads + 2 kv_heads) width], [rows, heads, pieces, width + 2] */
    void *attended, *opened;                /* what products read: [rows, heads width], [rows, chosen or 1, inner] */
    float *odds, *shares, *given;           /* of experts: [rows, experts], [rows, chosen], and what they give, [rows, chosen, hidden] */
    int32_t *experts;                       /* [rows, chosen] */
    char *own, *readied;            /* of each thread, and where there are many rows, of all */
    size_t own_size;
    Counter *counters;
    atomic_long *done; /* pieces of a row's key head */
} Job;

typedef struct { long begin, end; int first, rows; } Part; /* outputs of a stage's linear layers, and the rows that they are computed for */

typedef struct { /* outputs of a linear layer with a stride, from `at` up to `end`: as many at a time as a share has, `most` */
    const Linear *linear;
    long at, end, most;
    int first;       /* row */
    float y[][WIDE]; /* [rows, WIDE] */
} Panel;

typedef struct { /* what a thread has of its own; of many rows all threads ready some each, and share the first two */
    void *x;                       /* normed rows, as products read them: [rows, hidden] */
    char *x8;                      /* rows that a product of integers reads */
    float (*y)[BLOCK], (*z)[BLOCK]; /* [rows, BLOCK] */
    float *line, *scores, *room;   /* [hidden]; [ABREAST, PIECE] and the queries behind; [GROUP, inputs of a product] */
    float *together;               /* of a stretch: prompt_attention.h */
    void *gathered;                /* rows of an expert: [rows, hidden or inner] */
    int32_t *places;               /* and where they stand among all rows' choices: [rows] */
    Panel *panel;
} Own;
