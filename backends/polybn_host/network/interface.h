/* The network's interface to Python. cffi reads this file, too, so it has only declarations and no preprocessor lines. */

typedef struct { int64_t channels, height, width; } polybn_shape;

/* At most one layer of each kind, in this order: a convolution, batch norm, a max-pool, a sigmoid.
 *
 * A dense layer is a convolution whose kernel is as large as its input; the size of a kernel follows from the shapes before
 * and after it. The caller owns the arrays and keeps them until the network is freed.
 */
typedef struct {
    polybn_shape input, middle, output; /* middle: after the convolution; output: after the pool */
    int64_t convolution, norm, sigmoid; /* 0 or 1 */
    int64_t pool;                       /* side of the squares, 1 without a pool */
    float momentum, eps;
    float *weight, *bias, *gamma, *beta, *running_mean, *running_var;
} polybn_stage;

/* The images images[order[i]] for i < count, with labels[order[i]]. */
typedef struct {
    const uint8_t *images, *labels;
    const int64_t *order;
    int64_t count;
} polybn_batch;

typedef struct polybn_network polybn_network;

/* Make the buffers for batches of at most `batch` images. NULL if there is not enough memory. */
polybn_network *polybn_network_new(const polybn_stage *stages, int64_t depth, int64_t batch);
void polybn_network_free(polybn_network *net);

/* The size of all buffers in bytes. */
int64_t polybn_network_memory(const polybn_network *net);

/* Take one step of gradient descent; return the mean loss, and the number of right labels. */
double polybn_network_step(polybn_network *net, const polybn_batch *batch, float rate, int64_t *correct);

/* Write scores (count, classes) in inference mode; parameters and statistics do not change. */
void polybn_network_score(polybn_network *net, const polybn_batch *batch, float *scores);
