/* The kernels' interface to Python. cffi reads this file, too, so it has only declarations and no preprocessor lines. */

/* The memory layout of the arrays of one call. sizes[0..rank) are the axes of x without the channel axis, slowest first. The
   four arrays are x, dy, the result (y or dx) and where; strides count bytes, and may be 0 or negative. */
typedef struct {
    int64_t channels;
    int64_t count;  /* number of values per channel, before where deletes some */
    int32_t stored; /* dtype of x, dy and the result: 0 float16, 1 bfloat16, 2 float32, 3 float64 */
    int32_t rank;
    int64_t sizes[64];
    int64_t channel_stride[4];
    int64_t strides[4][64];
} polybn_geometry;

/* One forward call. Vectors hold one number per channel: double if x is float64, else float. All pointers except x may be
   null, for arrays that are not given and results that are not wanted. */
typedef struct {
    const polybn_geometry *geometry;
    const void *x, *where;
    const void *counts; /* int64: number of values that take part, per channel; null without where */
    const void *gamma, *beta, *running_mean, *running_var;
    void *y, *new_mean, *new_var;
    void *mean, *m2;   /* the moments */
    void *saved;       /* double (5, channels): m1, delta, v, r, and 1 where the channel left the range (S10) */
    double momentum, eps;
    int32_t training, unbiased;
} polybn_forward_call;

/* The derivative of a forward call, which has written `saved`. */
typedef struct {
    const polybn_geometry *geometry;
    const void *x, *where;
    const void *counts;
    const void *gamma, *dy;
    const void *saved;
    void *dx, *dgamma, *dbeta, *dmean, *dvar; /* the last two, for the running statistics, only in inference */
    double eps;
    int32_t training;
} polybn_backward_call;

/* Both return 0, or 1 if there is not enough memory. */
int polybn_forward(const polybn_forward_call *);
int polybn_backward(const polybn_backward_call *);

/* Whether there are values that cannot be a variance: negative, NaN or infinite. */
int polybn_bad_variances(const void *variance, int64_t channels, int32_t stored);

/* Set the number of threads that share large calls, the caller's included. */
void polybn_set_threads(int threads);

/* Return the instruction set in use; choose another, or with "" the best one. Choosing returns 0 if the processor lacks it. */
const char *polybn_instructions(void);
int polybn_use_instructions(const char *name);
