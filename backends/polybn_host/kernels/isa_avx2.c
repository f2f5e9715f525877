#if defined(__x86_64__)
#pragma GCC target("avx2,f16c")
#define WIDTH 4
#define HALF_CONVERSION 1
#define PASSES polybn_passes_avx2
#include "passes.h"
#endif
