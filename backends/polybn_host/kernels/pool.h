/* Threads that wait without spinning. */
#pragma once
#include <stdint.h>

/* Call work(context, task) for every task, on several threads where they are free; return when all are done. */
void pool_run(void (*work)(void *context, int64_t task), void *context, int64_t tasks);

/* How many threads a call may use, the caller's among them. */
int pool_threads(void);
