/* What becomes of a pass's logits: punished for what was said, masked by a grammar, cut to a shortlist, and an id chosen by its likelihood or in a race.

   What penalties.py, grammar.py, shortlist.py and rng.py have torch do, in the same order and precision; a row's numbers hang on the row alone. */

enum { OF_IDS = 32, LONGEST = 256 }; /* ids whose greatest score, and whose smallest E, is known by itself (rng.py); candidates of a shortlist, at most */

typedef struct { /* what becomes of a row, in this order; nothing where a number is 0, and 1 for repetition and t */
    const float *scores;                            /* [vocab] */
    const int64_t *past;                            /* prompt and answer: `said` ids, of which so many of the prompt */
    int64_t said, prompt;
    double repetition, frequency, presence;         /* penalties */
    const unsigned char *bits;                      /* of a grammar, one an id, the lowest of a byte first */
    int64_t bytes;
    float t, p, floor;                              /* floor: the logarithm of min_p */
    int32_t k, draws;
    int64_t key;
} Asked;

static float infinite(void) { return __builtin_inff(); }
static long blocks_of(long vocab) { return (vocab + OF_IDS - 1) / OF_IDS; }
static long end_of(long block, long vocab) { return (block + 1) * OF_IDS < vocab ? (block + 1) * OF_IDS : vocab; }

