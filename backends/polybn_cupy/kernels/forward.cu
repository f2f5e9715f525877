// Training forward (S2, S3, S4, S10, S12), and moments (S15): x is read once where a group's blocks can hold it.
//
// Each group of blocks takes some channels at a time. Each member copies its stretch into shared memory and measures it;
// the members tell each other and meet once; then each has the statistics of the whole, and writes y from shared memory.
// A stretch that does not fit goes through in rounds: all are measured, the last one stays, the others are read again,
// latest first, while the cache still holds them. Several blocks on a multiprocessor fill each other's waits.
#include "statistics.cuh"

struct ForwardArguments {
    Geometry g;
    Array x, y, where;  // y and where may be null
    Group group;
    Vector gamma, beta, running_mean, running_var;
    void *new_mean, *new_var;  // may be null
    void* normalizers;         // (4, C): m1, delta, r and exponent, for the pullback; may be null
    void* count;               // (C,); may be null
    void *mean, *m2;           // (C,): the moments; may be null
    double eps, momentum, share;  // share = 1 - momentum
    Index unbiased, sigmoid;
};

template <class Stored>
struct ForwardShared {
    using Real = RealOf<Stored>;
    using Node = DeviationsOf<Real>;

    Stored* x;
    unsigned char* where;
    Node *nodes, *waiting;  // of channels and chunks; of levels and channels
    Normalizer<Real>* channel;
    Real *gamma, *beta;
    Place* at;

    __device__ ForwardShared(unsigned char* memory, const ForwardArguments& a) {
        const int channels = int(a.g.tile_channels), levels = level_of(a.g.rounds) + 1;
        x = reinterpret_cast<Stored*>(memory);
        where = memory + a.g.tile_bytes;
        at = reinterpret_cast<Place*>(where + (a.where.data ? a.g.tile_bytes / Index(sizeof(Stored)) : 0));
        nodes = reinterpret_cast<Node*>(at + 1);
        waiting = nodes + channels * int(a.g.chunks);
        channel = reinterpret_cast<Normalizer<Real>*>(waiting + levels * channels);
        gamma = reinterpret_cast<Real*>(channel + channels);
        beta = gamma + channels;
    }
};

template <class Stored, int V>
__device__ void load_round(const ForwardArguments& a, const ForwardShared<Stored>& s, Index first_channel, Index round) {
    const Index rank = blockIdx.x % a.g.members;
    __syncthreads();
    if (threadIdx.x == 0) place(*s.at, a.g, first_channel, (rank * a.g.rounds + round) * positions(a.g));
    __syncthreads();
    load<Stored, V>(a.g, a.x, *s.at, s.x);
    // The mask lies in memory as x does: V = 1, for its strides may be any, 0 among them.
    if (a.where.data) load<unsigned char, 1>(a.g, a.where, *s.at, s.where);
    __syncthreads();
}

// Measure the tile in shared memory, and push its node per channel.
template <class Stored>
__device__ void measure_round(const ForwardArguments& a, const ForwardShared<Stored>& s, Index round) {
    using Real = RealOf<Stored>;
    using Node = DeviationsOf<Real>;
    const int channels = int(a.g.tile_channels), chunks = int(a.g.chunks);
    for (int unit = warp(); unit < channels * chunks; unit += WARPS) {
        const int channel = unit / chunks;
        const int exponent = s.channel[channel].exponent;
        const Node node = measure<Real>(
            unit % chunks * CHUNK,
            [&](int i) {
                return inside(a.g, *s.at, channel, i) && (!a.where.data || s.where[slot(a.g, channel, i)]);
            },
            [&](int i) { return scaled(widen(s.x[slot(a.g, channel, i)]), -exponent); });
        if (lane() == 0) s.nodes[unit] = node;
    }
    __syncthreads();
    for (int channel = warp(); channel < channels; channel += WARPS) {
        const Node node = tree<Node>(chunks, [&](int chunk) { return s.nodes[channel * chunks + chunk]; });
        if (lane() == 0) push(s.waiting + channel, channels, round, node);
    }
}

// S4 and S12: exact at the ends, and untouched where nothing took part.
template <class Real>
__device__ Real blend(Real old, Real batch, const ForwardArguments& a, double count) {
    if (count == 0 || a.momentum == 1) return old;
    return a.momentum == 0 ? batch : Real(a.momentum) * old + Real(a.share) * batch;
}

