#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define WIDTH 8
#define VARIANT polybn_network_avx2
#include "steps.h"
#endif
