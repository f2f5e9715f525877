/* The network's public functions, which call the code for the instruction set in use. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/interface.h"
#include "model.h"

static const variant *current_variant(void) {
#if defined(__x86_64__)
    const char *set = polybn_instructions();
    if (!strcmp(set, "avx512")) return &polybn_network_avx512;
    if (!strcmp(set, "avx2") && __builtin_cpu_supports("fma")) return &polybn_network_avx2;
#endif
    return &polybn_network_baseline;
}

polybn_network *polybn_network_new(const polybn_stage *stages, int64_t depth, int64_t batch) {
    polybn_network *net = calloc(1, sizeof *net + (size_t)depth * sizeof(stage));
    if (!net) return NULL;
    net->variant = current_variant();
    net->depth = net->first = depth;
    for (int64_t k = depth - 1; k >= 0; k--) {
        memcpy(net->stages + k, stages + k, sizeof *stages);
        if (stages[k].convolution || stages[k].norm) net->first = k;
    }
    net->size = net->variant->lay_out(net, batch, NULL) - (char *)NULL;
    net->memory = aligned_alloc(64, (size_t)net->size);
    if (!net->memory) {
        free(net);
        return NULL;
    }
    memset(net->memory, 0, (size_t)net->size);
    net->variant->lay_out(net, batch, net->memory);
    net->variant->prepare(net);
    return net;
}

void polybn_network_free(polybn_network *net) {
    free(net->memory);
    free(net);
}

int64_t polybn_network_memory(const polybn_network *net) { return net->size; }

double polybn_network_step(polybn_network *net, const polybn_batch *batch, float rate, int64_t *right) {
    net->batch = *batch;
    net->rate = rate;
    return net->variant->step(net, right);
}

void polybn_network_score(polybn_network *net, const polybn_batch *batch, float *scores) {
    net->batch = *batch;
    net->scores = scores;
    net->variant->score(net);
}
