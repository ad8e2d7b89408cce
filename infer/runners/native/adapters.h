/* What the adapters of a pass make of a stage's inputs, ahead of the products that they are added to. */

/* where a run's rows have what its adapter has made of a linear layer's input, from that number of the rank on */
static Numbers *reduced(const Job *job, const Run *run, const Linear *linear, long rank) {
    return job->reduced + (linear->number % ABEAM * job->ranks + rank / BLOCK) * job->count + run->first;
}

/* numbers `at` to `at` + GROUP of the rank, for a run's rows of x, which are whole where the products beside are of integers */
static void lowered_run(const Job *job, const Run *run, const Linear *linear, const LowRank *l, long at, const void *x, const Own *own) {
    const int dtype = job->model->dtype, some = GROUP * sizeof(float) / 2; /* rows that have room at `own->room`, rounded */
    const size_t size = linear->inputs * read_size(linear->dtype);
    Numbers *t = (Numbers *)(*reduced(job, run, linear, at) + at % BLOCK);
    x = (const char *)x + run->first * size;
    if (read_size(linear->dtype) == read_size(dtype)) {
        lowered(dtype, l, at, linear->inputs, x, run->rows, t, own->room);
        return;
    }
    for (int r = 0; r < run->rows; r += some) {
        int rows = run->rows - r < some ? run->rows - r : some;
        put(read_size(dtype), own->room, 0, (const float *)((const char *)x + r * size), rows * linear->inputs);
        lowered(dtype, l, at, linear->inputs, own->room, rows, t + r, NULL);
    }
}

/* The same of the input of so many linear layers, by all threads; returns the next counter. */
static Counter *lowered_all(const Job *job, const Linear *const *linears, int n, const void *x, const Own *own, Counter *counter, int threads) {
    long begin, end, parts = job->ranks * (BLOCK / GROUP);
    if (!job->runs) return counter;
    while (next_share(counter, 1, n * job->runs * parts, &begin, &end)) {
        const Linear *linear = linears[begin / parts / job->runs];
        const Run *run = job->run + begin / parts % job->runs;
        long at = begin % parts * GROUP;
        if (linear->number >= 0 && at < run->adapter->beside[linear->number].rank)
            lowered_run(job, run, linear, run->adapter->beside + linear->number, at, x, own);
    }
    barrier(threads);
    return counter + 1;
}

/* what adapters add to a linear layer's outputs, from `at` on, of so many rows from the first of these on */
static void raised_all(const Job *job, const Linear *linear, long at, int outputs, int first, int rows, float (*y)[BLOCK]) {
    if (linear->number < 0) return;
    for (const Run *run = job->run; run < job->run + job->runs; run++) {
        int begin = run->first > first ? run->first : first, end = run->first + run->rows < first + rows ? run->first + run->rows : first + rows;
        if (begin < end)
            raised(job->model->dtype, run->adapter->beside + linear->number, at, outputs, reduced(job, run, linear, 0) + (begin - run->first), job->count, end - begin, y + (begin - first));
    }
}

/* the runs of neighbouring rows that have the same adapter, from `run` on where it is not NULL; returns how many they are, and the blocks of the greatest rank */
static int runs_of(const Row *rows, int count, Run *run, int *ranks) {
    int runs = 0;
    for (int r = 0; r < count; r++) {
        const Adapter *adapter = (const Adapter *)rows[r].adapter;
        if (!adapter) continue;
        int more = !r || rows[r].adapter != rows[r - 1].adapter, blocks = (adapter->rank + BLOCK - 1) / BLOCK;
        if (more && run) run[runs] = (Run){adapter, r, 0};
        runs += more;
        if (run) run[runs - 1].rows++;
        if (blocks > *ranks) *ranks = blocks;
    }
    return runs;
}