/* the greatest score of each block, and of all: nan where one of them is */
static float greatest_of(const float *x, long vocab, float *blocks) {
    float all = -infinite();
    vi wrong = (vi){0};
    long b = 0;
    for (; (b + 1) * OF_IDS <= vocab; b++) {
        vf best = load(x + b * OF_IDS);
        wrong |= best != best;
        for (int i = LANES; i < OF_IDS; i += LANES) {
            vf v = load(x + b * OF_IDS + i);
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
        for (long i = b * OF_IDS; i < vocab; i++) {
            if (x[i] != x[i]) return x[i];
            blocks[b] = x[i] > blocks[b] ? x[i] : blocks[b];
        }
        all = blocks[b] > all ? blocks[b] : all;
    }
    return all;
}

/* the sum of e to the x - `greatest`: of some blocks in float32, of all in float64 */
static double exponentials_of(const float *x, long vocab, const float *blocks, float greatest) {
    double total = 0;
    for (long b = 0; b < blocks_of(vocab);) {
        vf acc = every(0);
        for (long last = b + 16; b < last && b < blocks_of(vocab); b++) {
            if (blocks[b] - greatest < -104) continue; /* e to that is no float32 */
            if ((b + 1) * OF_IDS <= vocab)
                for (int i = 0; i < OF_IDS; i += LANES) acc += exponential(load(x + b * OF_IDS + i) - greatest);
            else
                for (long i = b * OF_IDS; i < vocab; i++) total += expf(x[i] - greatest);
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
    double further = (bits & (OF_IDS - 1)) == (uint64_t)id % OF_IDS ? 0 : exponential_of(hash_of(key, id));
    return weight / (exponential_of(bits) / OF_IDS + further);
}

static long first_of_few(const float *x, float greatest, int64_t key, const int64_t *few, int count) {
    long winner = few[0];
    double best = -1;
    for (int i = 0; i < count; i++) {
        double early = earliness(expf(x[few[i]] - greatest), key, hash_of(key, -1 - few[i] / OF_IDS), few[i]);
        if (early > best) best = early, winner = few[i];
    }
    return winner;
}

static long first_of_all(const float *x, long vocab, const float *blocks, float greatest, long likeliest, int64_t key) {
    long winner = likeliest;
    double best = earliness(1, key, hash_of(key, -1 - likeliest / OF_IDS), likeliest);
    for (long b = 0; b < blocks_of(vocab); b++) {
        if (blocks[b] - greatest < -104) continue;
        uint64_t bits = hash_of(key, -1 - b);
        if (expf(blocks[b] - greatest) * OF_IDS * 1.000001 < best * uniform_of(bits)) continue; /* -log(1 - u) is no less than u: none can be so early */
        for (long id = b * OF_IDS; id < end_of(b, vocab); id++) {
            double early = earliness(expf(x[id] - greatest), key, bits, id);
            if (early > best) best = early, winner = id;
        }
    }
    return winner;
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

/* the k likeliest, of these the nucleus, and of these who is not too unlikely: the others are -inf in `x`, which was divided by t. Returns how many are left,
   their ids in `few`; 0 where more are level with the k-th than there is room for, or a score is infinite: then it is not done. */
static int shortlisted(float *x, long vocab, const Asked *asked, float *blocks, int64_t *few) {
    float top[LONGEST], scores[LONGEST], t = asked->t, greatest = greatest_of(x, vocab, blocks);
    double before[LONGEST], reached = 0;
    int k = asked->k, count = 0, n = 0, inside = 0, left = 0;
    for (long b = 0; b < blocks_of(vocab); b++) count = insert(top, count, k, blocks[b]);
    float least = count < k ? -infinite() : top[k - 1]; /* the k-th score is no less */
    count = 0;
    for (long b = 0; b < blocks_of(vocab); b++)
        if (blocks[b] >= least)
            for (long id = b * OF_IDS; id < end_of(b, vocab); id++)
                if (x[id] >= least && x[id] > -infinite()) count = insert(top, count, k, x[id]);
    float last = count < k ? -infinite() : top[k - 1] / t;
    for (long b = 0; b < blocks_of(vocab); b++)
        if (blocks[b] / t >= last && blocks[b] > -infinite())
            for (long id = b * OF_IDS; id < end_of(b, vocab); id++) {
                float score = x[id] / t;
                if (!(score >= last) || !(x[id] > -infinite())) continue;
                if (n == LONGEST) return 0;
                int at = n++;
                for (; at && scores[at - 1] < score; at--) scores[at] = scores[at - 1], few[at] = few[at - 1];
                scores[at] = score, few[at] = id;
            }
    if (!(greatest / t < infinite())) return 0;
    for (int i = 0; i < n; i++) {
        double weight = exp((double)scores[i] - (double)scores[0]);
        reached += weight;
        before[i] = reached - weight;
    }
    float wanted = asked->p * reached; /* no finer than the scores are: a sum that is off by less reaches it too */
    for (int i = 0; i < n; i++) inside += (float)before[i] < wanted;
    float end = asked->p < 1 ? scores[inside ? inside - 1 : 0] : -infinite(), unlikely = scores[0] + asked->floor;
    for (long i = 0; i < vocab; i++) x[i] = -infinite();
    for (int i = 0; i < n && scores[i] >= end && !(scores[i] < unlikely); i++) x[few[left++]] = scores[i];
    return left;
}

/* penalties, as in penalties.py; `counts` are zeros, and are so behind it */
static void punished(float *x, long vocab, const Asked *asked, int32_t *counts) {
    if (asked->repetition != 1)
        for (int64_t i = 0; i < asked->said; i++) {
            int64_t id = asked->past[i];
            if (id < vocab) x[id] = asked->scores[id] < 0 ? asked->scores[id] * (float)asked->repetition : asked->scores[id] / (float)asked->repetition;
        }
    if (asked->frequency == 0 && asked->presence == 0) return;
    for (int64_t i = asked->prompt; i < asked->said; i++)
        if (asked->past[i] < vocab) counts[asked->past[i]]++;
    for (int64_t i = asked->prompt; i < asked->said; i++) {
        int64_t id = asked->past[i];
        if (id >= vocab || !counts[id]) continue;
        volatile float often = (float)asked->frequency * counts[id], once = (float)asked->presence; /* rounded before it is taken away */
        x[id] = x[id] - often;
        x[id] = x[id] - once;
        counts[id] = 0;
    }
}

/* -inf where an id's bit is not set */
static void masked(float *x, long vocab, const Asked *asked) {
    const unsigned char *bits = asked->bits;
    long words = asked->bytes / 4 < vocab / 32 ? asked->bytes / 4 : vocab / 32;
    vu lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (long w = 0; w < words; w++) {
        uint32_t word;
        memcpy(&word, bits + 4 * w, 4);
        for (int i = 0; i < 32; i += LANES) {
            vi set = -(vi)(((vu){0} + (word >> i)) >> lane & 1);
            store(x + 32 * w + i, chosen(set, load(x + 32 * w + i), every(-infinite())));
        }
    }
    for (long i = words * 32; i < vocab; i++)
        if (i >= 8 * asked->bytes || !(bits[i / 8] >> i % 8 & 1)) x[i] = -infinite();
}

/* An id for each row, the likeliest or, where it draws, the first to arrive, and its log-probability, each after the row's filters; -1 where a row
   is not asked for (its scores are NULL) or cannot be done here: one that is no distribution, or with more level scores than a shortlist has room for.
   `room` has space for vocab and blocks_of(vocab) floats and vocab zeros of int32. */
void seodang_choose(const Asked *rows, long count, long vocab, float *room, int64_t *ids, float *logprobs) {
    float *own = room, *blocks = own + vocab;
    int32_t *counts = (int32_t *)(blocks + blocks_of(vocab));
    for (long r = 0; r < count; r++) {
        const Asked *asked = rows + r;
        const float *x = asked->scores;
        int64_t few[LONGEST];
        int left = 0;
        ids[r] = -1;
        if (!x) continue;
        if (asked->past || asked->bits || asked->k || asked->t != 1) {
            memcpy(own, x, sizeof(float) * vocab);
            x = own;
            if (asked->past) punished(own, vocab, asked, counts);
            if (asked->bits) masked(own, vocab, asked);
            if (asked->k) {
                if (!(left = shortlisted(own, vocab, asked, blocks, few))) continue;
            } else if (asked->t != 1) {
                for (long i = 0; i < vocab; i++) own[i] /= asked->t;
            }
        }
        float greatest = greatest_of(x, vocab, blocks);
        if (!(greatest - greatest == 0)) continue; /* nan or infinite */
        long b = 0, likeliest;
        while (blocks[b] < greatest) b++;
        for (likeliest = b * OF_IDS; x[likeliest] < greatest;) likeliest++;
        ids[r] = !asked->draws ? likeliest : left ? first_of_few(x, greatest, asked->key, few, left) : first_of_all(x, vocab, blocks, greatest, likeliest, asked->key);
        logprobs[r] = (double)(x[ids[r]] - greatest) - log(exponentials_of(x, vocab, blocks, greatest));
    }
}