template <class Real>
__device__ void report(const ForwardArguments& a, Index c, const Normalizer<Real>& n, Deviations whole) {
    const Real mean = scaled(Real(n.m1 + n.delta), n.exponent), v = scaled(n.v, 2 * n.exponent);
    if (a.new_mean) {
        // m / (m - 1) has no value at m = 1: NaN says so where the host cannot see the count.
        const Real batch = a.unbiased && n.count > 0 ? Real(v * (n.count > 1 ? n.count / (n.count - 1) : not_a_number())) : v;
        static_cast<Real*>(a.new_mean)[c] = blend(read<Real>(a.running_mean, c), mean, a, n.count);
        static_cast<Real*>(a.new_var)[c] = blend(read<Real>(a.running_var, c), batch, a, n.count);
    }
    if (a.normalizers) {
        Real* saved = static_cast<Real*>(a.normalizers) + c;
        const Real values[] = {n.m1, n.delta, n.r, Real(n.exponent)};
        for (int i = 0; i < 4; ++i) saved[i * a.g.channels] = values[i];
    }
    if (a.count) static_cast<Index*>(a.count)[c] = Index(n.count);
    if (a.mean) {
        static_cast<Real*>(a.mean)[c] = mean;
        static_cast<Real*>(a.m2)[c] = scaled(Real(n.v * n.count), 2 * n.exponent);
    }
}

// Find the normalizer of each channel of the tile; channels that left the range are measured once more, scaled.
template <class Stored, int V, class Node>
__device__ void normalize_channels(
    const ForwardArguments& a, const ForwardShared<Stored>& s, Exchange<Node>& exchange, Index first_channel) {
    using Real = RealOf<Stored>;
    const int channels = int(a.g.tile_channels), top = level_of(a.g.rounds) * channels, c = threadIdx.x;
    const bool mine = c < channels && first_channel + c < a.g.channels;
    const Real eps = Real(a.eps);
    if (c < channels) s.channel[c].exponent = 0;
    for (int attempt = 0; attempt < 2; ++attempt) {
        for (Index round = 0; round < a.g.rounds; ++round) {
            if (attempt == 0 || a.g.rounds > 1) load_round<Stored, V>(a, s, first_channel, round);
            measure_round(a, s, round);
        }
        __syncthreads();
        exchange.join_all(s.waiting + top);
        bool again = false;
        if (mine) {
            const Node whole = s.waiting[top + c];
            s.channel[c] = normalizer<Real>(whole, eps, s.channel[c].exponent);
            if (attempt == 0 && strayed(s.channel[c], eps)) {
                s.channel[c].exponent = rescue_exponent<Real>(whole, eps);
                again = s.channel[c].exponent != 0;
            }
        }
        // Every member of the group sees the same nodes: all go round again, or none.
        if (!__syncthreads_or(again)) break;
    }
    if (mine && exchange.rank == 0) report(a, first_channel + c, s.channel[c], s.waiting[top + c]);
}

template <class Stored, int V>
__device__ void write_y(const ForwardArguments& a, const ForwardShared<Stored>& s) {
    using Real = RealOf<Stored>;
    store<Stored, V>(a.g, a.y, *s.at, [&](int channel, int, int slot) -> Real {
        if (a.where.data && !s.where[slot]) return 0;
        const Normalizer<Real>& n = s.channel[channel];
        Real y = n.centered(widen(s.x[slot])) * n.r;
        if (a.gamma.data) y *= s.gamma[channel];
        if (a.beta.data) y += s.beta[channel];
        return a.sigmoid ? 1 / (1 + Real(exp(-y))) : y;
    });
}

template <class Stored, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) forward(const __grid_constant__ ForwardArguments a) {
    using Real = RealOf<Stored>;
    extern __shared__ uint4 memory[];
    const ForwardShared<Stored> s(reinterpret_cast<unsigned char*>(memory), a);
    Exchange<DeviationsOf<Real>> exchange(a.group, a.g);
    const Index step = gridDim.x / a.g.members * a.g.tile_channels;
    for (Index first = blockIdx.x / a.g.members * a.g.tile_channels; first < a.g.channels; first += step) {
        const int c = threadIdx.x;
        __syncthreads();
        if (c < a.g.tile_channels && first + c < a.g.channels) {
            if (a.gamma.data) s.gamma[c] = read<Real>(a.gamma, first + c);
            if (a.beta.data) s.beta[c] = read<Real>(a.beta, first + c);
        }
        normalize_channels<Stored, V>(a, s, exchange, first);
        if (!a.y.data) continue;
        for (Index round = a.g.rounds - 1; round >= 0; --round) {
            if (round < a.g.rounds - 1) load_round<Stored, V>(a, s, first, round);
            write_y<Stored, V>(a, s);
        }
    }
}
