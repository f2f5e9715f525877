"""Random data: every result lies within a rigorous bound of the exact one, value by value."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from polybn.conformance import oracle
from polybn.conformance.cases import Case, rows
from polybn.conformance.properties import served
from polybn.conformance.properties.compare import certified, in_either_mode
from polybn.conformance.properties.model import Model
from polybn.conformance.properties.property import Property
from polybn.conformance.runner import Violation, run
from polybn.conformance.strategies import sample

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info
    from polybn.conformance.certify import Floats

SAFETY = 1 + 1e-6


def everything(adapter: Adapter, info: Info, case: Case) -> float:
    """Make one call: every result lies within its bound of the exact one."""
    return certified(info, case, run(adapter, info, case)).ratio


class Affine(NamedTuple):
    """A call, and the same call with ``factor * x + shift``, computed without rounding."""

    case: Case
    other: Case
    factor: int


@st.composite
def affines(draw: st.DrawFn, info: Info, *, eps: float = 2.0**-7, factors: tuple[int, ...] = (1,)) -> Affine:
    """Draw whole numbers, and a factor and a shift that keep them whole."""
    most = 2000 if info.max_kappa is None else int(5 * info.max_kappa)
    shift, factor = draw(st.integers(-most, most)), draw(st.sampled_from(factors))
    shape = served.fitted(info, (7, 3, 11))
    base = sample(draw(served.SEEDS), "float32", shape, 1, eps=eps, kappa=0.5, running_variance=info.running_variance)
    x = np.rint(base.x.astype(np.float64) * 8)
    assert base.beta is not None
    first = base._replace(x=x.astype(np.float32), beta=np.zeros_like(base.beta))
    other = first._replace(x=(factor * x + shift).astype(np.float32), eps=factor**2 * first.eps)
    return Affine(first, other, factor)


def equivariant(adapter: Adapter, info: Info, pair: Affine) -> float:
    """Shift and scale x: y stays the same, apart from the sign of the factor."""
    first, second = (run(adapter, info, case, gradients=False) for case in (pair.case, pair.other))
    a, c = certified(info, pair.case, first), certified(info, pair.other, second)
    apart = np.abs(np.sign(pair.factor) * rows(first.y, 1) - rows(second.y, 1))
    _demand("y", apart, (a.y + c.y) * SAFETY, f"BN({pair.factor} x + c) must be BN(x) with the sign of {pair.factor}")
    return max(a.ratio, c.ratio)


def _demand(name: str, error: Floats, bound: Floats, words: str) -> float:
    share = np.max(error / bound) if error.size else 0.0
    if not share <= 1:
        raise Violation(f"{words}; {name} is {share:.3g} times its bound away")
    return float(share)


def spread(adapter: Adapter, info: Info, case: Case) -> float:
    """Measure y: it has mean beta and variance ``gamma^2 v / (v + eps)``.

    The variance of y + e differs from that of y by at most ``2 sqrt(var(y) mean(e^2)) + mean(e^2)``.
    """
    outcome, worst = run(adapter, info, case, gradients=False), 0.0
    envelope = certified(info, case, outcome).y
    for c, (x, y, bound) in enumerate(zip(rows(case.x, case.axis), rows(outcome.y, case.axis), envelope, strict=True)):
        s = oracle.batch_statistics(oracle.row(x.tolist()), Fraction(case.eps))
        got = oracle.batch_statistics(oracle.row(y.tolist()), Fraction(0))
        gamma, beta = (float(v[c]) for v in (case.gamma, case.beta) if v is not None)
        exact, square = float(Fraction(gamma) ** 2 * s.variance / s.square), float((bound**2).mean())
        errors = np.array([abs(got.mean - Fraction(beta)), abs(got.variance - Fraction(exact))], np.float64)
        limits = np.array([bound.mean() + 2**-52 * abs(beta), 2 * (exact * square) ** 0.5 + square + 2**-52 * exact])
        words = f"y of channel {c} must have mean beta and variance gamma^2 v / (v + eps)"
        worst = max(worst, _demand("its mean or variance", errors, limits * SAFETY, words))
    return worst


def twice(adapter: Adapter, info: Info, case: Case) -> float:
    """Normalize twice: the result is that of normalizing once, with eps counted twice.

    To first order, an error e of the argument becomes ``r (|e_i| + mean|e| + |xhat_i| mean|e xhat|)``, and
    ``|xhat| <= sqrt(m)``. The factor 1.01 covers the second order.
    """
    assert case.gamma is not None
    first = case._replace(gamma=np.ones_like(case.gamma), beta=np.zeros_like(case.gamma))
    once = run(adapter, info, first, gradients=False)
    second = first._replace(x=once.y)
    again, worst = run(adapter, info, second, gradients=False), 0.0
    e1, e2 = certified(info, first, once).y, certified(info, second, again).y
    eps = Fraction(case.eps)
    tables = (rows(a, case.axis) for a in (first.x, once.y, again.y))
    for c, (x, y, got) in enumerate(zip(*tables, strict=True)):
        values = oracle.row(x.tolist())
        s = oracle.batch_statistics(values, Fraction(0))
        root = oracle.inverse_root(s.variance + eps * (s.variance + eps))
        exact = oracle.output(values, s._replace(root=root), Fraction(1), Fraction(0))
        slope = float(oracle.batch_statistics(oracle.row(y.tolist()), eps).root)
        bound = e2[c] + 1.01 * slope * (2 + len(x) ** 0.5) * float(e1[c].max())
        words = f"BN(BN(x)) must count eps twice, in channel {c}"
        worst = max(worst, _demand("y", np.asarray(exact.distances(got.tolist())), bound * SAFETY, words))
    return worst


def orthogonal(adapter: Adapter, info: Info, case: Case) -> float:
    """Differentiate: dx has the sum 0 and a known product with ``x - mean``, up to the sums of the bounds on dx."""
    outcome, worst = run(adapter, info, case), 0.0
    assert outcome.dx is not None
    envelope = certified(info, case, outcome).dx
    tables = (rows(a, case.axis) for a in (case.x, case.dy, outcome.dx))
    for c, (x, dy, dx) in enumerate(zip(*tables, strict=True)):
        values, g, got = (oracle.row(z.tolist()) for z in (x, dy, dx))
        s = oracle.batch_statistics(values, Fraction(case.eps))
        centered, gamma = oracle.centered(values, s), Fraction(float(_gamma(case)[c]))
        exact = gamma * s.root * oracle.dot(g, centered) * Fraction(case.eps) / s.square
        errors = np.array([abs(oracle.total(got)), abs(oracle.dot(got, centered) - exact)], np.float64)
        reach = float((np.abs(centered.floats()) * envelope[c]).sum())
        limits = np.array([float(envelope[c].sum()), reach + 2**-50 * abs(float(exact))])
        words = f"dx of channel {c} must have the sum 0 and, with x - mean, the product gamma dgamma eps / (v + eps)"
        worst = max(worst, _demand("its sum or product", errors, limits * SAFETY, words))
    return worst


def _gamma(case: Case) -> Any:
    assert case.gamma is not None
    return case.gamma


class CaseAndSeed(NamedTuple):
    """A call, and a seed to draw something more from."""

    case: Case
    seed: int


@st.composite
def with_seeds(draw: st.DrawFn, info: Info) -> CaseAndSeed:
    """Draw a call in training and a seed."""
    return CaseAndSeed(draw(served.cases(info)), draw(served.SEEDS))


def adjoint(adapter: Adapter, info: Info, pair: CaseAndSeed) -> float:
    """Differentiate: ``<u, dx>`` is ``<J u, dy>`` for random u, where J is the exact derivative."""
    case, rng = pair.case, np.random.default_rng(pair.seed)
    outcome, worst, zero = run(adapter, info, case), 0.0, Fraction(0)
    assert outcome.dx is not None
    envelope = certified(info, case, outcome).dx
    tables = (rows(a, case.axis) for a in (case.x, case.dy, outcome.dx))
    for c, (x, dy, dx) in enumerate(zip(*tables, strict=True)):
        values, g, got = (oracle.row(z.tolist()) for z in (x, dy, dx))
        u = oracle.row(rng.normal(0.2, 1, len(x)).tolist())
        s, gamma = oracle.batch_statistics(values, Fraction(case.eps)), Fraction(float(_gamma(case)[c]))
        forward = oracle.dot(oracle.tangent(values, s, gamma, u, zero, zero), g)
        error = np.array([abs(oracle.dot(u, got) - forward)], np.float64)
        limit = np.array([(np.abs(u.floats()) * envelope[c]).sum()])
        words = f"<J u, dy> must be <u, dx> for every direction u, in channel {c}"
        worst = max(worst, _demand("the product", error, limit * SAFETY, words))
    return worst


class Chain(NamedTuple):
    """A first batch, and seeds that shuffle its values into the following batches."""

    case: Case
    seeds: tuple[int, ...]


@st.composite
def chains(draw: st.DrawFn, info: Info) -> Chain:
    """Draw up to five batches of one shape."""
    case = draw(served.cases(info, momenta=(0.9, 0.99, 0.1, 1 / 3)))
    return Chain(case, tuple(draw(st.lists(served.SEEDS, min_size=1, max_size=4))))


def many_batches(adapter: Adapter, info: Info, chain: Chain) -> float:
    """Train on one batch after the other: the running statistics are those of the closed form."""
    case, worst = chain.case, 0.0
    assert case.running_mean is not None
    assert case.running_var is not None
    model = Model(info, case.running_mean, case.running_var)
    for seed in (None, *chain.seeds):
        if seed is not None:
            case = case._replace(x=np.random.default_rng(seed).permutation(case.x.ravel()).reshape(case.x.shape))
        outcome = run(adapter, info, case, gradients=False)
        assert outcome.running_mean is not None
        assert outcome.running_var is not None
        model.step(case)
        worst = max(worst, model.compare(outcome.running_mean, outcome.running_var))
        case = case._replace(running_mean=outcome.running_mean, running_var=outcome.running_var)
    return worst


def inference_is_affine(adapter: Adapter, info: Info, pair: CaseAndSeed) -> float:
    """Infer for two inputs: the outputs differ by ``gamma r`` times the difference of the inputs."""
    case = pair.case
    rng, worst = np.random.default_rng(pair.seed), 0.0
    other = case._replace(x=rng.permuted(case.x.ravel()).reshape(case.x.shape))
    first, second = run(adapter, info, case), run(adapter, info, other)
    envelope = certified(info, case, first).y + certified(info, other, second).y
    assert case.running_var is not None
    tables = (rows(a, case.axis) for a in (case.x, other.x, first.y, second.y))
    for c, (x1, x2, y1, y2) in enumerate(zip(*tables, strict=True)):
        slope = Fraction(float(_gamma(case)[c]))
        slope *= oracle.inverse_root(Fraction(float(case.running_var[c])) + Fraction(case.eps))
        rises = oracle.combine(Fraction(0), (slope, oracle.row(x1.tolist())), (-slope, oracle.row(x2.tolist())))
        # The subtraction y1 - y2 below, in float64, adds one rounding.
        bound = envelope[c] + 2.0**-52 * (np.abs(y1) + np.abs(y2))
        words = f"inference must be one slope, gamma / sqrt(running_var + eps), in channel {c}"
        worst = max(worst, _demand("y1 - y2", np.asarray(rises.distances((y1 - y2).tolist())), bound * SAFETY, words))
    return worst


def frozen(adapter: Adapter, info: Info, case: Case) -> float:
    """Differentiate inference: gradients lie within their bounds, with statistics that do not depend on x."""
    return certified(info, case, run(adapter, info, case, gradients=True)).ratio


def by_running(adapter: Adapter, info: Info, case: Case) -> float:
    """Train: y is that of inference with the updated running statistics."""
    outcome = run(adapter, info, case, gradients=False)
    inference = case._replace(training=False, running_mean=outcome.running_mean, running_var=outcome.running_var)
    return certified(info, inference, outcome).ratio


def _by_batch(info: Info) -> str | None:
    return None if info.trains_by == "running" else "the adapter declares that training normalizes by the batch"


def _only_halves(info: Info) -> str | None:
    return None if {"float32", "float64"} & {*info.dtypes} else "the adapter declares no float32 or float64"


def _wide(info: Info) -> st.SearchStrategy[Case]:
    return served.cases(info, dtypes=("float32", "float64"))


@st.composite
def _idempotency(draw: st.DrawFn, info: Info) -> Case:
    """Draw calls with a large eps: otherwise the second normalization magnifies the bound on the first too much."""
    return draw(served.cases(info, dtypes=("float32", "float64"), eps=(1e-3, 0.2, 3.0)))


PROPERTIES: Sequence[Property] = (
    Property("P22", "y, running statistics and gradients of random data are within a rigorous bound of the exact ones.",
             "S2 S3 S4 S5 S6 S13", in_either_mode(everything), served.any_call),
    Property("P23", "Adding a constant to x, exactly, changes y by no more than its bounds.",
             "S2 S3", equivariant, affines, (), served.no_float32),
    Property("P24", "BN(a x + c), with eps a^2, is BN(x) with the sign of a.",
             "S2 S3", equivariant, lambda info: affines(info, factors=(-7, -1, 3, 5)), (), served.no_float32),
    Property("P25", "With eps = 0, which is allowed, BN(a x + c) is BN(x) with the sign of a.",
             "S3", equivariant, lambda info: affines(info, eps=0.0, factors=(-7, -1, 3, 5)), (), served.no_float32),
    Property("P26", "y has mean beta and variance gamma^2 v / (v + eps), which is not gamma^2.",
             "S3", spread, _wide, (), _only_halves),
    Property("P27", "Normalizing twice counts eps twice.",
             "S3", twice, _idempotency, (), _only_halves),
    Property("P28", "dx has the sum 0, and with x - mean the product gamma dgamma eps / (v + eps).",
             "S13", orthogonal, served.cases, ("vjp",)),
    Property("P29", "The gradient is the adjoint of the exact derivative, for random directions and random dy.",
             "S13", adjoint, with_seeds, ("vjp",)),
    Property("P33", "After k batches, the running statistics are the closed form, to the sum of the bounds.",
             "S4", many_batches, chains, ("running",)),
    Property("P36", "Inference is one slope and one shift per channel: gamma / sqrt(running_var + eps).",
             "S5", inference_is_affine,
             lambda info: st.builds(CaseAndSeed, served.cases(info, training=False), served.SEEDS), ("infer",)),
    Property("P42", "In inference, dx is dy times one slope, and dgamma and dbeta are sums.",
             "S5 S13", frozen, lambda info: served.cases(info, training=False), ("infer", "infer_vjp")),
    Property("P43", "Where training normalizes by the running statistics, it infers by the updated ones.",
             "S5", by_running, served.cases, ("running",), _by_batch),
)  # fmt: skip
