/* finish.h for float64. */
typedef long double wide;
typedef double passes_real;
#define NAME(name) name##_wide
#define ROOT sqrtl
#define PASSES_IN_DOUBLE 1
#define SMALLEST DBL_MIN
#define LARGEST DBL_MAX
/* Within these, squares and products of deviations have all their digits. */
#define SMALLEST_SPREAD 0x1p-900L
#define LARGEST_SPREAD 0x1p1000L
#define SMALLEST_COTANGENT 0x1p-900L
#include "finish.h"
#if LDBL_MAX_EXP < 4 * DBL_MAX_EXP
#error "float64 needs a type with a wider range, which this platform lacks: plain NumPy is used instead"
#endif
