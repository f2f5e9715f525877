/* The instruction set in use, which is chosen when the library is loaded. */
#pragma once
#include "job.h"

/* The passes of the instruction set in use, by dtype. */
const passes *current_passes(void);
