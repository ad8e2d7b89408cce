/* The threads that share a piece of work.

   They are those of the OpenMP runtime that torch computes with, where it is handed over: its threads spin for a while behind each operation of torch's, and
   would take the cores from any others. Else a pool of our own, in a child of a fork too, which that runtime does not outlive. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

enum { SPINS = 4000 }; /* looks at a barrier before a thread gives its core away */

typedef struct {
    _Alignas(LINE) atomic_long next;
} Counter;

typedef void Work(void *argument, int thread, int threads);

static struct {
    pthread_mutex_t calls, mutex; /* one pass at a time; what follows */
    pthread_cond_t wake;
    int threads; /* that wait for work, beside who calls */
    unsigned round;
    Work *work;
    void *argument;
    int wanted;
    atomic_int busy;
    _Alignas(LINE) atomic_int arrived;
    _Alignas(LINE) atomic_uint turn; /* of the barrier; that it comes to its end and begins anew does no harm */
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */
    int (*number)(void), (*count)(void);                            /* omp_get_thread_num, omp_get_num_threads */
} pool = {.calls = PTHREAD_MUTEX_INITIALIZER, .mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void pause_for(int spun) {
    if (spun > SPINS) sched_yield(); /* another program has the core that we wait for */
#if defined(__x86_64__) || defined(__i386__)
    else __builtin_ia32_pause();
#elif defined(__aarch64__)
    else __asm__ volatile("yield");
#endif
}

static void barrier(int threads) {
    if (threads == 1) return;
    unsigned turn = atomic_load_explicit(&pool.turn, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool.arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool.turn, turn + 1, memory_order_release);
        return;
    }
    for (int spun = 0; atomic_load_explicit(&pool.turn, memory_order_acquire) == turn; spun++) pause_for(spun);
}

static void *waiting(void *number) {
    int thread = (int)(intptr_t)number;
    unsigned seen = 0;
    for (;;) {
        pthread_mutex_lock(&pool.mutex);
        while (pool.round == seen || thread >= pool.wanted) {
            seen = pool.round;
            pthread_cond_wait(&pool.wake, &pool.mutex);
        }
        seen = pool.round;
        Work *work = pool.work;
        void *argument = pool.argument;
        int threads = pool.wanted;
        pthread_mutex_unlock(&pool.mutex);
        work(argument, thread, threads);
        atomic_fetch_sub_explicit(&pool.busy, 1, memory_order_release);
    }
    return NULL;
}

#ifndef _WIN32
static void forked(void) { /* a child has none of its parent's threads */
    pthread_mutex_init(&pool.calls, NULL);
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.threads = 0;
    pool.round = 0;
    pool.parallel = NULL;
    atomic_store(&pool.busy, 0);
    atomic_store(&pool.arrived, 0);
}
#endif

static void watch_for_forks(void) {
#ifndef _WIN32
    static int watched;
    if (!watched) watched = !pthread_atfork(NULL, NULL, forked);
#endif
}

/* start what is missing of so many threads; returns how many there are, who calls among them */
static int ready(int threads) {
    pthread_attr_t attributes;
    watch_for_forks();
    if (pool.parallel || pool.threads + 1 >= threads) return threads;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (pool.threads + 1 < threads) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, waiting, (void *)(intptr_t)(pool.threads + 1))) break;
        pool.threads++;
    }
    pthread_attr_destroy(&attributes);
    return pool.threads + 1;
}

static void teamed(void *argument) { pool.work(argument, pool.number(), pool.count()); }

/* have at most so many threads do a piece of work, each with its number and how many they are */
static void together(Work *work, void *argument, int threads) {
    if (threads == 1) {
        work(argument, 0, 1);
        return;
    }
    pool.work = work;
    if (pool.parallel) {
        pool.parallel(teamed, argument, threads, 0);
        return;
    }
    pthread_mutex_lock(&pool.mutex);
    pool.argument = argument;
    pool.wanted = threads;
    atomic_store(&pool.busy, threads - 1);
    pool.round++;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.mutex);
    work(argument, 0, threads);
    for (int spun = 0; atomic_load_explicit(&pool.busy, memory_order_acquire); spun++) pause_for(spun);
}

/* The next share of a piece of work that all threads take shares of; returns whether there is one. */
static int next_share(Counter *counter, long part, long all, long *begin, long *end) {
    *begin = atomic_fetch_add_explicit(&counter->next, part, memory_order_relaxed);
    *end = *begin + part < all ? *begin + part : all;
    return *begin < all;
}

/* The same in shares that get smaller, whole blocks each and at most so many: memory is read in long pieces, and who is done first waits for little. */
static int next_blocks(Counter *counter, long block, long most, int threads, long all, long *begin, long *end) {
    long at = atomic_load_explicit(&counter->next, memory_order_relaxed), part;
    do {
        part = (all - at) / threads / block * block;
        part = part < block ? block : part > most ? most : part;
        if (at >= all) return 0;
    } while (!atomic_compare_exchange_weak_explicit(&counter->next, &at, at + part, memory_order_relaxed, memory_order_relaxed));
    *begin = at, *end = at + part < all ? at + part : all;
    return 1;
}

/* Compute with the threads of an OpenMP runtime from now on: its GOMP_parallel, omp_get_thread_num and omp_get_num_threads. */
void seodang_use_team(void *parallel, void *number, void *count) {
    watch_for_forks();
    memcpy(&pool.number, &number, sizeof number); /* a pointer to a function is none to an object, to C */
    memcpy(&pool.count, &count, sizeof count);
    memcpy(&pool.parallel, &parallel, sizeof parallel);
}
