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

template <class Real>
struct SecondMeans {
    Real b, c, e, half;        // half = r^2 f / 2
    Real g, a, gx, ax, inner;  // means; inner of a P(g)
};

template <class Stored, int WALK, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) second(const __grid_constant__ SecondArguments args) {
    using Real = RealOf<Stored>;
    using Means = SecondMeans<Real>;
    extern __shared__ uint4 memory[];
    const auto terms = [](const Saved<Real>& saved, const Real(&value)[3], double(&sums)[5]) {
        const double xhat = saved.xhat(value[0]), g = value[1], a = value[2];
        sums[0] += g;
        sums[1] += a;
        sums[2] += g * xhat;
        sums[3] += a * xhat;
        sums[4] += a * g;
    };
    const auto conclude = [&](Index c, const Saved<Real>& saved, const Sums<5>& sums, double count, bool first) -> Means {
        const double g = sums.word[0], a = sums.word[1], gx = sums.word[2], ax = sums.word[3], ag = sums.word[4];
        const double r = double(saved.r) * saved.power, gamma = saved.gamma, b = or_else<Real>(args.b, c, 0), e = or_else<Real>(args.e, c, 0);
        const double half = r * r * or_else<Real>(args.f, c, 0) / 2;
        const double inner = ag - a * g / count - gx * ax / count;  // sum(a P(g))
        const double per_gamma = r * (ag - e * g) - half * gx;
        if (first && args.of_gamma) static_cast<Real*>(args.of_gamma)[c] = Real(args.training ? r * inner : per_gamma);
        if (first && args.of_mean) static_cast<Real*>(args.of_mean)[c] = Real(-r * (b - gamma * half) * g);
        if (first && args.of_var) {
            const double sum = gamma * per_gamma + (b - 2 * gamma * half) * gx;
            static_cast<Real*>(args.of_var)[c] = Real(-r * r / 2 * sum);
        }
        return {Real(b), or_else<Real>(args.c, c, 0), Real(e), Real(half), Real(g / count), Real(a / count),
                Real(gx / count), Real(ax / count), Real(inner / count)};
    };
    const auto write = [&](auto put) {
        put(args.in.output[0], [&](const Saved<Real>& s, const Means& m, const Real(&value)[3]) -> Real {
            const Real xhat = s.xhat(value[0]), a = value[2];
            const Real of_a = args.training ? s.slope() * ((a - m.a) - xhat * m.ax) : s.slope() * (a - m.e) - m.half * xhat;
            return (s.gamma * of_a + m.b * xhat) + m.c;
        });
        put(args.in.output[1], [&](const Saved<Real>& s, const Means& m, const Real(&value)[3]) -> Real {
            const Real xhat = s.xhat(value[0]), g = value[1], a = value[2], scale = s.gamma * s.slope();
            if (!args.training) return s.slope() * (m.b - s.gamma * m.half) * g;
            const Real h = m.b * g - scale * (m.gx * a + m.ax * g);
            const Real mean_h = m.b * m.g - scale * (m.gx * m.a + m.ax * m.g);
            const Real mean_hx = m.b * m.gx - scale * (2 * m.gx * m.ax);
            return s.slope() * (((h - mean_h) - xhat * mean_hx) - scale * m.inner * xhat);
        });
    };
    const auto prepare = [](const Saved<Real>& saved) { return saved; };
    const auto finish = [](int, const Saved<Real>&, const Means&, Place&) {};
    sweep<Means, 5, WALK, V, Stored>(reinterpret_cast<unsigned char*>(memory), args.in, prepare, terms, conclude, write, finish);
}
