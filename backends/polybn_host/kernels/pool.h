/* A pool of threads that sleep when there is no work. */
#pragma once
#include <stdint.h>

/* Call work(context, task) for every task, on several threads if they are free; return when all tasks are done. */
void pool_run(void (*work)(void *context, int64_t task), void *context, int64_t tasks);

/* The number of threads that a call may use, the caller's included. */
int pool_threads(void);
