/* What Python sees of the kernels. cffi reads this file, too: declarations only, no preprocessor. */

/* How the values of one call lie in memory. A channel's values are counted by sizes[0..rank), row by row, with the channel
   axis left out. The four arrays are x, dy, the result (y or dx) and where; strides count bytes, and may be 0 or negative. */
typedef struct {
    int64_t channels;
    int64_t count;  /* of values per channel, before where deletes some */
    int32_t stored; /* dtype of x, dy and the result: 0 float16, 1 bfloat16, 2 float32, 3 float64 */
    int32_t rank;
    int64_t sizes[64];
    int64_t channel_stride[4];
    int64_t strides[4][64];
} polybn_geometry;

/* One forward call. Vectors hold one number per channel: float, or double where x is float64. Any pointer but x may be
   null: what is not given is left out, and what is not wanted is not written. */
typedef struct {
    const polybn_geometry *geometry;
    const void *x, *where;
    const void *counts; /* int64: of the values that take part, per channel; null without where */
    const void *gamma, *beta, *running_mean, *running_var;
    void *y, *new_mean, *new_var;
    void *mean, *m2;   /* the moments */
    void *saved;       /* double (5, channels): m1, delta, v, r, and 1 where the channel left the range (S10) */
    double momentum, eps;
    int32_t training, unbiased;
} polybn_forward_call;

/* The derivative of a forward call; saved is what that left. */
typedef struct {
    const polybn_geometry *geometry;
    const void *x, *where;
    const void *counts;
    const void *gamma, *dy;
    const void *saved;
    void *dx, *dgamma, *dbeta, *dmean, *dvar; /* the last two: of the running statistics, in inference */
    double eps;
    int32_t training;
} polybn_backward_call;

/* Both return 0, or 1 where memory is lacking. */
int polybn_forward(const polybn_forward_call *);
int polybn_backward(const polybn_backward_call *);

/* Count the values that are no variance (negative, NaN or infinite) and say where the first is. */
int64_t polybn_bad_variances(const void *variance, int64_t channels, int32_t stored, int64_t *first);

/* Set how many threads share large calls, the caller's among them. */
void polybn_set_threads(int threads);

/* Name the instruction set in use, and choose another: "" is the best that the processor has. Returns 0 where it lacks it. */
const char *polybn_instructions(void);
int polybn_use_instructions(const char *name);
