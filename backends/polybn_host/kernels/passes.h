/* All passes for the four dtypes on one instruction set, as the table PASSES; each isa_*.c includes this once. */
#include <stdlib.h>

#include "layout.h"
#include "vector.h"

INLINE floats load_f16(const uint16_t *from) { return floats_at_halves(from); }
INLINE floats load_bf16(const uint16_t *from) { return floats_at_brains(from); }
INLINE floats load_f32(const float *from) { return floats_at(from); }
INLINE doubles load_f64(const double *from) { return doubles_at(from); }

INLINE void store_f16(uint16_t *to, floats a) { floats_to_halves(to, a); }
INLINE void store_bf16(uint16_t *to, floats a) { floats_to_brains(to, a); }
INLINE void store_f32(float *to, floats a) { floats_to(to, a); }
INLINE void store_f64(double *to, doubles a) { doubles_to(to, a); }

INLINE doubles widen_at_f16(const uint16_t *from) { return doubles_from(floats_at_halves(from)); }
INLINE doubles widen_at_bf16(const uint16_t *from) { return doubles_from(floats_at_brains(from)); }
INLINE doubles widen_at_f32(const float *from) { return doubles_at_floats(from); }
INLINE doubles widen_at_f64(const double *from) { return doubles_at(from); }

#define PASTE(a, b) a##_##b
#define EXPAND(a, b) PASTE(a, b)
#define N(name) EXPAND(name, SUFFIX) /* a function of this dtype */
#define R(name) EXPAND(reals, name)  /* a function on eight values of its arithmetic */

#define COMPENSATED 0
#define real float
#define reals floats

#define SUFFIX f16
#define stored uint16_t
#include "sums.h"
#include "maps.h"
#undef SUFFIX
#define SUFFIX bf16
#include "sums.h"
#include "maps.h"
#undef SUFFIX
#undef stored
#define SUFFIX f32
#define stored float
#include "sums.h"
#include "maps.h"
#undef SUFFIX
#undef stored
#undef COMPENSATED
#undef real
#undef reals

#define COMPENSATED 1
#define real double
#define reals doubles
#define SUFFIX f64
#define stored double
#include "sums.h"
#include "maps.h"

const passes PASSES[4] = {passes_f16, passes_bf16, passes_f32, passes_f64};
