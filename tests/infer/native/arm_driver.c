/* Runs step.c over memory that another machine has laid out: driver IMAGE OUTPUT THREADS

   IMAGE holds, in numbers of eight bytes, how many bytes of memory there are, how many places hold an address and how many calls there are; then
   those places; then the calls, an argument a number, addresses as places in the memory, -1 for none; then the memory, in which addresses are
   places too. OUTPUT is the memory after the last call. It knows nothing of what a model, a layer or a row consists of. Says on stdout what
   step.c was built for. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int seodang_step(const void *model, int layers, const void *rows, int count, const float *cos, const float *sin, float *logits, float *const *states, int threads);
const char *seodang_built_for(void);

enum { MODEL, LAYERS, ROWS, COUNT, COS, SIN, LOGITS, STATES, ARGUMENTS };

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void *read_whole(FILE *file, size_t size, size_t alignment) {
    void *at = aligned_alloc(alignment, (size / alignment + 1) * alignment);
    if (!at || fread(at, 1, size, file) != size) fail("the image ends early");
    return at;
}

int main(int count, char **words) {
    FILE *file = count == 4 ? fopen(words[1], "rb") : NULL;
    if (!file) fail("driver IMAGE OUTPUT THREADS");
    int64_t *sizes = read_whole(file, 3 * sizeof(int64_t), 8);
    int64_t *places = read_whole(file, sizes[1] * sizeof(int64_t), 8), *calls = read_whole(file, ARGUMENTS * sizes[2] * sizeof(int64_t), 8);
    char *memory = read_whole(file, sizes[0], 64);
    fclose(file);
    for (int64_t i = 0; i < sizes[1]; i++) *(int64_t *)(memory + places[i]) += (intptr_t)memory;
    for (int64_t i = 0; i < sizes[2]; i++) {
        const int64_t *call = calls + ARGUMENTS * i;
        void *at[ARGUMENTS];
        for (int j = 0; j < ARGUMENTS; j++) at[j] = call[j] < 0 ? NULL : memory + call[j];
        if (seodang_step(at[MODEL], call[LAYERS], at[ROWS], call[COUNT], at[COS], at[SIN], at[LOGITS], at[STATES], atoi(words[3]))) fail("no memory for a pass");
    }
    file = fopen(words[2], "wb");
    if (!file || fwrite(memory, 1, sizes[0], file) != (size_t)sizes[0] || fclose(file)) fail("the output cannot be written");
    puts(seodang_built_for());
    return 0;
}
