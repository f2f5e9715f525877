#include "interface.h"

static int wanted = 1;

void polybn_set_threads(int threads) { wanted = threads < 1 ? 1 : threads; }
