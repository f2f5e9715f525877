/* The forward and backward pass of a batch, in blocks of images that threads share.
 *
 * A pass has positions: the stages forward, the loss, the stages backward. A block goes from one position to the next
 * independently of the others, except at batch norm, where the threads wait for each other because its sums run over all
 * blocks. Sums over blocks are taken in the order of the blocks, so the number of threads changes no bit.
 */
#pragma once

#include "convolution.h"
#include "passes.h"
#include "kernels/pool.h"

static void forward(const polybn_network *net, const stage *s, int64_t block) {
    if (s == net->stages)
        read_images(net, block);
    else
        activate(s - 1, block);
    if (s->convolution) convolve(s, s->x + block * volume(s->input), s->y + block * volume(s->middle));
    if (s->norm && net->training) measure(net, s, block);
}

static void backward(const polybn_network *net, const stage *s, int64_t block) {
    int first = s == net->stages + net->first;
    float *dy = keeps_gradient(s) ? gradient_of(net, s) : s->convolution ? s->y : s->dx;
    if (!keeps_gradient(s) && (s->convolution || !first)) spread(net, s, block, dy);
    dy += block * volume(s->middle);
    if (s->convolution && !is_dense(s)) {
        int64_t size = s->middle.channels * tap_count(s);
        gradient g = {1, dy, s->x + block * volume(s->input), s->dweight + block * size};
        correlate(s, &g, 0, s->middle.channels);
    }
    if (first) return;
    if (s->convolution) convolve_back(s, dy, s->dx + block * volume(s->input));
    receive(net, s - 1, block);
}

/* Softmax and cross-entropy of a vector of images; g becomes the gradient of the sum of losses for the scores z. */
static void find_loss(polybn_network *net, int64_t block, int part, const float *z, float *g) {
    int64_t classes = net->stages[net->depth - 1].output.channels, live = live_images(net, block);
    lanes top = load(z), sum = all(0);
    for (int64_t c = 1; c < classes; c++) {
        lanes v = load(z + c * IMAGES);
        top = choose((v > top) | (v != v), v, top);
    }
    for (int64_t c = 0; c < classes; c++) {
        lanes e = exponential(load(z + c * IMAGES) - top);
        store(g + c * IMAGES, e);
        sum += e;
    }
    for (int64_t c = 0; c < classes; c++) store(g + c * IMAGES, keep(alive(live, part), load(g + c * IMAGES) / sum));
    for (int64_t i = 0; i < least(WIDTH, live - part * WIDTH); i++) {
        int64_t image = block * IMAGES + part * WIDTH + i, label = net->batch.labels[net->batch.order[image]], first = 0;
        while (first < classes - 1 && z[first * IMAGES + i] != top[i]) first++;
        net->losses[image] = log((double)sum[i]) - (double)(z[label * IMAGES + i] - top[i]);
        net->right[image] = first == label;
        g[label * IMAGES + i] -= 1;
    }
}

/* Compute the scores of a block; in training also the loss and its gradient. */
static void finish(polybn_network *net, int64_t block) {
    const stage *s = net->stages + net->depth - 1;
    int64_t classes = s->output.channels, live = live_images(net, block);
    activate(s, block);
    const float *z = s->out + block * volume(s->output);
    if (!net->training) {
        float *scores = net->scores + block * IMAGES * classes;
        for (int64_t i = 0; i < live; i++)
            for (int64_t c = 0; c < classes; c++) *scores++ = z[c * IMAGES + i];
        return;
    }
    float *g = net->gradient + block * volume(s->output);
    for (int h = 0; h < PARTS; h++) find_loss(net, block, h, z + h * WIDTH, g + h * WIDTH);
    for (int64_t p = 0; p < classes * IMAGES; p += WIDTH) store(g + p, load(g + p) / (float)net->batch.count);
    receive(net, s, block);
}

static void reset_channel(const stage *s, int64_t c) {
    s->channels[c] = (channel){.scale = 1, .r = 1, .direction = 1, .slope = 1, .gamma = s->norm ? s->gamma[c] : 1,
                               .beta = s->norm ? s->beta[c] : 0};
}

/* Set the batch norm of a channel (S3). `largest` bounds the mean and the deviations from it. If they or 1 / sqrt(v + eps)
 * would leave the range of float32, y is first multiplied by a power of two (S10). */
static void set_channel(const stage *s, int64_t c, double mean, double v, double largest) {
    channel *k = s->channels + c;
    double square = v + s->eps;
    int shift = 0;
    if (!(square > 0x1p-240 && largest < 0x1p125)) {
        double size = fmax(largest, sqrt(s->eps));
        if (size > 0 && isfinite(size)) shift = (int)least(126, -ilogb(size) - 1);
    }
    double scaled = ldexp(mean, shift), r = square == 0 ? 0 : 1 / sqrt(ldexp(square, 2 * shift));
    reset_channel(s, c);
    k->scale = (float)ldexp(1, shift);
    k->m1 = (float)scaled;
    k->delta = (float)(scaled - k->m1);
    k->r = (float)r;
    k->slope = (float)(k->gamma * ldexp(r, shift));
    k->direction = k->r == 0 ? 0 : (float)((k->gamma > 0) - (k->gamma < 0));
}

