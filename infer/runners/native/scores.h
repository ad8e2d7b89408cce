/* What becomes of a pass's logits: masked by a grammar, punished for what was said, cut to a shortlist, and one id chosen by its likelihood or in a race.

   Each does what the function of torch does that calls it, in the same order and precision, row by row: [rows, vocab] of float32 without gaps. */

enum { BLOCK = 32, LONGEST = 256 }; /* ids whose greatest score, and whose smallest E, is known by itself (rng.py); candidates of a shortlist */

static float infinite(void) { return __builtin_inff(); }
static long blocks_of(long vocab) { return (vocab + BLOCK - 1) / BLOCK; }
static long end_of(long block, long vocab) { return (block + 1) * BLOCK < vocab ? (block + 1) * BLOCK : vocab; }

/* the greatest score of each block, and of all: nan where one of them is */
static float greatest_of(const float *x, long vocab, float *blocks) {
    float all = -infinite();
    vi wrong = (vi){0};
    long b = 0;
    for (; (b + 1) * BLOCK <= vocab; b++) {
        vf best = load(x + b * BLOCK);
        wrong |= best != best;
        for (int i = LANES; i < BLOCK; i += LANES) {
            vf v = load(x + b * BLOCK + i);
            wrong |= v != v;
            best = chosen(v > best, v, best);
        }
        float lanes[LANES];
        store(lanes, best);
        for (int n = LANES / 2; n; n /= 2)
            for (int i = 0; i < n; i++) lanes[i] = lanes[i + n] > lanes[i] ? lanes[i + n] : lanes[i];
        float most = blocks[b] = lanes[0];
        all = most > all ? most : all;
    }
    for (int i = 0; i < LANES; i++)
        if (wrong[i]) return __builtin_nanf("");
    if (b < blocks_of(vocab)) {
        blocks[b] = -infinite();
        for (long i = b * BLOCK; i < vocab; i++) {
            if (x[i] != x[i]) return x[i];
            blocks[b] = x[i] > blocks[b] ? x[i] : blocks[b];
        }
        all = blocks[b] > all ? blocks[b] : all;
    }
    return all;
}

/* the sum of e to the x - `greatest`: of some blocks in float32, of all in float64 */
static double total_of(const float *x, long vocab, const float *blocks, float greatest) {
    double total = 0;
    for (long b = 0; b < blocks_of(vocab);) {
        vf acc = every(0);
        for (long last = b + 16; b < last && b < blocks_of(vocab); b++) {
            if (blocks[b] - greatest < -104) continue; /* e to that is no float32 */
            if ((b + 1) * BLOCK <= vocab)
                for (int i = 0; i < BLOCK; i += LANES) acc += exponential(load(x + b * BLOCK + i) - greatest);
            else
                for (long i = b * BLOCK; i < vocab; i++) total += expf(x[i] - greatest);
        }
        float lanes[LANES];
        store(lanes, acc);
        for (int i = 0; i < LANES; i++) total += lanes[i];
    }
    return total;
}

/* ---- the race of ids, as in rng.py: the noise of an id hangs on the row's key and the id alone ---- */

static uint64_t hash_of(int64_t key, int64_t counter) {
    uint64_t bits = (uint64_t)key + (uint64_t)counter * 0x9E3779B97F4A7C15u;
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EBu;
    return bits ^ bits >> 31;
}
static double uniform_of(uint64_t bits) { return ((double)(bits >> 12) + 0.5) * 0x1p-52; }
static double exponential_of(uint64_t bits) { return -log1p(-uniform_of(bits)); }

/* how early an id of this weight arrives; `bits` are those of its block */
static double earliness(double weight, int64_t key, uint64_t bits, long id) {
    double further = (bits & (BLOCK - 1)) == (uint64_t)id % BLOCK ? 0 : exponential_of(hash_of(key, id));
    return weight / (exponential_of(bits) / BLOCK + further);
}

