/* Feed-forward layers of many experts, of which each row chooses a few; each expert's weights are read once, for the rows that chose it. */

/* a row's experts, the likeliest first, and what share each has of the sum */
static void routed(const Job *job, const Layer *l, int r, const Own *own) {
    const Linear *router = &l->router;
    float *odds = job->odds + r * job->model->experts, *shares = job->shares + r * l->chosen, largest, all = 0, sum = 0;
    for (long o = 0; o < router->outputs; o += BLOCK) {
        int n = product(job, router, o, own->x, r, 1, own->y, own);
        memcpy(odds + o, own->y[0], n * sizeof(float));
    }
    largest = odds[0];
    for (int e = 1; e < router->outputs; e++) largest = odds[e] > largest ? odds[e] : largest;
    for (int e = 0; e < router->outputs; e++) all += odds[e] = expf(odds[e] - largest);
    for (int i = 0; i < l->chosen; i++) {
        int best = -1;
        for (int e = 0; e < router->outputs; e++)
            if (!(odds[e] < 0) && (best < 0 || odds[e] > odds[best])) best = e;
        job->experts[r * l->chosen + i] = best;
        sum += shares[i] = odds[best];
        odds[best] = -1; /* taken */
    }
    for (int i = 0; i < l->chosen; i++) shares[i] /= l->normalised ? sum : all;
}

/* Gather what an expert's rows read, from one row or one choice of a row to the next, and where they stand among all choices; returns how many they are. */
static int gathered(const Job *job, const Layer *l, int expert, const Linear *reader, const void *from, int by_row, const Own *own) {
    size_t size = reader->inputs * read_size(reader->dtype);
    int n = 0;
    for (int i = 0; i < job->count * l->chosen; i++)
        if (job->experts[i] == expert) {
            memcpy((char *)own->gathered + n * size, (const char *)from + (by_row ? i / l->chosen : i) * size, size);
            own->places[n++] = i;
        }
    return n;
}

/* one of an expert's linear layers, which lie so many apart */
static Linear of_expert(const Linear *first, long expert, int apart) {
    Linear one = *first;
    one.weight = (const char *)first->weight + expert * apart * first->outputs * first->inputs * size_of(first->dtype);
    return one;
}

static void experts_opened(const Job *job, const Layer *l, const Own *own, long begin, long end) {
    long outputs = in_blocks(&l->up), last = -1;
    int rows = 0;
    for (long at = begin; at < end; at += BLOCK) {
        long expert = at / outputs, o = at % outputs;
        if (expert != last) rows = gathered(job, l, expert, &l->up, own->x, 1, own), last = expert;
        if (!rows) continue;
        Linear gate = of_expert(&l->gate, expert, 2), up = of_expert(&l->up, expert, 2); /* each gate lies before its other branch */
        int n = opened(job, &gate, &up, o, own->gathered, 0, rows, own);
        for (int i = 0; i < rows; i++) put(read_size(l->down.dtype), job->opened, own->places[i] * l->down.inputs + o, own->y[i], n);
    }
}

static void experts_shut(const Job *job, const Layer *l, const Own *own, long begin, long end) {
    long outputs = in_blocks(&l->down), last = -1;
    int rows = 0;
    for (long at = begin; at < end; at += BLOCK) {
        long expert = at / outputs, o = at % outputs;
        if (expert != last) rows = gathered(job, l, expert, &l->down, job->opened, 0, own), last = expert;
        if (!rows) continue;
        Linear down = of_expert(&l->down, expert, 1);
        int n = product(job, &down, o, own->gathered, 0, rows, own->y, own);
        for (int i = 0; i < rows; i++) memcpy(job->given + own->places[i] * down.outputs + o, own->y[i], n * sizeof(float));
    }
}

/* what a row's experts give, by their shares, added to the residual stream */
static void weighed(const Job *job, const Layer *l, int r) {
    size_t hidden = job->model->hidden;
    const float *shares = job->shares + r * l->chosen, *given = job->given + r * l->chosen * hidden;
    for (size_t i = 0; i < hidden; i++) {
        float all = 0;
        for (int c = 0; c < l->chosen; c++) all = fused(shares[c], given[c * hidden + i], all);
        job->residual[r * hidden + i] += all;
    }
}
