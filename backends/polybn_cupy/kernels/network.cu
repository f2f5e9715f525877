// The parts of a network that belong to no layer: maps that no layer with weights reads, the loss, together with a last
// dense layer, SGD, and scores out. All in float.
//
// The order of sums is fixed: there are no atomics, and partial sums of a batch are added in an order that depends only
// on their number.
#include "maps.cuh"

struct Pool {
    Map in;
    Index n;
    const float* dy;
    float* y;
};

__global__ void __launch_bounds__(THREADS) pool(const __grid_constant__ Pool p) {
    const Index at = Index(blockIdx.x) * THREADS + threadIdx.x, values = p.in.values();
    if (at < p.n * values) p.y[at] = p.in.read(int(at / values), int(at % values));
}

__global__ void __launch_bounds__(THREADS) unpool(const __grid_constant__ Pool p) {
    const Index at = Index(blockIdx.x) * THREADS + threadIdx.x, values = p.in.values();
    if (at < p.n * values) p.in.give<1>(int(at / values), int(at % values), 1, {p.dy[at]});
}

struct Batch {
    Index n, classes;
    const unsigned char* labels;
    const Index* order;
    Index* progress;  // numbers of images and steps that are done
    float *logits, *gradient, *scores;
    double* found;  // (blocks of WARPS images, 2): the sum of losses, and how many labels were right
};

__device__ inline int lane() { return int(threadIdx.x % WARP); }
__device__ inline int warp() { return int(threadIdx.x / WARP); }

template <class Value, class Combine>
__device__ Value over_lanes(Value value, Combine combine) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

// The loss of one image and the gradient of its scores, by one warp; `z` and `gradient` may be in shared memory.
struct Verdict {
    double loss;
    int right;
};
__device__ inline Verdict judge_image(const float* z, int classes, int label, float images, float* gradient) {
    const auto larger = [](float a, float b) { return a > b || a != a ? a : b; };
    const auto add = [](float a, float b) { return a + b; };
    float most = z[0], total = 0;
    for (int k = lane(); k < classes; k += WARP) most = larger(z[k], most);
    most = over_lanes(most, larger);
    int best = classes;
    for (int k = lane(); k < classes; k += WARP) {
        if ((z[k] == most || z[k] != z[k]) && k < best) best = k;
        total += expf(z[k] - most);
    }
    best = over_lanes(best, [](int a, int b) { return a < b ? a : b; });
    total = over_lanes(total, add);
    for (int k = lane(); k < classes; k += WARP) {
        gradient[k] = (expf(z[k] - most) / total - float(k == label)) / images;
    }
    return {log(double(total)) - double(z[label] - most), best == label};
}

// Write the sums of the verdicts of a block's warps.
__device__ inline void report(const Batch& b, double* shared, Verdict verdict) {
    if (lane() == 0) shared[2 * warp()] = verdict.loss, shared[2 * warp() + 1] = verdict.right;
    __syncthreads();
    if (threadIdx.x >= 2) return;
    double total = 0;
    for (int w = 0; w < WARPS; ++w) total += shared[2 * w + threadIdx.x];
    b.found[2 * blockIdx.x + threadIdx.x] = total;
}

// Compute the loss of a step and its gradient; each warp takes an image.
__global__ void __launch_bounds__(THREADS) judge(const __grid_constant__ Batch b) {
    extern __shared__ uint4 memory[];
    const Index image = Index(blockIdx.x) * WARPS + warp();
    Verdict verdict = {0, 0};
    if (image < b.n) {
        const int label = b.labels[b.order[b.progress[0] + image]];
        const Index at = image * b.classes;
        verdict = judge_image(b.logits + at, int(b.classes), label, float(b.n), b.gradient + at);
    }
    report(b, reinterpret_cast<double*>(memory), verdict);
}

// A last dense layer: its weights and what it reads.
struct Last {
    Batch batch;
    Map in;
    const float *weight, *bias;
    float* partials;  // (blocks, classes, inputs + 1), the last column for the bias
};