static long first_of_few(const float *x, float greatest, int64_t key, const int64_t *few, long count) {
    long winner = few[0];
    double best = -1;
    for (long i = 0; i < count && (!i || few[i] != few[0]); i++) { /* behind the last stands the first again */
        double early = earliness(expf(x[few[i]] - greatest), key, hash_of(key, -1 - few[i] / BLOCK), few[i]);
        if (early > best) best = early, winner = few[i];
    }
    return winner;
}

static long first_of_all(const float *x, long vocab, const float *blocks, float greatest, long likeliest, int64_t key) {
    long winner = likeliest;
    double best = earliness(1, key, hash_of(key, -1 - likeliest / BLOCK), likeliest);
    for (long b = 0; b < blocks_of(vocab); b++) {
        if (blocks[b] - greatest < -104) continue;
        uint64_t bits = hash_of(key, -1 - b);
        if (expf(blocks[b] - greatest) * BLOCK * 1.000001 < best * uniform_of(bits)) continue; /* -log(1 - u) is no less than u: none can be so early */
        for (long id = b * BLOCK; id < end_of(b, vocab); id++) {
            double early = earliness(expf(x[id] - greatest), key, bits, id);
            if (early > best) best = early, winner = id;
        }
    }
    return winner;
}

/* An id for each row: the likeliest where it does not draw, else the first to arrive, of the `count` ids `few` where these are given; and its
   log-probability, nan where a row is no distribution. Returns 0, or 1 where there is no memory. */
int seodang_choose(const float *scores, long rows, long vocab, const int64_t *keys, const char *draws, const int64_t *few, long count, int64_t *ids, float *logprobs) {
    float *blocks = malloc(sizeof(float) * blocks_of(vocab));
    if (!blocks) return 1;
    for (long r = 0; r < rows; r++) {
        const float *x = scores + r * vocab;
        float greatest = greatest_of(x, vocab, blocks);
        ids[r] = 0, logprobs[r] = __builtin_nanf("");
        if (!(greatest - greatest == 0)) continue; /* nan or infinite */
        long b = 0, likeliest;
        while (blocks[b] < greatest) b++;
        for (likeliest = b * BLOCK; x[likeliest] < greatest;) likeliest++;
        ids[r] = !draws[r] ? likeliest : few ? first_of_few(x, greatest, keys[r], few + r * count, count) : first_of_all(x, vocab, blocks, greatest, likeliest, keys[r]);
        logprobs[r] = (double)(x[ids[r]] - greatest) - log(total_of(x, vocab, blocks, greatest));
    }
    free(blocks);
    return 0;
}

/* ---- filters ---- */

/* put a number into its place among the greatest, in falling order; returns how many there are, at most `most` */
static int insert(float *top, int count, int most, float x) {
    if (count == most && x <= top[most - 1]) return count;
    int at = count < most ? count++ : most - 1;
    for (; at && top[at - 1] < x; at--) top[at] = top[at - 1];
    top[at] = x;
    return count;
}

