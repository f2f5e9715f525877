/* The instructions that every processor of the architecture has: SSE2 or NEON. */
#define WIDTH 2
#define HALF_CONVERSION 0
#define PASSES polybn_passes_baseline
#include "passes.h"
