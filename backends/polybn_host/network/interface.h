/* What Python sees of the network. cffi reads this file, too: declarations only, no preprocessor. */

typedef struct { int64_t channels, height, width; } polybn_shape;

/* At most one layer of each kind, in this order: a convolution, batch norm, a max-pool, a sigmoid.
 *
 * A dense layer is a convolution whose kernel is as large as its input; the difference between the shapes before and
 * after it tells how large a kernel is. Arrays belong to the caller, who keeps them until the network is freed.
 */
typedef struct {
    polybn_shape input, middle, output; /* middle: after the convolution; output: after the pool */
    int64_t convolution, norm, sigmoid; /* 0 or 1 */
    int64_t pool;                       /* side of a square, 1 for no pool */
    float momentum, eps;
    float *weight, *bias, *gamma, *beta, *running_mean, *running_var;
} polybn_stage;

/* Images image[order[0]] ... image[order[count - 1]], with labels[order[i]]. */
typedef struct {
    const uint8_t *images, *labels;
    const int64_t *order;
    int64_t count;
} polybn_batch;

typedef struct polybn_network polybn_network;

/* Make the buffers for batches of at most `batch` images. NULL if there is not enough memory. */
polybn_network *polybn_network_new(const polybn_stage *stages, int64_t depth, int64_t batch);
void polybn_network_free(polybn_network *net);

/* Bytes of all buffers. */
int64_t polybn_network_memory(const polybn_network *net);

/* One step of gradient descent. Return the mean loss, and how many labels the network gave right. */
double polybn_network_step(polybn_network *net, const polybn_batch *batch, float rate, int64_t *correct);

/* Scores (count, classes) in inference mode; nothing changes. */
void polybn_network_score(polybn_network *net, const polybn_batch *batch, float *scores);