/* one row; returns whether it is done: a row that is no distribution, or has too many scores level with the k-th, is not */
static int shortlisted(const float *x, long vocab, float t, int k, float p, float floor, float *blocks, float *kept, int64_t *few) {
    float top[LONGEST], scores[LONGEST + 1], greatest = greatest_of(x, vocab, blocks);
    double weights[LONGEST];
    int count = 0, n = 0, inside = 0;
    if (k < 1 || k > LONGEST || !(greatest - greatest == 0)) return 0;
    for (long b = 0; b < blocks_of(vocab); b++) count = insert(top, count, k, blocks[b]);
    float least = count < k ? -infinite() : top[k - 1]; /* the k-th score is no less */
    count = 0;
    for (long b = 0; b < blocks_of(vocab); b++)
        if (blocks[b] >= least)
            for (long id = b * BLOCK; id < end_of(b, vocab); id++)
                if (x[id] >= least && x[id] > -infinite()) count = insert(top, count, k, x[id]);
    float last = count < k ? -infinite() : top[k - 1] / t;
    for (long b = 0; b < blocks_of(vocab); b++)
        if (blocks[b] / t >= last && blocks[b] > -infinite())
            for (long id = b * BLOCK; id < end_of(b, vocab); id++) {
                float score = x[id] / t;
                if (!(score >= last) || !(x[id] > -infinite())) continue;
                if (n == LONGEST) return 0;
                int at = n++;
                for (; at && scores[at - 1] < score; at--) scores[at] = scores[at - 1], few[at] = few[at - 1];
                scores[at] = score, few[at] = id;
            }
    if (!(scores[0] - scores[0] == 0)) return 0; /* divided by so little that it is infinite */
    double reached = 0, before[LONGEST];
    for (int i = 0; i < n; i++) {
        weights[i] = exp((double)scores[i] - (double)scores[0]);
        reached += weights[i];
        before[i] = reached - weights[i];
    }
    float wanted = (double)p * reached;
    for (int i = 0; i < n; i++) inside += (float)before[i] < wanted;
    float end = p < 1 ? scores[inside ? inside - 1 : 0] : -infinite(), unlikely = scores[0] + floor;
    for (long i = 0; i < vocab; i++) kept[i] = -infinite();
    for (int i = 0; i < LONGEST; i++) {
        if (i < n && scores[i] >= end && !(scores[i] < unlikely)) kept[few[i]] = scores[i];
        else few[i] = few[0];
    }
    return 1;
}

/* min_p(top_p(top_k(temperature(logits, t), k), p), m) of the rows, `floors` being the logarithms of m, and their ids, [rows, LONGEST], likeliest first,
   behind the last the first again. `done` is written for each row: where it is 0, nothing else is. Returns how many are not, -1 where there is no memory. */
int seodang_shortlist(const float *logits, long rows, long vocab, const float *t, const int64_t *k, const float *p, const float *floors, float *kept, int64_t *few, char *done) {
    float *blocks = malloc(sizeof(float) * blocks_of(vocab));
    int left = 0;
    if (!blocks) return -1;
    for (long r = 0; r < rows; r++) {
        done[r] = shortlisted(logits + r * vocab, vocab, t[r], k[r] < LONGEST + 1 ? k[r] : 0, p[r], floors[r], blocks, kept + r * vocab, few + r * LONGEST);
        left += !done[r];
    }
    free(blocks);
    return left;
}

/* a row to `to`, the scores of the ids of its past divided by the factor where they are positive, else multiplied; ids beyond the vocabulary are passed over */
void seodang_repeated(const float *row, long vocab, const int64_t *past, long count, double factor, float *to) {
    memcpy(to, row, sizeof(float) * vocab);
    for (long i = 0; i < count; i++) {
        int64_t id = past[i];
        if (id >= 0 && id < vocab) to[id] = row[id] < 0 ? row[id] * (float)factor : row[id] / (float)factor;
    }
}

/* a row to `to`, -inf where the vocabulary's bit is not set, and for the ids `wrong`; those of `right` stay */
void seodang_masked(const float *row, long vocab, const unsigned char *bits, long bytes, const int64_t *wrong, long wrongs, const int64_t *right, long rights, float *to) {
    long words = bytes / 4 < vocab / 32 ? bytes / 4 : vocab / 32, first = words * 32;
    vu lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (long w = 0; w < words; w++) {
        uint32_t word;
        memcpy(&word, bits + 4 * w, 4);
        for (int i = 0; i < 32; i += LANES) {
            vi set = -(vi)(((vu){0} + (word >> i)) >> lane & 1);
            store(to + 32 * w + i, chosen(set, load(row + 32 * w + i), every(-infinite())));
        }
    }
    for (long i = first; i < vocab; i++) to[i] = i < 8 * bytes && bits[i / 8] >> i % 8 & 1 ? row[i] : -infinite();
    for (long i = 0; i < wrongs; i++) to[wrong[i]] = -infinite();
    for (long i = 0; i < rights; i++) to[right[i]] = row[right[i]];
}
