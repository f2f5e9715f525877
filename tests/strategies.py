"""What the property tests draw: random calls at any kappa and scale, and lattice calls with exact answers."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from tests.cases import DTYPES, Array, Case, case_of, rows

RunningVariance: TypeAlias = Literal["biased", "unbiased"]

# Beyond these, the stored values of a channel run together.
LARGEST_KAPPA = {"float16": 1e2, "bfloat16": 10.0, "float32": 1e6, "float64": 1e13}
SCALES = {
    "float16": (0.05, 1.7, 30.0),
    "bfloat16": (3e-3, 1.7, 700.0),
    "float32": (1e-4, 1.7, 3e4),
    "float64": (1e-9, 1.7, 1e8),
}


def sample(
    seed: int,
    dtype: str = "float32",
    shape: tuple[int, ...] = (7, 3, 5),
    axis: int = 1,
    *,
    kappa: float = 3.0,
    scale: float = 1.7,
    **options: Any,
) -> Case:
    """Make a random call: mean about ``kappa * scale`` and standard deviation about ``scale``, by channel."""
    rng = np.random.default_rng(seed)
    channels, broad = shape[axis], [1] * len(shape)
    broad[axis] = channels
    deviation = scale * rng.uniform(0.5, 2, channels)
    mean = kappa * deviation * rng.uniform(0.6, 1.4, channels) * rng.choice([-1, 1], channels)
    x = (mean.reshape(broad) + deviation.reshape(broad) * rng.normal(size=shape)).astype(DTYPES[dtype])
    dy = rng.normal(0.3, 1.2, shape).astype(DTYPES[dtype])
    vectors = (
        rng.uniform(0.5, 2, channels) * rng.choice([-1, 1], channels),
        rng.normal(0.7, 3, channels),
        mean + deviation * rng.normal(size=channels),
        deviation**2 * rng.uniform(0.3, 3, channels),
    )
    return case_of(x, vectors, dy, axis=axis, **options)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    """Draw a shape of unequal primes, of rank 2 to 5, and a channel axis; two values a channel or more."""
    sizes = draw(st.lists(st.sampled_from((1, 2, 3, 5, 7, 11)), min_size=2, max_size=5, unique=True))
    axis = draw(st.integers(-len(sizes), len(sizes) - 1))
    assume(1 < math.prod(sizes) // sizes[axis] <= 400)
    return tuple(sizes), axis


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES), *, training: bool | None = None) -> Case:
    """Draw a random call without constant channels."""
    dtype = draw(st.sampled_from(dtypes))
    shape, axis = draw(shapes())
    kappas = [k for k in (0.0, 1.0, 10.0, 1e2, 1e3, 1e4, 1e6, 1e9, 1e13) if k <= LARGEST_KAPPA[dtype]]
    case = sample(
        draw(st.integers(0, 2**32)),
        dtype,
        shape,
        axis,
        kappa=draw(st.sampled_from(kappas)),
        scale=draw(st.sampled_from(SCALES[dtype])),
        training=draw(st.booleans()) if training is None else training,
        momentum=draw(st.sampled_from((0.9, 0.1, 0.75, 0.999, 1 / 3))),
        eps=draw(st.sampled_from((0.0, 1e-5, 1e-3, 0.2))),
        running_variance=draw(st.sampled_from(("biased", "unbiased"))),
    )
    assume((np.ptp(rows(case.x, axis), axis=1) > 0).all())
    absent: dict[str, Any] = {name: None for name in ("gamma", "beta") if draw(st.integers(0, 3)) == 0}
    if case.training and draw(st.integers(0, 3)) == 0:
        absent |= {"running_mean": None, "running_var": None}
    return case._replace(**absent)


class Lattice(NamedTuple):
    """A call whose every intermediate result is a floating-point number, and its exact answers as float64.

    A channel holds ``offset + s k`` with k from ``(-a, -b, b, a)``, each equally often, so the mean is ``offset`` and
    the variance ``s^2 (a^2 + b^2) / 2``; with ``eps = 11 s^2`` the root is ``q s`` and ``xhat = k / q``.
    """

    case: Case
    y: Array
    mean: Array
    variance: Array
    dx: Array
    dgamma: Array
    dbeta: Array


PATTERNS = ((3, 1, 4), (9, 5, 8), (21, 7, 16), (45, 1, 32))
# Offsets that leave every stored value exact, and powers of two for s. The wide ones make v + eps overflow and
# vanish in the type of the statistics (S10); the answers do not change.
OFFSETS = {"float16": 1000, "bfloat16": 80, "float32": 4096, "float64": 2**27}
POWERS = {"float16": (-3, 3), "bfloat16": (-9, 9), "float32": (-40, 40), "float64": (-300, 300)}
WIDE = {"float32": (-61, 61), "float64": (-509, 509)}


@st.composite
def lattices(draw: st.DrawFn, *, wide: bool = False, most_channels: int = 7) -> Lattice:
    """Draw a lattice call in training; m is a power of two, from 4 to 64."""
    dtype = draw(st.sampled_from(tuple(WIDE) if wide else tuple(DTYPES)))
    low, high = (WIDE if wide else POWERS)[dtype]
    power = draw(st.sampled_from((low, high)) if wide else st.integers(low, high))
    channels = draw(st.integers(1, most_channels))
    rest = draw(
        st.lists(st.sampled_from((1, 2, 4, 8)), min_size=1, max_size=4).filter(lambda r: 4 <= math.prod(r) <= 64)
    )
    offset = draw(st.sampled_from((0, 1, 17, OFFSETS[dtype])))
    rho = draw(st.sampled_from((0.0, 0.25, 0.5, 0.75, 1.0)))
    return lattice(
        draw(st.integers(0, 2**32)), dtype, channels, tuple(rest), draw(st.integers(0, len(rest))), power, offset, rho
    )


def lattice(
    seed: int,
    dtype: str,
    channels: int,
    rest: tuple[int, ...],
    axis: int,
    power: int = 0,
    offset: int = 0,
    momentum: float = 0.75,
) -> Lattice:
    """Make a lattice call: ``rest`` is the shape without the channel axis, its product a multiple of four."""
    rng = np.random.default_rng(seed)
    m, s = math.prod(rest), 2.0**power
    a, b, q = np.asarray(PATTERNS)[rng.integers(0, 4, channels)].T[:, :, None]
    k = rng.permuted(np.tile(np.concatenate([-a, -b, b, a], axis=1), (1, m // 4)), axis=1)
    offsets = rng.choice([-offset, offset], (channels, 1))
    g = rng.integers(-8, 9, (channels, m))
    gamma, beta = (
        2.0 ** rng.integers(-2, 3, (channels, 1)) * rng.choice([-1, 1], (channels, 1)),
        rng.integers(-3, 4, (channels, 1)),
    )
    sum_g, sum_gk = g.sum(axis=1, keepdims=True), (g * k).sum(axis=1, keepdims=True)
    dx = gamma / (q * s) * (g - sum_g / m - k * sum_gk / (q**2 * m))
    old_mean, old_var = rng.integers(-9, 10, channels) * s, rng.integers(2, 30, channels) * s**2

    def shaped(z: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(z.reshape(channels, *rest), 0, axis))

    x = shaped((offsets + k) * s).astype(DTYPES[dtype])
    assert np.array_equal(rows(x, axis), (offsets + k) * s), "the lattice does not fit the dtype"
    with np.errstate(over="ignore"):
        variance = ((a**2 + b**2) // 2)[:, 0] * s**2
    vectors = (gamma[:, 0], beta[:, 0], old_mean, old_var)
    case = case_of(x, vectors, shaped(g).astype(x.dtype), axis=axis, eps=11 * s**2, momentum=momentum)
    return Lattice(
        case, shaped(gamma * (k / q) + beta), offsets[:, 0] * s, variance,
        shaped(dx), (sum_gk / q)[:, 0], sum_g[:, 0],
    )  # fmt: skip
