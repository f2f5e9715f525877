// The pullback of the pullback (S13): from cotangents of dx, dgamma, dbeta and, in inference, of the gradients of the
// running statistics, to cotangents of dy, x, gamma and the running statistics.
//
// With a, b, c, e, f those cotangents, q_z = mean(z xhat) and P(z) = z - mean(z) - xhat q_z, which is symmetric,
//
//     training   of dy = gamma r P(a) + b xhat + c
//                of gamma = r sum(a P(g))
//                of x = r P(h) - gamma r^2 xhat sum(a P(g)) / m,   h = b g - gamma r (q_g a + q_a g)
//     inference  of dy = gamma (r (a - e) - r^2 xhat f / 2) + b xhat + c
//                of x = r g (b - gamma r^2 f / 2)
//                of gamma = sum(g (r (a - e) - r^2 xhat f / 2))
//                of running_mean = -sum(of x)
//                of running_var = -r^2 / 2 sum(g (gamma r a + b xhat - gamma r e - 3/2 gamma r^2 xhat f))
//
// All sums follow from five of them: the sums of g, a, g xhat, a xhat and a g.
#include "sums.cuh"

struct SecondArguments {
    Operands<3, 2> in;  // x, dy, and the cotangent of dx; of dy, of x
    Vector b, c, e, f;  // each may be null, for 0
    void *of_gamma, *of_mean, *of_var;  // (C,); may be null
    Index training;
};

// The formulas, for numbers of the arithmetic's type, double or Wide.
template <class Number>
struct SecondMeans {
    Number b, c, e, half;        // half = r^2 f / 2
    Number g, a, gx, ax, inner;  // means; inner of a P(g)

    __device__ Number of_dy(bool training, Number r, Number gamma, Number xhat, Number a_) const {
        const Number of_a = training ? r * ((a_ - a) - xhat * ax) : r * (a_ - e) - half * xhat;
        return (gamma * of_a + b * xhat) + c;
    }
    __device__ Number of_x(bool training, Number r, Number gamma, Number xhat, Number g_, Number a_) const {
        if (!training) return r * (b - gamma * half) * g_;
        const Number scale = gamma * r, product = gx * ax;
        const Number h = b * g_ - scale * (gx * a_ + ax * g_);
        const Number mean_h = b * g - scale * (gx * a + ax * g), mean_hx = b * gx - scale * (product + product);
        return r * (((h - mean_h) - xhat * mean_hx) - scale * inner * xhat);
    }
};

template <class Stored>
struct SecondStray : SecondMeans<RealOf<Stored>> {
    bool stray;
};

// Find the means of a channel; write the results of its vectors if it is asked for.
template <class Real, class Number>
__device__ __noinline__ SecondMeans<Number> conclude_channel(
    const SecondArguments& args, Index c, Number r, Number gamma, const Number (&sums)[5], double count, bool write) {
    const auto given = [&](const Vector& vector) { return number<Number>(or_else<Real>(vector, c, 0)); };
    const Number g = sums[0], a = sums[1], gx = sums[2], ax = sums[3], ag = sums[4];
    const Number b = given(args.b), e = given(args.e), half = r * r * given(args.f) / 2.0;
    const Number inner = ag - a * g / count - gx * ax / count;  // sum(a P(g))
    if (write) {
        const auto put = [&](void* vector, Number value) {
            if (vector) static_cast<Real*>(vector)[c] = rounded<Real>(value);
        };
        const Number per_gamma = r * (ag - e * g) - half * gx;
        put(args.of_gamma, args.training ? r * inner : per_gamma);
        put(args.of_mean, -(r * (b - gamma * half) * g));
        put(args.of_var, -(r * r / 2.0 * (gamma * per_gamma + (b - (gamma * half + gamma * half)) * gx)));
    }
    return {b, given(args.c), e, half, g / count, a / count, gx / count, ax / count, inner / count};
}

// Whether products of these numbers may leave the range, as far as means can tell.
template <class Real>
__device__ __noinline__ bool strays(const Saved<Real>& s, const SecondMeans<double>& m) {
    const double r = s.r, scale = s.gamma * r, along = scale * m.gx, across = scale * m.ax;
    const double sizes[] = {r, scale, m.b, m.c, m.e, m.half, m.g, m.a, m.gx, m.ax, m.inner, r * m.b, along, across, along * m.ax,
                            r * along, r * across, r * scale * m.inner};
    bool beyond = s.exponent != 0;
    for (double size : sizes) {
        beyond |= size != 0 && (magnitude(size) > Range<Real>::far || magnitude(size) < Range<Real>::least);
    }
    return beyond && is_finite(s.r);
}

