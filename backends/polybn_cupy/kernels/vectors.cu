// Kernels over one value per channel: merging moments (S15) and folding (S5).
#include "statistics.cuh"

struct MergeArguments {
    Index channels;
    Vector count_a, mean_a, m2_a, low_a, count_b, mean_b, m2_b, low_b;  // low_a and low_b may be null
    void *count, *mean, *m2, *low;
};

struct FoldArguments {
    Index channels;
    Vector gamma, beta, running_mean, running_var;  // gamma and beta may be null
    void *scale, *shift;
    double eps;
};

// The moments of a channel's part; mean + low is its mean.
template <class Count>
struct Part {
    Count count;
    double mean, low, m2;
};

template <class Count, class Real>
__device__ Part<Count> part(const Vector& count, const Vector& mean, const Vector& low, const Vector& m2, Index c) {
    return {read<Count>(count, c), read<Real>(mean, c), low.data ? read<Real>(low, c) : Real(0), read<Real>(m2, c)};
}

// The rounded sum; `lost` is exactly what it lost.
__device__ inline double two_sum(double a, double b, double& lost) {
    const double sum = a + b, part = sum - a;
    lost = (a - (sum - part)) + (b - part);
    return sum;
}

template <class Count, class Real>
__global__ void merge(const __grid_constant__ MergeArguments a) {
    const Index c = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (c >= a.channels) return;
    const Part<Count> one = part<Count, Real>(a.count_a, a.mean_a, a.low_a, a.m2_a, c);
    const Part<Count> other = part<Count, Real>(a.count_b, a.mean_b, a.low_b, a.m2_b, c);
    const bool swap = one.count < other.count;
    const Part<Count> large = swap ? other : one, small = swap ? one : other;
    Part<Count> whole = large;
    if (small.count) {
        whole.count += small.count;
        const double share = double(small.count) / double(whole.count);
        const double distance = (small.mean - large.mean) + (small.low - large.low);
        double lost, rest;
        const double sum = two_sum(large.mean, distance * share, lost), high = two_sum(sum, lost + large.low, rest);
        whole.mean = Real(high + rest);
        whole.low = (high - whole.mean) + rest;
        whole.m2 = one.m2 + other.m2 + distance * distance * share * double(large.count);
    }
    static_cast<Count*>(a.count)[c] = whole.count;
    static_cast<Real*>(a.mean)[c] = Real(whole.mean);
    static_cast<Real*>(a.low)[c] = Real(whole.low);
    static_cast<Real*>(a.m2)[c] = Real(whole.m2);
}

template <class Real>
__global__ void fold(const __grid_constant__ FoldArguments a) {
    const Index c = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (c >= a.channels) return;
    const Real variance = read<Real>(a.running_var, c);
    const bool fits = variance >= 0 && is_finite(variance);
    Real scale = Real(fits ? inverse_root(variance, a.eps) : not_a_number());
    if (a.gamma.data) scale *= read<Real>(a.gamma, c);
    const Real shift = -read<Real>(a.running_mean, c) * scale;
    static_cast<Real*>(a.scale)[c] = scale;
    static_cast<Real*>(a.shift)[c] = a.beta.data ? shift + read<Real>(a.beta, c) : shift;
}
