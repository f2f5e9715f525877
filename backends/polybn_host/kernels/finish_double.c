/* finish.h for float16, bfloat16 and float32, whose passes compute in float. */
typedef double wide;
typedef float passes_real;
#define NAME(name) name##_double
#define ROOT sqrt
#define PASSES_IN_DOUBLE 0
#define SMALLEST FLT_MIN
#define LARGEST FLT_MAX
/* Deviations of 2^-100 and more have all their digits in float; if their squares add up to at most 2^250, they are less than
   FLT_MAX. */
#define SMALLEST_SPREAD 0x1p-200
#define LARGEST_SPREAD 0x1p250
#define SMALLEST_COTANGENT 0x1p-100
#include "finish.h"
