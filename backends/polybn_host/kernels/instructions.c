#include "instructions.h"

#include <string.h>

extern const passes polybn_passes_baseline[4], polybn_passes_avx2[4], polybn_passes_avx512[4];

#if defined(__x86_64__)
static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("f16c");
}
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }
#endif
static int always(void) { return 1; }

/* From best to worst. */
static const struct {
    const char *name;
    int (*available)(void);
    const passes *passes;
} sets[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, polybn_passes_avx512},
    {"avx2", has_avx2, polybn_passes_avx2},
#endif
    {"baseline", always, polybn_passes_baseline},
};

static int chosen;

const passes *current_passes(void) { return sets[chosen].passes; }
const char *polybn_instructions(void) { return sets[chosen].name; }

int polybn_use_instructions(const char *name) {
    for (int i = 0; i < (int)(sizeof sets / sizeof *sets); i++) {
        if ((*name && strcmp(name, sets[i].name)) || !sets[i].available()) continue;
        chosen = i;
        return 1;
    }
    return 0;
}

__attribute__((constructor)) static void choose(void) { polybn_use_instructions(""); }
