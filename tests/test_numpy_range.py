"""Clause S10 over the whole range: channels from the subnormal to the largest number, against exact arithmetic.

Each channel is one choice of the size of x, its spread, gamma and the size of dy; the exact result and a bound of a few
units in the last place of its terms are rational numbers, which neither overflow nor vanish.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import polybn
import polybn_host
from polybn.conformance import oracle
from polybn_numpy.host import without_kernels

Array = NDArray[np.floating]

ROUNDINGS = 16
ZERO = Fraction(0)
SIZES = {
    "float32": (0.0, 2.0**-149, 1e-40, 1e-30, 1e-18, 1e-3, 1.0, 1e10, 1e18, 1e30, 3.4e38),
    "float64": (0.0, 5e-324, 1e-310, 1e-250, 1e-160, 1e-3, 1.0, 1e80, 1e160, 1e250, 1.7e308),
}
SPREADS = (0.0, 2.0**-20, 0.3, 1.0)
"""The spreads of the values of a channel, relative to the largest value; 0 is a constant channel."""
CHANNELS = 200
EPS = {"float32": (0.0, 1e-30, 1e-5, 1.0), "float64": (0.0, 1e-300, 1e-5, 1.0)}


@pytest.fixture(params=["kernels", "plain"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compute with and without the compiled kernels."""
    if request.param == "kernels" and polybn_host.missing is not None:
        pytest.skip(f"kernels: {polybn_host.missing}")
    with without_kernels() if request.param == "plain" else contextlib.nullcontext():
        yield request.param


def channels(dtype: str, m: int, seed: int) -> tuple[Array, Array, Array, Array]:
    """Return x and dy of shape ``(m, C)``, gamma and beta: a channel for each choice, in random order."""
    rng, sizes = np.random.default_rng(seed), SIZES[dtype]
    choices = np.array(list(itertools.product(sizes, SPREADS, (0.0, *sizes[1::3], -1.3), sizes)))
    choices = choices[rng.permutation(len(choices))[:CHANNELS]]
    size, spread, gamma, cotangent = choices.T
    # The largest value is exactly the size, so that nothing overflows before the call.
    away = rng.uniform(-1, 0, (m, len(choices)))
    x = size * np.where(spread == 1, rng.uniform(-1, 1, away.shape), 1 + spread * away)
    dy = cotangent * rng.uniform(-1, 1, x.shape)
    beta = rng.choice([0.0, 1.0, -sizes[3], sizes[-2]], len(choices))
    x, dy, gamma, beta = (np.asarray(a, dtype) for a in (x, dy, gamma, beta))
    return x, dy, gamma, beta


def check(name: str, got: float, exact: Fraction, bound: Fraction, dtype: str) -> None:
    """Assert that a number is within the bound, or infinite with the right sign if the exact one is out of range."""
    info = np.finfo(dtype)
    unit, tiny, largest = (
        Fraction(float(info.eps) / 2),
        Fraction(float(info.smallest_subnormal)),
        Fraction(float(info.max)),
    )
    allowed = ROUNDINGS * unit * bound + tiny
    if math.isinf(got) and abs(exact) <= allowed and allowed > largest / 2:
        return  # the bound is larger than the range
    if abs(exact) - allowed > largest or (math.isinf(got) and abs(exact) + allowed > largest):
        assert got == (math.inf if exact > 0 else -math.inf), (name, got, exact > 0)
    else:
        assert math.isfinite(got), (name, got, _approximate(exact))
        assert abs(Fraction(got) - exact) <= allowed, (name, got, _approximate(exact))


