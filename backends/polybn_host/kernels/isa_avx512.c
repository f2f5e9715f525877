#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c")
#define WIDTH 8
#define HALF_CONVERSION 1
#define PASSES polybn_passes_avx512
#include "passes.h"
#endif
