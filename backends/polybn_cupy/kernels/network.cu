// The parts of a network without weights, in float: maps that no layer with weights reads, loss, SGD, and scores out.
//
// The order of sums is fixed: there are no atomics, and partial sums of a batch are added one after the other.
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
    if (at < p.n * values) p.in.give(int(at / values), int(at % values), p.dy[at]);
}

struct Batch {
    Index n, classes;
    const unsigned char* labels;
    const Index* order;
    Index* progress;  // numbers of images and steps that are done
    float *logits, *gradient, *scores;
    double* losses;  // of each step: the mean loss, and how many labels were right
};

// Compute the loss of a step and its gradient in one block.
__global__ void __launch_bounds__(THREADS) judge(const __grid_constant__ Batch b) {
    extern __shared__ uint4 memory[];
    double* loss = reinterpret_cast<double*>(memory);
    double* right = loss + THREADS;
    loss[threadIdx.x] = right[threadIdx.x] = 0;
    for (Index image = threadIdx.x; image < b.n; image += THREADS) {
        const float* z = b.logits + image * b.classes;
        float* gradient = b.gradient + image * b.classes;
        const int label = b.labels[b.order[b.progress[0] + image]];
        int best = 0;
        for (int k = 1; k < b.classes; ++k) best = z[k] > z[best] ? k : best;
        float total = 0;
        for (int k = 0; k < b.classes; ++k) total += gradient[k] = expf(z[k] - z[best]);
        for (int k = 0; k < b.classes; ++k) gradient[k] = (gradient[k] / total - float(k == label)) / float(b.n);
        loss[threadIdx.x] += log(double(total)) - double(z[label] - z[best]);
        right[threadIdx.x] += best == label;
    }
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        loss[threadIdx.x] += loss[threadIdx.x + half];
        right[threadIdx.x] += right[threadIdx.x + half];
    }
    if (threadIdx.x) return;
    b.losses[2 * b.progress[1]] = loss[0] / double(b.n);
    b.losses[2 * b.progress[1] + 1] = right[0];
}

// Copy the scores to the places of their images.
__global__ void __launch_bounds__(THREADS) deliver(const __grid_constant__ Batch b) {
    for (Index at = threadIdx.x; at < b.n * b.classes; at += THREADS) {
        b.scores[b.progress[0] * b.classes + at] = b.logits[at];
    }
    __syncthreads();
    if (threadIdx.x == 0) b.progress[0] += b.n;
}

// One array of parameters, or a weight with its bias.
struct Descent {
    Index first;                  // the first block that works on it
    Index rows, columns, slices;  // columns of the weight, not counting that of the bias
    float *weight, *bias;         // bias may be null: then the gradient has no column for it
    const float* gradient;        // (slices, rows, columns + 1)
};

struct Descents {
    const Descent* each;
    Index count, n;
    const float* rate;
    Index* progress;
};

// A step of SGD for all parameters; count the step as done.
__global__ void __launch_bounds__(THREADS) descend(const __grid_constant__ Descents all) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        all.progress[0] += all.n;
        all.progress[1] += 1;
    }
    Index number = all.count - 1;
    while (all.each[number].first > blockIdx.x) --number;
    const Descent d = all.each[number];
    const Index columns = d.columns + (d.bias != nullptr), at = (blockIdx.x - d.first) * THREADS + threadIdx.x;
    if (at >= d.rows * columns) return;
    double gradient = 0;
#pragma unroll 32
    for (Index slice = 0; slice < d.slices; ++slice) gradient += d.gradient[slice * d.rows * columns + at];
    const Index row = at / columns, column = at % columns;
    float& value = column == d.columns ? d.bias[row] : d.weight[row * d.columns + column];
    value -= all.rate[0] * float(gradient);
}
