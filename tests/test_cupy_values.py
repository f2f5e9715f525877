"""What CuPy does about values on the device, because no call may wait for it: NaN in place of errors, and clause S10.

Emulated or on a GPU.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest

import polybn
from polybn.conformance import oracle
from polybn.conformance.strategies import sample
from tests.support.cases import run

cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_kernels.py runs this emulated")
IMPOSSIBLE = (-1.5, -1e-45, float("nan"), float("inf"), float("-inf"))


class Column(NamedTuple):
    """The values of one channel, as multiples of powers of two that every dtype holds."""

    x: tuple[float, ...]
    dy: tuple[float, ...] = (1.0,)
    gamma: float = 1.0
    beta: float = 0.0
    running: tuple[float, float] | None = None
    """Mean and variance, in inference."""
    eps: float = 0.0


DIGITS = {"bfloat16": -6, "float32": -16, "float64": -42}
"""Accuracies of gradients, as powers of two."""
FLOAT, DOUBLE, LEAST, LEAST_DOUBLE = 2.0**127, 2.0**1023, 2.0**-149, 2.0**-1074
# fmt: off
ENDS = {
    "gamma r vanishes, y does not": ("float32", Column((FLOAT,), gamma=2.0**-149, running=(0, 2.0**126))),
    "gamma r vanishes, y does not, double": ("float64", Column((DOUBLE,), gamma=2.0**-1074, running=(0, 2.0**1022))),
    "gamma r overflows, y does not": ("float32", Column((LEAST,), gamma=FLOAT, running=(0, 2.0**-100))),
    "x - mean overflows, y does not": ("float32", Column((FLOAT,), gamma=2.0**-10, running=(-FLOAT, 4))),
    "beta brings y back": ("float32", Column((2.0**80,), gamma=2.0**48, beta=-FLOAT, running=(0, 1))),
    "the least x, a large variance": ("float32", Column((3 * LEAST,), gamma=FLOAT, running=(0, 2.0**126))),
    "a normalized value overflows": ("float32", Column((FLOAT, 1), (2.0**-100,), running=(-FLOAT, 2.0**-60))),
    "a normalized value vanishes": ("float32", Column((2.0**-80 * 1.25,), (FLOAT,), running=(0, 2.0**126 * 1.75))),
    "products with dy vanish": ("float64", Column((2.0**-600,), (2.0**-500,), running=(0, 2.0**-1000 * 1.75))),
    "dy adds up to infinity in inference": ("float64", Column((1, 1, 1), (DOUBLE, DOUBLE, -DOUBLE), running=(-1, 3))),
    "dy adds up to infinity": ("float64", Column((1, 2, 4), (DOUBLE, DOUBLE, -DOUBLE), 2.0**-9, eps=1e-5)),
    "dy adds up to infinity, and all are equal": ("float64", Column((12, -9), (DOUBLE, DOUBLE), 3.0, eps=1e-5)),
    "a mean of the least dy": ("float32", Column((12, -9, 5.25), (2 * LEAST, 0, 0), FLOAT, eps=1e-5)),
    "a mean of the least dy, double": ("float64", Column((12, -9, 5.25), (2 * LEAST_DOUBLE, 0, 0), DOUBLE, eps=1e-5)),
    "a steep channel with equal dy": ("float32", Column((LEAST, -LEAST), (2.0**50,) * 2, FLOAT)),
    "large dy": ("float32", Column((1, 2, 4), (FLOAT, FLOAT, -FLOAT), 2.0**-9, eps=1e-5)),
}
# fmt: on


@pytest.mark.clause("S10", "S13")
@pytest.mark.parametrize("shape", [(), (7,)], ids=["alone", "many channels"])
@pytest.mark.parametrize("kind", ENDS)
def test_the_ends_of_the_range(kind: str, shape: tuple[int, ...]) -> None:
    """y and all gradients have the digits of the exact ones, or are infinite where those are too large."""
    dtype, given = ENDS[kind]
    b, training, m = polybn.backend("cupy"), given.running is None, len(given.x)
    channels = math.prod(shape)
    x, dy = (np.tile(np.array(np.broadcast_to(v, m), dtype)[:, None], channels) for v in (given.x, given.dy))
    numbers = (given.gamma, given.beta, *(given.running or (0, 0)))
    vectors = [b.asarray(np.full(channels, v, dtype)) for v in numbers]
    options: dict[str, Any] = {"training": training, "eps": given.eps, "momentum": 0.5}
    result, pullback = polybn.batch_norm_vjp(b.asarray(x), *vectors, **options)
    found = pullback(b.asarray(dy))
    row, g, eps = oracle.row(x[:, 0].tolist()), oracle.row(dy[:, 0].tolist()), Fraction(given.eps)
    gamma, beta, mean, variance = map(Fraction, numbers)
    s = oracle.batch_statistics(row, eps) if training else oracle.given_statistics(m, mean, variance, eps)
    d = oracle.derivatives(row, g, s, gamma, training=training)
    slope, total = abs(gamma) * s.root, sum((abs(Fraction(v)) for v in dy[:, 0].tolist()), Fraction(0))
    reach = max(abs(Fraction(v) - s.mean) for v in x[:, 0].tolist()) * s.root
    compared = {  # results, exact results, and the sizes of their terms
        "y": (result.y, _fractions(oracle.output(row, s, gamma, beta)), abs(gamma) * reach + abs(beta)),
        "dx": (found.x, _fractions(d.x), slope * total * (2 + reach**2 if training else 1)),
        "dgamma": (found.gamma, [d.gamma], reach * total),
        "dbeta": (found.beta, [d.beta], total),
    }
    if not training:
        compared["dmean"] = found.running_mean, [d.running_mean], slope * total
        compared["dvar"] = found.running_var, [d.running_var], slope * s.root * reach * total
    for name, (got, exact, size) in compared.items():
        values = b.to_numpy(got).reshape(-1, channels)
        assert (values == values[:, :1]).all(), name
        for value, right in zip(values[:, 0].tolist(), exact, strict=True):
            assert _agrees(value, right, size, dtype), (name, value, float(min(abs(right), Fraction(10**308))))


def _fractions(row: oracle.ExactRow) -> list[Fraction]:
    return [Fraction(n, row.denominator) for n in row.numerators]


def _agrees(value: float, exact: Fraction, size: Fraction, dtype: str) -> bool:
    info = np.finfo(dtype)
    if abs(exact) > Fraction(float(info.max)):
        return value == (math.inf if exact > 0 else -math.inf)
    allowed = size * 8 * Fraction(float(info.eps)) + 2 * Fraction(float(info.smallest_subnormal))
    return math.isfinite(value) and abs(Fraction(value) - exact) <= allowed


@pytest.mark.clause("S1", "S10", "S12")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(13, 12, 40, 16), (3, 2, 10_003)])
@pytest.mark.parametrize("masked", [False, True])
def test_rescued_channels_in_every_layout(dtype: str, shape: tuple[int, ...], masked: bool) -> None:
    """Channels with the least dy, which many blocks share, have scaled gradients of those with ordinary dy; the bits of
    NHWC are those of NCHW.
    """
    case, b = sample(2, dtype, shape, training=True), polybn.backend("cupy")
    signs = np.sign(case.dy.astype(np.float64))
    down, steep = (2.0**-1060, 2.0**1000) if dtype == "float64" else (2.0**-130, 2.0**110)
    where = np.random.default_rng(1).random(shape) < 0.9 if masked else None

    def gradients(axes: tuple[int, ...], size: float, slope: float) -> tuple[Any, Any]:
        def placed(a: Any) -> Any:
            return None if a is None else b.asarray(np.ascontiguousarray(a.transpose(axes)))

        assert case.gamma is not None
        gamma = b.asarray((case.gamma * slope).astype(case.gamma.dtype))
        options: dict[str, Any] = {"training": True, "axis": axes.index(1), "where": placed(where)}
        _, pullback = polybn.batch_norm_vjp(placed(case.x), gamma, **options)
        found = pullback(placed((signs * size).astype(case.dy.dtype)))
        return b.to_numpy(found.x).transpose(np.argsort(axes)), b.to_numpy(found.gamma)

    rows, last = tuple(range(len(shape))), (0, *range(2, len(shape)), 1)
    usual, _ = gradients(rows, 1, 1)
    dx, dgamma = gradients(rows, down, steep)
    expected, scaled = usual.astype(np.float64), dx.astype(np.float64) / (down * steep)
    assert np.abs(scaled - expected).max() <= 2.0 ** DIGITS[dtype] * np.abs(expected).max()
    for got, of_rows in zip(gradients(last, down, steep), (dx, dgamma), strict=True):
        assert np.array_equal(got, of_rows)


@pytest.mark.clause("S5", "S9")
@pytest.mark.parametrize("value", IMPOSSIBLE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_impossible_variance_spoils_its_channel(dtype: str, value: float) -> None:
    """y and dx of the channel are NaN, and no other channel changes; the same holds for fold."""
    case = sample(3, dtype, (7, 5, 3), training=False)
    assert case.running_var is not None
    spoiled = case.running_var.copy()
    spoiled[2] = value
    b = polybn.backend("cupy")
    got, base = run(b, case._replace(running_var=spoiled)), run(b, case)
    for name in ("y", "dx"):
        array, other = getattr(got, name), getattr(base, name)
        assert np.isnan(array[:, 2]).all(), name
        assert np.array_equal(np.delete(array, 2, 1), np.delete(other, 2, 1)), name
    vectors = [b.asarray(v) for v in (case.gamma, case.beta, case.running_mean, spoiled) if v is not None]
    for part in polybn.fold(*vectors):
        assert np.flatnonzero(np.isnan(b.to_numpy(part))).tolist() == [2]


@pytest.mark.clause("S4", "S12")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_unbiased_variance_of_one_value_is_nan(dtype: str) -> None:
    """A channel with one kept value has y = beta there, dx 0, and an unbiased running variance of NaN."""
    case = sample(6, dtype, (7, 5, 3), momentum=0.5)
    where = np.ones(case.x.shape, bool)
    where[:, 2] = False
    where[4, 2, 1] = True
    b = polybn.backend("cupy")
    biased = run(b, case._replace(where=where))
    got = run(b, case._replace(where=where, running_variance="unbiased"))
    assert got.running_var is not None
    assert biased.running_var is not None
    assert case.running_var is not None
    assert case.beta is not None
    assert np.flatnonzero(np.isnan(got.running_var)).tolist() == [2]
    assert biased.running_var[2] == case.running_var[2] / 2
    assert np.array_equal(got.y, biased.y)
    assert got.y[4, 2, 1] == case.beta[2].astype(case.x.dtype)
    assert np.count_nonzero(got.y[:, 2]) == 1
    assert not got.dx[:, 2].any()


def test_no_values_come_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, inference and derivatives neither copy to the host nor wait for the device."""
    case = sample(1, "float32", (7, 3, 5))
    b = polybn.backend("cupy")
    arrays = [b.asarray(a) for a in case.arrays().values() if a is not None]
    dy, mask = b.asarray(case.dy), b.asarray(case.x > 0)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the host waited for the device")

    if isinstance(cupy.ndarray, type) and "emulated" in cupy.__version__:
        monkeypatch.setattr(cupy.ndarray, "get", refuse)
    for name in ("Stream", "Device"):
        if "emulated" in cupy.__version__:
            monkeypatch.setattr(getattr(cupy.cuda, name), "synchronize", refuse)
    for training in (True, False):
        for where in (None, mask):
            _, pullback = polybn.batch_norm_vjp(*arrays, training=training, where=where, running_variance="unbiased")
            pullback(dy)
    polybn.merge_moments(polybn.moments(arrays[0]), polybn.moments(arrays[0]))
    polybn.fold(*arrays[1:])