// The last dense layer, forward and backward, with the loss in between. All of it but a sum over the batch, that of the
// weights' gradients, belongs to one image, so each warp takes an image, and each block is a slice of the batch.
__global__ void __launch_bounds__(THREADS) conclude(const __grid_constant__ Last l) {
    extern __shared__ uint4 memory[];
    const int inputs = l.in.values(), classes = int(l.batch.classes), images = int(l.batch.n);
    const int first = int(blockIdx.x) * WARPS, here = images - first < WARPS ? images - first : WARPS, mine = warp();
    double* verdicts = reinterpret_cast<double*>(memory);       // (WARPS, 2)
    float* x = reinterpret_cast<float*>(verdicts + 2 * WARPS);  // (WARPS, inputs)
    float* z = x + WARPS * inputs;                              // (WARPS, classes)
    float* dz = z + WARPS * classes;                            // (WARPS, classes)
    float* bias = dz + WARPS * classes;                         // (classes,)
    float* weight = bias + classes;                             // (classes, inputs)
    const Divisor by_inputs(inputs), by_columns(inputs + 1);
    for (int n = threadIdx.x; n < classes; n += THREADS) copy_async<1>(bias + n, l.bias + n);
    for (int n = threadIdx.x; n < classes * inputs; n += THREADS) copy_async<1>(weight + n, l.weight + n);
    const int label = mine < here ? l.batch.labels[l.batch.order[l.batch.progress[0] + first + mine]] : 0;
    l.in.with_loads([&](auto load) {
        const auto from = [&](int n) {
            const int m = by_inputs.divide(n);
            return load(first + m, n - m * inputs);
        };
        transfer<4>(here * inputs, from, [&](int n, float value) { x[n] = l.in.activated(value); });
    });
    arrived();
    __syncthreads();
    Verdict verdict = {0, 0};
    if (mine < here) {
#pragma unroll 5
        for (int c = 0; c < classes; ++c) {
            float score = 0;
            for (int k = lane(); k < inputs; k += WARP) score = fmaf(weight[c * inputs + k], x[mine * inputs + k], score);
            score = over_lanes(score, [](float a, float b) { return a + b; });
            if (lane() == 0) z[mine * classes + c] = score + bias[c];
        }
        __syncwarp();
        verdict = judge_image(z + mine * classes, classes, label, float(images), dz + mine * classes);
    }
    report(l.batch, verdicts, verdict);
    __syncthreads();
    if (l.in.dx) {
        constexpr int TOGETHER = 4;
        const int fours = (inputs + TOGETHER - 1) / TOGETHER;
        const Divisor by_fours(fours);
        for (int n = threadIdx.x; n < here * fours; n += THREADS) {
            const int m = by_fours.divide(n), k = (n - m * fours) * TOGETHER;
            const int count = inputs - k < TOGETHER ? inputs - k : TOGETHER;
            Pack<float, TOGETHER> sum = {};
            for (int c = 0; c < classes; ++c) {
                const float factor = dz[m * classes + c];
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i) {
                    if (i < count) sum.value[i] = fmaf(weight[c * inputs + k + i], factor, sum.value[i]);
                }
            }
            l.in.give(first + m, k, count, sum);
        }
    }
    for (int n = threadIdx.x; n < classes * (inputs + 1); n += THREADS) {
        const int c = by_columns.divide(n), k = n - c * (inputs + 1);
        float sum = 0;
        for (int m = 0; m < here; ++m) sum = fmaf(dz[m * classes + c], k < inputs ? x[m * inputs + k] : 1.0f, sum);
        l.partials[Index(blockIdx.x) * classes * (inputs + 1) + n] = sum;
    }
}

// Copy the scores to the places of their images.
__global__ void __launch_bounds__(THREADS) deliver(const __grid_constant__ Batch b) {
    for (Index at = threadIdx.x; at < b.n * b.classes; at += THREADS) {
        b.scores[b.progress[0] * b.classes + at] = b.logits[at];
    }
    __syncthreads();
    if (threadIdx.x == 0) b.progress[0] += b.n;
}

// The work of one block: some elements of an array of parameters, or of a weight with its bias.
struct Descent {
    Index first, rows, columns;  // columns of the weight, not counting that of the bias
    Index slices, shares;        // the gradient is a sum of slices; so many threads divide that of an element
    float *weight, *bias;        // bias may be null: then the gradient has no column for it
    const float* gradient;       // (slices, rows, columns + 1)
};

struct Descents {
    const Descent* each;  // of all blocks but the last
    Index n, found_blocks;
    const double* found;  // (blocks, 2), of the loss
    double* losses;       // of each step: the mean loss, and how many labels were right
    const float* rate;
    Index* progress;
};

// Report the loss of a step, and count the step as done.
__device__ inline void finish_step(const Descents& all, double* shared) {
    double loss = 0, right = 0;
    for (Index at = threadIdx.x; at < all.found_blocks; at += THREADS) loss += all.found[2 * at], right += all.found[2 * at + 1];
    shared[2 * threadIdx.x] = loss, shared[2 * threadIdx.x + 1] = right;
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        shared[2 * threadIdx.x] += shared[2 * (threadIdx.x + half)];
        shared[2 * threadIdx.x + 1] += shared[2 * (threadIdx.x + half) + 1];
    }
    if (threadIdx.x) return;
    double* of_step = all.losses + 2 * all.progress[1];
    of_step[0] = shared[0] / double(all.n), of_step[1] = shared[1];
    all.progress[0] += all.n;
    all.progress[1] += 1;
}

// A step of SGD for all parameters.
__global__ void __launch_bounds__(THREADS) descend(const __grid_constant__ Descents all) {
    extern __shared__ uint4 memory[];
    double* shared = reinterpret_cast<double*>(memory);  // (THREADS, 2)
    if (blockIdx.x == gridDim.x - 1) {
        finish_step(all, shared);
        return;
    }
    const Descent d = all.each[blockIdx.x];
    const int each = THREADS / int(d.shares), share = int(threadIdx.x) / each;
    const unsigned columns = unsigned(d.columns) + (d.bias != nullptr), size = unsigned(d.rows) * columns;
    const unsigned at = unsigned(d.first) + (threadIdx.x - share * each), row = at / columns, column = at - row * columns;
    const bool there = at < size;
    float* target = column == d.columns ? d.bias + row : d.weight + row * unsigned(d.columns) + column;
    const float rate = all.rate[0], old = there && share == 0 ? *target : 0.0f;
    double gradient = 0;
    if (there) {
#pragma unroll 16
        for (int slice = share; slice < int(d.slices); slice += int(d.shares)) gradient += d.gradient[Index(slice) * size + at];
    }
    shared[threadIdx.x] = gradient;
    __syncthreads();
    if (!there || share > 0) return;
    for (int other = 1; other < d.shares; ++other) gradient += shared[other * each + threadIdx.x];
    *target = old - rate * float(gradient);
}