// Compute a stray again (S10), as the pullback does.
template <class Stored, int WALK>
__device__ __noinline__ void rescue(
    const SecondArguments& args, Place& at, int channel, const Saved<RealOf<Stored>>& saved, Wide* parts) {
    using Real = RealOf<Stored>;
    const Operands<3, 2>& o = args.in;
    const Index c = at.first_channel + channel, rank = blockIdx.x % o.g.members, mine = o.g.rounds * positions(o.g);
    Wide sums[5] = {};
    each<Stored, WALK>(o.g, o.input, o.where, at, channel, 0, o.g.count, [&](int, const Real(&value)[3]) {
        const Wide xhat = saved.wide_xhat(value[0]), g = wide(value[1]), a = wide(value[2]);
        const Wide terms[] = {g, a, g * xhat, a * xhat, a * g};
        for (int i = 0; i < 5; ++i) sums[i] = sums[i] + terms[i];
    });
    for (Wide& sum : sums) sum = block_sum(sum, parts);
    const Wide r = saved.wide_r(), gamma = wide(saved.gamma);
    const bool write = rank == 0 && threadIdx.x == 0;
    const SecondMeans<Wide> means = conclude_channel<Real>(args, c, r, gamma, sums, count_of(o, c), write);
    each<Stored, WALK>(o.g, o.input, o.where, at, channel, rank * mine, (rank + 1) * mine, [&](int i, const Real(&value)[3]) {
        const Wide xhat = saved.wide_xhat(value[0]), g = wide(value[1]), a = wide(value[2]);
        const auto put = [&](const Array& array, Wide result) {
            narrow(rounded<Real>(result), *address<Stored, WALK>(o.g, array, at, channel, i));
        };
        put(o.output[0], means.of_dy(args.training, r, gamma, xhat, a));
        put(o.output[1], means.of_x(args.training, r, gamma, xhat, g, a));
    });
}

template <class Stored, int WALK, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) second(const __grid_constant__ SecondArguments args) {
    using Real = RealOf<Stored>;
    using Means = SecondStray<Stored>;
    extern __shared__ uint4 memory[];
    const auto prepare = [](const Saved<Real>& saved) { return saved; };
    const auto terms = [](const Saved<Real>& saved, const Real(&value)[3], double(&sums)[5]) {
        const double xhat = saved.xhat(value[0]), g = value[1], a = value[2];
        sums[0] += g;
        sums[1] += a;
        sums[2] += g * xhat;
        sums[3] += a * xhat;
        sums[4] += a * g;
    };
    const auto conclude = [&](Index c, const Saved<Real>& s, const Sums<5>& sums, double count, bool first) -> Means {
        const auto m = conclude_channel<Real>(args, c, double(s.r), double(s.gamma), sums.word, count, first);
        return {{Real(m.b), Real(m.c), Real(m.e), Real(m.half), Real(m.g), Real(m.a), Real(m.gx), Real(m.ax), Real(m.inner)},
                strays(s, m)};
    };
    const auto write = [&](auto put) {
        put(args.in.output[0], [&](const Saved<Real>& s, const Means& m, const Real(&value)[3]) -> Real {
            return m.of_dy(args.training, s.r, s.gamma, s.xhat(value[0]), value[2]);
        });
        put(args.in.output[1], [&](const Saved<Real>& s, const Means& m, const Real(&value)[3]) -> Real {
            return m.of_x(args.training, s.r, s.gamma, s.xhat(value[0]), value[1], value[2]);
        });
    };
    const auto finish = [&](int channel, const Saved<Real>& saved, const Means& means, Place& at) {
        if (means.stray) rescue<Stored, WALK>(args, at, channel, saved, reinterpret_cast<Wide*>(memory));
    };
    sweep<Means, 5, WALK, V, Stored>(reinterpret_cast<unsigned char*>(memory), args.in, prepare, terms, conclude, write, finish);
}
