/* What Python sees of the kernels. cffi reads this file, too: declarations only, no preprocessor. */

/* Set how many threads share large calls, the caller's among them. */
void polybn_set_threads(int threads);
