// Kernels over one value per channel: merging moments (S15) and folding (S5).
#include "statistics.cuh"

struct MergeArguments {
    Index channels;
    Vector count_a, mean_a, m2_a, count_b, mean_b, m2_b;
    void *count, *mean, *m2;
};

struct FoldArguments {
    Index channels;
    Vector gamma, beta, running_mean, running_var;  // gamma and beta may be null
    void *scale, *shift;
    double eps;
};

template <class Count, class Real>
__global__ void merge(const __grid_constant__ MergeArguments a) {
    const Index c = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (c >= a.channels) return;
    const Count n_a = read<Count>(a.count_a, c), n_b = read<Count>(a.count_b, c), n = n_a + n_b;
    const Real mean_a = read<Real>(a.mean_a, c), mean_b = read<Real>(a.mean_b, c);
    const Real m2_a = read<Real>(a.m2_a, c), m2_b = read<Real>(a.m2_b, c);
    const double share = double(n_b) / double(n > 0 ? n : 1), distance = double(mean_b) - mean_a;
    Real mean = Real(mean_a + distance * share);
    Real m2 = Real(double(m2_a) + m2_b + distance * distance * share * double(n_a));
    if (n_a == 0) mean = mean_b, m2 = m2_b;
    if (n_b == 0) mean = mean_a, m2 = m2_a;
    static_cast<Count*>(a.count)[c] = n;
    static_cast<Real*>(a.mean)[c] = mean;
    static_cast<Real*>(a.m2)[c] = m2;
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
