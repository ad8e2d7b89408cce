/* What all cores together read of memory: every byte of a buffer is loaded and summed, each thread's part from front to back. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define THREADS 256
#define SUMS 8 /* so that no addition waits for the one before it */

typedef uint64_t vector __attribute__((vector_size(64)));

typedef struct {
    const vector *from;
    size_t count;
    uint64_t sum;
} part;

static void *sum_part(void *argument) {
    part *mine = argument;
    vector sums[SUMS] = {0};
    for (size_t i = 0; i + SUMS <= mine->count; i += SUMS)
        for (size_t j = 0; j < SUMS; j++) sums[j] += mine->from[i + j];
    for (size_t j = 0; j < SUMS; j++)
        for (size_t k = 0; k < 8; k++) mine->sum += sums[j][k];
    return 0;
}

/* Read a buffer aligned to 64 bytes once, on so many threads; return the seconds that it took, -1 where a thread does not start. */
double seodang_read(const void *buffer, size_t bytes, int threads) {
    pthread_t started[THREADS];
    part parts[THREADS];
    struct timespec began, ended;
    if (threads > THREADS) threads = THREADS;
    size_t each = bytes / sizeof(vector) / threads;
    volatile uint64_t sum = 0; /* so that the compiler leaves no load out */
    int running = 0;
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (; running < threads; running++) {
        parts[running] = (part){(const vector *)buffer + running * each, each, 0};
        if (pthread_create(&started[running], 0, sum_part, &parts[running])) break;
    }
    for (int i = 0; i < running; i++) {
        pthread_join(started[i], 0);
        sum += parts[i].sum;
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    return running < threads ? -1 : (ended.tv_sec - began.tv_sec) + 1e-9 * (ended.tv_nsec - began.tv_nsec);
}
