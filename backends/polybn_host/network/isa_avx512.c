#if defined(__x86_64__)
#pragma GCC target("avx512f,avx2,fma")
#define WIDTH 16
#define VARIANT polybn_network_avx512
#include "steps.h"
#endif
