"""Hypothesis strategies for calls of batch norm, which any test suite can use.

- :func:`cases`: random calls at any distance from zero and any scale.
- :func:`values`: the same, all of one dtype, shape and mode, for a library that compiles.
- :func:`lattices`: calls whose answers are exact, to be compared with ``==``.
- :func:`shapes`: shapes of unequal primes, with a channel axis.
- :func:`layouts`: the same array in other memory layouts.

A complete test of your own batch norm::

    from hypothesis import given
    from polybn.conformance import strategies

    @given(made=strategies.lattices())
    def test_mine(made):
        case = made.case
        y = my_batch_norm(case.x, case.gamma, case.beta, eps=case.eps, axis=case.axis)
        assert (y == made.y.astype(case.x.dtype)).all()
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from polybn.conformance.cases import DTYPES, Array, Case, case_of, rows
from polybn.conformance.lattice import Lattice, in_inference, lattice
from polybn.conformance.layouts import LAYOUTS, repeated

RunningVariance: TypeAlias = Literal["biased", "unbiased"]

# The largest distances from zero at which the dtype can tell the values of a channel apart.
LARGEST_KAPPA = {"float16": 1e2, "bfloat16": 10.0, "float32": 1e6, "float64": 1e13}
SCALES = {
    "float16": (0.05, 1.7, 30.0),
    "bfloat16": (3e-3, 1.7, 700.0),
    "float32": (1e-4, 1.7, 3e4),
    "float64": (1e-9, 1.7, 1e8),
}
# The largest offsets that leave every stored value exact, and the ranges of powers of two for s. The wide powers make
# v + eps overflow or vanish in the type of the statistics (S10); the exact answers do not change.
OFFSETS = {"float16": 1000, "bfloat16": 80, "float32": 4096, "float64": 2**27}
POWERS = {"float16": (-3, 3), "bfloat16": (-9, 9), "float32": (-40, 40), "float64": (-300, 300)}
WIDE = {"float32": (-61, 61), "float64": (-509, 509)}


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
    """Make a random call, the same for the same arguments.

    Parameters
    ----------
    seed : int
        The seed of all random numbers.
    dtype : str, default "float32"
        The dtype of x: float16, bfloat16, float32 or float64.
    shape : tuple of int, default (7, 3, 5)
        The shape of x.
    axis : int, default 1
        The channel axis.
    kappa : float, default 3.0
        The approximate distance of each channel's mean from zero, in standard deviations.
    scale : float, default 1.7
        The approximate standard deviation of each channel.
    **options
        Further fields of ``Case``.

    Returns
    -------
    Case

    Examples
    --------
    >>> sample(0, shape=(2, 3)).x.shape
    (2, 3)
    """
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
def shapes(
    draw: st.DrawFn, *, ranks: tuple[int, ...] = (2, 3, 4, 5), second: bool = False
) -> tuple[tuple[int, ...], int]:
    """Draw a shape of unequal primes and a channel axis; a channel has 2 to 400 values.

    Parameters
    ----------
    ranks : tuple of int, default (2, 3, 4, 5)
        The ranks to draw from.
    second : bool, default False
        Always take axis 1; else any axis, counted from either end.

    Returns
    -------
    SearchStrategy of (tuple of int, int)

    Examples
    --------
    >>> strategy = shapes(ranks=(4,), second=True)
    """
    rank = draw(st.sampled_from(ranks))
    sizes = draw(st.lists(st.sampled_from((1, 2, 3, 5, 7, 11)), min_size=rank, max_size=rank, unique=True))
    axis = 1 if second else draw(st.integers(-rank, rank - 1))
    assume(1 < math.prod(sizes) // sizes[axis] <= 400)
    return tuple(sizes), axis


@st.composite
def cases(
    draw: st.DrawFn,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    *,
    training: bool | None = None,
    ranks: tuple[int, ...] = (2, 3, 4, 5),
    second: bool = False,
    largest_kappa: float = math.inf,
) -> Case:
    """Draw a random call without constant channels; the results of a correct batch norm lie within error bounds.

    Parameters
    ----------
    dtypes : tuple of str
        The dtypes of x to draw from, by default all four.
    training : bool, optional
        Training or inference; by default both are drawn.
    ranks : tuple of int, default (2, 3, 4, 5)
        The ranks of x to draw from.
    second : bool, default False
        Keep the channels on axis 1.
    largest_kappa : float, default inf
        The approximate largest distance of a mean from zero, in standard deviations; the dtype limits it, too.

    Returns
    -------
    SearchStrategy of Case
        In some cases gamma or beta is None, or, in training, both running statistics are.

    Examples
    --------
    >>> strategy = cases(("float32",), training=True, largest_kappa=1e3)
    """
    dtype = draw(st.sampled_from(dtypes))
    shape, axis = draw(shapes(ranks=ranks, second=second))
    mode = draw(st.booleans()) if training is None else training
    case = draw(values(dtype, shape, axis, training=mode, largest_kappa=largest_kappa))
    case = case._replace(running_variance=draw(st.sampled_from(("biased", "unbiased"))))
    absent: dict[str, Any] = {name: None for name in ("gamma", "beta") if draw(st.integers(0, 3)) == 0}
    if case.training and draw(st.integers(0, 3)) == 0:
        absent |= {"running_mean": None, "running_var": None}
    return case._replace(**absent)


@st.composite
def values(
    draw: st.DrawFn, dtype: str, shape: tuple[int, ...], axis: int, *, training: bool, largest_kappa: float = math.inf
) -> Case:
    """Draw the numbers of a random call of one form, for a library that compiles each form.

    Parameters
    ----------
    dtype : str
        The dtype of x.
    shape : tuple of int
        The shape of x.
    axis : int
        The channel axis.
    training : bool
        Whether the call is for training or for inference.
    largest_kappa : float, default inf
        The largest mean in standard deviations, roughly; the dtype is another limit.

    Returns
    -------
    SearchStrategy of Case
        Cases with all vectors and the biased variance; no channel is constant.

    Examples
    --------
    >>> strategy = values("float32", (7, 3, 5), 1, training=True)
    """
    limit = min(LARGEST_KAPPA[dtype], largest_kappa)
    kappas = [k for k in (0.0, 1.0, 10.0, 1e2, 1e3, 1e4, 1e6, 1e9, 1e13) if k <= limit]
    case = sample(
        draw(st.integers(0, 2**32)),
        dtype,
        shape,
        axis,
        kappa=draw(st.sampled_from(kappas)),
        scale=draw(st.sampled_from(SCALES[dtype])),
        training=training,
        momentum=draw(st.sampled_from((0.9, 0.1, 0.75, 0.999, 1 / 3))),
        eps=draw(st.sampled_from((0.0, 1e-5, 1e-3, 0.2))),
    )
    assume((np.ptp(rows(case.x, axis), axis=1) > 0).all())
    return case


@st.composite
def lattices(
    draw: st.DrawFn,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    *,
    wide: bool = False,
    odd: bool = False,
    training: bool = True,
    ranks: tuple[int, ...] = (2, 3, 4, 5),
    second: bool = False,
) -> Lattice:
    """Draw a call whose answers are exact: y, running statistics and gradients are compared with ``==``.

    Parameters
    ----------
    dtypes : tuple of str
        The dtypes of x to draw from, by default all four.
    wide : bool, default False
        Make ``v + eps`` overflow or vanish in the type of the statistics (S10), for float32 and float64 only.
    odd : bool, default False
        Let m be 5 or 9, where the unbiased variance is exact, too; else m is a power of two from 4 to 64.
    training : bool, default True
        Training, or inference with running statistics that are not the batch's.
    ranks : tuple of int, default (2, 3, 4, 5)
        The ranks of x to draw from.
    second : bool, default False
        Keep the channels on axis 1.

    Returns
    -------
    SearchStrategy of Lattice

    Examples
    --------
    >>> strategy = lattices(("float32",), ranks=(4,), second=True)
    """
    dtype = draw(st.sampled_from([d for d in dtypes if not wide or d in WIDE]))
    channels, size = draw(st.integers(1, 7)), draw(st.sampled_from(ranks)) - 1
    rest = draw(_odd_sizes(size) if odd and training else _even_sizes(size))
    axis = 1 if second else draw(st.integers(0, size))
    power, offset, rho = draw(lattice_values(dtype, wide=wide))
    made = lattice(draw(st.integers(0, 2**32)), dtype, channels, rest, axis, power, offset)
    made = made._replace(case=made.case._replace(momentum=rho))
    return made if training else in_inference(made, draw(st.integers(0, 2**32)))


@st.composite
def lattice_values(draw: st.DrawFn, dtype: str, *, wide: bool) -> tuple[int, int, float]:
    """Draw the power of two, the offset and the momentum of a lattice call."""
    low, high = (WIDE if wide else POWERS)[dtype]
    power = draw(st.sampled_from((low, high)) if wide else st.integers(low, high))
    offset = draw(st.sampled_from((0, 1, 17, OFFSETS[dtype])))
    return power, offset, draw(st.sampled_from((0.0, 0.25, 0.5, 0.75, 1.0)))


def _even_sizes(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    sides = st.lists(st.sampled_from((1, 2, 4, 8)), min_size=size, max_size=size)
    if size == 1:
        sides = st.lists(st.sampled_from((4, 8, 16, 32, 64)), min_size=1, max_size=1)
    return sides.filter(lambda sides: 4 <= math.prod(sides) <= 64).map(tuple)


def _odd_sizes(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    products = [(5,), (9,)] + ([(3, 3)] if size > 1 else [])
    padded = st.sampled_from(products).flatmap(lambda p: st.permutations([*p, *[1] * (size - len(p))]))
    return padded.map(tuple)


def layouts(array: Array) -> st.SearchStrategy[Array]:
    """Draw the same values in another memory layout: no result may change.

    Parameters
    ----------
    array : ndarray
        Any shape: x, dy, or a vector of parameters.

    Returns
    -------
    SearchStrategy of ndarray
        An array of each layout in LAYOUTS, and a view with strides of 0 if all values along an axis are equal.

    Examples
    --------
    >>> strategy = layouts(np.zeros((2, 3, 5)))
    """
    names = st.sampled_from(sorted(LAYOUTS))
    laid = names.map(lambda name: LAYOUTS[name](array))
    zero = repeated(array)
    return laid if zero is None else st.one_of(laid, st.just(zero))


__all__ = ["cases", "lattices", "layouts", "sample", "shapes", "values"]