class Powers(NamedTuple):
    """Powers of two by which arguments are multiplied: x, dy, the cotangent of dx, and gamma."""

    x: int
    dy: int
    of_dx: int
    gamma: int


FAR_APART = (
    Powers(100, 60, 60, 40),
    Powers(-110, -60, -60, -60),
    Powers(0, 115, -115, 0),
    Powers(50, 70, 70, -100),
    Powers(-50, -70, -70, 100),
)
"""For float32; eight times as far for float64."""


@pytest.mark.clause("S10", "S13")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("powers", FAR_APART)
def test_second_derivatives_at_the_ends_of_the_range(powers: Powers, dtype: str, training: bool) -> None:
    """They have the digits of those of the same problem near 1: with eps = 0, powers of two change nothing else."""
    k = Powers(*(8 * power * (dtype == "float64") or power for power in powers))
    k = k if training else k._replace(x=k.x // 2)  # the running variance has to fit, too
    case, b = sample(5, dtype, (7, 3, 11), training=training), polybn.backend("cupy")
    of_dy, rng = k.gamma - k.x + k.of_dx, np.random.default_rng(2)
    cotangents = [rng.normal(3, 2, (7, 3, 11)), *rng.normal(3, 2, (4, 3))]
    given = (case.x, case.gamma, case.beta, case.running_mean, case.running_var, case.dy, *cotangents)
    running = (0,) * 4 if training else (k.x, 2 * k.x, k.of_dx, k.of_dx + k.x)  # statistics, and their cotangents
    scales = (k.x, k.gamma, 0, *running[:2], k.dy, k.of_dx, of_dy, of_dy, *running[2:])
    of_x = of_dy + k.dy - k.x

    def second(scales: Any) -> list[Any]:
        arrays = [b.asarray(np.ldexp(np.asarray(a, dtype), e)) for a, e in zip(given, scales, strict=True)]
        _, pullback = polybn.batch_norm_vjp(*arrays[:5], training=training, eps=0.0)
        _, pull_again = pullback.vjp(arrays[5])
        found = pull_again(polybn.Gradients(*arrays[6:9], *([] if training else arrays[9:])))
        return [None if a is None else b.to_numpy(a).astype(np.float64) for a in found]

    expected, got = second([0] * 11), second(scales)
    for name, right, value, e in zip(
        ("dy", "x", "gamma", "mean", "var"),
        expected,
        got,
        (of_dy, of_x, of_x + k.x - k.gamma, of_x, of_x - k.x),
        strict=True,
    ):
        if right is not None:
            assert np.isfinite(right).all()
            error = np.abs(np.ldexp(value, -e) - right).max()
            assert error <= 2.0 ** DIGITS[dtype] * np.abs(right).max(), (name, error)
