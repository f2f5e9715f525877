/* Which passes run: chosen once, when the library is loaded. */
#pragma once
#include "job.h"

/* Passes by dtype, for the instruction set in use. */
const passes *current_passes(void);