def compare(
    x: Array, dy: Array, parameters: tuple[float, float], s: oracle.Statistics, got: dict[str, Array], *, training: bool
) -> None:
    """Compare all results of one channel, given its exact statistics."""
    dtype, (gamma, beta) = x.dtype.name, map(Fraction, parameters)
    row, g, centred = oracle.row(x.tolist()), oracle.row(dy.tolist()), [Fraction(v) - s.mean for v in x.tolist()]
    # In training the mean has an error, too, that of the sum of such differences.
    average = sum((abs(d) for d in centred), ZERO) / len(centred) * training
    reach = [abs(d) + average for d in centred]
    sizes = [abs(Fraction(v)) for v in dy.tolist()]
    slope, m = abs(gamma) * s.root, len(sizes)
    sum_g, sum_gd = sum(sizes, ZERO), sum((a * b for a, b in zip(sizes, reach, strict=True)), ZERO)
    for i, exact in enumerate(_numbers(oracle.output(row, s, gamma, beta))):
        check("y", float(got["y"][i]), exact, slope * reach[i] + abs(beta), dtype)
    d = oracle.derivatives(row, g, s, gamma, training=training)
    curvature = s.root**2 * sum_gd / m
    for i, exact in enumerate(_numbers(d.x)):
        terms = sizes[i] + (sum_g / m + reach[i] * curvature if training else ZERO)
        check("dx", float(got["dx"][i]), exact, slope * terms, dtype)
    check("dgamma", float(got["dgamma"]), d.gamma, s.root * sum_gd, dtype)
    check("dbeta", float(got["dbeta"]), d.beta, sum_g, dtype)
    if not training:
        check("drunning_mean", float(got["drunning_mean"]), d.running_mean, slope * sum_g, dtype)
        check("drunning_var", float(got["drunning_var"]), d.running_var, slope * s.root**2 * sum_gd / 2, dtype)


def _approximate(exact: Fraction) -> float:
    return float(exact) if abs(exact) < 2**1000 else math.inf


def _numbers(row: Any) -> list[Fraction]:
    return [Fraction(n, row.denominator) for n in row.numerators]


def _run(
    x: Array, dy: Array, vectors: tuple[Array | None, ...], eps: float, *, training: bool
) -> tuple[polybn.BatchNormResult, list[dict[str, Array]]]:
    """Call the function and its pullback; return the results, and the results channel by channel."""
    result, pullback = polybn.batch_norm_vjp(x, *vectors, training=training, eps=eps, momentum=0.0)
    g = pullback(dy)
    columns = {"y": result.y.T, "dx": g.x.T, "dgamma": g.gamma, "dbeta": g.beta}
    if not training:
        columns |= {"drunning_mean": g.running_mean, "drunning_var": g.running_var}
    return result, [{name: values[c] for name, values in columns.items()} for c in range(x.shape[1])]


@pytest.mark.filterwarnings("ignore::polybn.SingleValueWarning")
@pytest.mark.clause("S3", "S8", "S10", "S13")
@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_over_the_whole_range(form: str, dtype: str, m: int) -> None:
    """y, gradients and running statistics of so many channels are right for each eps."""
    for eps in EPS[dtype]:
        x, dy, gamma, beta = channels(dtype, m, seed=m)
        zeros = np.zeros_like(gamma)
        result, got = _run(x, dy, (gamma, beta, zeros, zeros), eps, training=True)
        for c in range(x.shape[1]):
            s = oracle.batch_statistics(oracle.row(x[:, c].tolist()), Fraction(float(np.dtype(dtype).type(eps))))
            compare(x[:, c], dy[:, c], (gamma[c].item(), beta[c].item()), s, got[c], training=True)
            assert result.running_mean is not None
            assert result.running_var is not None
            sizes = [abs(Fraction(v)) for v in x[:, c].tolist()]
            check("mean", float(result.running_mean[c]), s.mean, 2 * sum(sizes, ZERO) / m / ROUNDINGS, dtype)
            check("var", float(result.running_var[c]), s.variance, s.variance + s.mean**2 * Fraction(2) ** -50, dtype)


@pytest.mark.clause("S5", "S10", "S13")
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inference_over_the_whole_range(form: str, dtype: str, m: int) -> None:
    """y and all gradients of so many channels are right for each eps, with running statistics of all sizes."""
    rng = np.random.default_rng(m)
    for eps in EPS[dtype]:
        x, dy, gamma, beta = channels(dtype, m, seed=m + 10)
        mean, var = (np.asarray(rng.choice(SIZES[dtype], gamma.shape), dtype) for _ in range(2))
        mean *= rng.choice([-1, 1], mean.shape).astype(dtype)
        _, got = _run(x, dy, (gamma, beta, mean, var), eps, training=False)
        for c in range(x.shape[1]):
            numbers = (Fraction(mean[c].item()), Fraction(var[c].item()), Fraction(float(np.dtype(dtype).type(eps))))
            s = oracle.given_statistics(m, *numbers)
            compare(x[:, c], dy[:, c], (gamma[c].item(), beta[c].item()), s, got[c], training=False)