/* Combine the means and squares of the blocks, set the batch norm of a stage, and update its running statistics (S4). */
static void settle_statistics(const polybn_network *net, const stage *s) {
    int64_t stride = 2 * s->middle.channels, blocks = block_count(net);
    double n = (double)(net->batch.count * area(s->middle));
    for (int64_t c = 0; c < s->middle.channels; c++) {
        const double *sums = s->sums + 2 * c;
        double mean = 0, m2 = 0;
        for (int64_t b = 0; b < blocks; b++) mean += sums[b * stride] * (double)live_images(net, b);
        mean /= (double)net->batch.count;
        for (int64_t b = 0; b < blocks; b++) {
            double apart = sums[b * stride] - mean;
            m2 += sums[b * stride + 1] + apart * apart * (double)(live_images(net, b) * area(s->middle));
        }
        set_channel(s, c, mean, m2 / n, fmax(sqrt(m2), fabs(mean)));
        s->running_mean[c] = s->momentum * s->running_mean[c] + (1 - s->momentum) * (float)mean;
        s->running_var[c] = s->momentum * s->running_var[c] + (1 - s->momentum) * (float)(m2 / n);
    }
}

/* Combine the sums of the blocks, which are the gradients of beta and gamma, or of a bias. A bias before batch norm has no
 * gradient, because batch norm subtracts it again. */
static void settle_gradients(const polybn_network *net, const stage *s) {
    int64_t channels = s->middle.channels;
    double n = (double)(net->batch.count * area(s->middle));
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0, product = 0;
        for (int64_t b = 0; b < block_count(net); b++) {
            sum += s->sums[2 * (b * channels + c)];
            product += s->sums[2 * (b * channels + c) + 1];
        }
        if (s->norm) {
            s->channels[c].mean_g = (float)(sum / n);
            s->channels[c].mean_gx = (float)(product / n);
            s->beta[c] -= net->rate * (float)sum;
            s->gamma[c] -= net->rate * (float)product;
        } else if (s->convolution)
            s->bias[c] -= net->rate * (float)sum;
    }
}

/* Some positions of a pass. */
typedef struct {
    polybn_network *net;
    int64_t from, to;
} section;

static void run_block(void *context, int64_t block) {
    const section *part = context;
    polybn_network *net = part->net;
    for (int64_t p = part->from; p < part->to; p++) {
        if (p < net->depth)
            forward(net, net->stages + p, block);
        else if (p == net->depth)
            finish(net, block);
        else
            backward(net, net->stages + 2 * net->depth - p, block);
    }
}

/* The stage whose sums must be combined before a position, if it has batch norm. */
INLINE const stage *gate(const polybn_network *net, int64_t p) {
    return net->stages + (p <= net->depth ? p - 1 : 2 * net->depth - p);
}

static void run(polybn_network *net, int64_t end) {
    for (int64_t from = 0, to; from < end; from = to) {
        to = from + 1;
        while (to < end && !(net->training && gate(net, to)->norm)) to++;
        pool_run(run_block, &(section){net, from, to}, block_count(net));
        if (to < end && to <= net->depth)
            settle_statistics(net, gate(net, to));
        else if (to < end)
            settle_gradients(net, gate(net, to));
    }
}

/* Find the `item`th group of output channels among all stages, and update its weights. */
static void update(void *context, int64_t item) {
    const polybn_network *net = context;
    const stage *s = net->stages;
    for (; !s->convolution || item >= output_groups(s); s++)
        if (s->convolution) item -= output_groups(s);
    int64_t o0 = item * output_rows(s), o1 = least(o0 + output_rows(s), s->middle.channels), taps = tap_count(s);
    int64_t parts = block_count(net), size = s->middle.channels * taps;
    if (is_dense(s)) {
        gradient g = {parts, keeps_gradient(s) ? gradient_of(net, s) : s->y, s->x, s->dweight};
        correlate(s, &g, o0, o1);
        parts = 1;
    }
    for (int64_t b = 1; b < parts; b++)
        for (int64_t t = o0 * taps; t < o1 * taps; t++) s->dweight[t] += s->dweight[b * size + t];
    for (int64_t t = o0 * taps; t < o1 * taps; t++) s->weight[t] -= net->rate * s->dweight[t];
    pack(s, o0, o1);
}

static double step(polybn_network *net, int64_t *right) {
    stage *end = net->stages + net->depth;
    int64_t items = 0;
    net->training = 1;
    for (stage *s = net->stages; s < end; s++)
        for (int64_t c = 0; c < s->middle.channels; c++) reset_channel(s, c);
    run(net, 2 * net->depth - net->first + 1);
    for (stage *s = net->stages + net->first; s < end; s++) {
        if (!s->norm) settle_gradients(net, s);
        if (s->convolution) items += output_groups(s);
    }
    pool_run(update, net, items);
    double loss = 0;
    *right = 0;
    for (int64_t i = 0; i < net->batch.count; i++) {
        loss += net->losses[i];
        *right += net->right[i];
    }
    return loss / (double)net->batch.count;
}

static void score(polybn_network *net) {
    net->training = 0;
    for (stage *s = net->stages; s < net->stages + net->depth; s++)
        for (int64_t c = 0; c < s->middle.channels; c++) {
            reset_channel(s, c);
            if (s->norm) set_channel(s, c, s->running_mean[c], s->running_var[c], fabsf(s->running_mean[c]));
        }
    run(net, net->depth + 1);
}

/* Fill in what never changes; all buffers are zero before. */
static void prepare(polybn_network *net) {
    for (stage *s = net->stages; s < net->stages + net->depth; s++)
        if (s->convolution) {
            find_taps(s);
            pack(s, 0, s->middle.channels);
        }
}

const variant VARIANT = {lay_out, prepare, step, score};
