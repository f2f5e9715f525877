"""Calls that an adapter says it can serve: what the properties draw from."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from polybn.conformance.cases import Case, rows
from polybn.conformance.lattice import ODD, TAILS, Lattice, lattice
from polybn.conformance.strategies import OFFSETS, POWERS, SCALES, WIDE, sample

if TYPE_CHECKING:
    from polybn.conformance.adapter import Info

T = TypeVar("T")

KAPPAS = {
    "float16": (0.0, 1.0, 10.0, 30.0),
    "bfloat16": (0.0, 1.0, 5.0),
    "float32": (0.0, 1.0, 10.0, 100.0, 1e3),
    "float64": (0.0, 1.0, 1e3, 1e6, 1e9),
}
"""Distances from zero at which class F still has useful bounds for a few hundred values."""
SEEDS = st.integers(0, 2**32)
MOMENTA = (0.9, 0.1, 0.75, 0.999, 1 / 3)
FEW = 2
"""The number of shapes of each rank for an adapter that compiles each shape."""


def kappas(info: Info, dtype: str) -> tuple[float, ...]:
    """Return the values of kappa to draw for a dtype, none above the declared maximum."""
    most = math.inf if info.max_kappa is None else info.max_kappa / 2  # `sample` multiplies means by up to 1.4
    return tuple(k for k in KAPPAS[dtype] if k <= most)


@functools.cache
def all_shapes(rank: int, only_second: bool) -> tuple[tuple[tuple[int, ...], int], ...]:
    """List shapes of unequal primes with a channel axis, smallest first; 2 to 400 values a channel."""
    found = []
    for sizes in itertools.permutations((1, 2, 3, 5, 7, 11), rank):
        for axis in (1,) if only_second else range(-rank, rank):
            if 1 < math.prod(sizes) // sizes[axis] <= 400:
                found.append((sizes, axis))
    return tuple(sorted(found, key=lambda pair: (math.prod(pair[0]), pair)))


@functools.cache
def all_rests(rank: int) -> tuple[tuple[int, ...], ...]:
    """List shapes without the channel axis, of 4 to 64 values, all powers of two."""
    found = [r for r in itertools.product((1, 2, 4, 8), repeat=rank - 1) if 4 <= math.prod(r) <= 64]
    return tuple(sorted(found, key=lambda rest: (math.prod(rest), rest)))


@functools.cache
def all_tails(rank: int) -> tuple[tuple[int, ...], ...]:
    """List shapes without the channel axis, of 5 to 65 values, which no vector of 4, 8, 16 or 32 divides."""
    counts = {*ODD, *TAILS}
    sides = [n for n in range(1, max(counts) + 1) if any(m % n == 0 for m in counts)]
    found = [r for r in itertools.product(sides, repeat=rank - 1) if math.prod(r) in counts]
    return tuple(sorted(found, key=lambda rest: (math.prod(rest), rest)))


@functools.cache
def all_lattice_shapes(
    rank: int, only_second: bool, most_channels: int, tails: bool = False
) -> tuple[tuple[tuple[int, ...], int, int], ...]:
    """List triples: a shape without the channel axis, that axis, and the number of channels."""
    axes = (1,) if only_second else range(-rank, rank)
    rests = all_tails(rank) if tails else all_rests(rank)
    return tuple(itertools.product(rests, axes, range(1, most_channels + 1)))


@functools.cache
def all_powers(dtype: str, wide: bool) -> tuple[tuple[int, float], ...]:
    """List powers of two for the scale, smallest first, and momenta."""
    low, high = (WIDE if wide else POWERS)[dtype]
    powers = (low, high) if wide else sorted(range(low, high + 1), key=abs)
    return tuple(itertools.product(powers, (0.0, 0.25, 0.5, 0.75, 1.0)))


def pick(draw: st.DrawFn, pool: Sequence[T]) -> T:
    """Draw from a long sequence; ``sampled_from`` would look at every element each time."""
    return pool[draw(st.integers(0, len(pool) - 1))]


def few(info: Info, pool: Sequence[T]) -> Sequence[T]:
    """Return the sequence, or FEW of its elements, evenly spread, for an adapter that compiles each shape."""
    if not info.compiles or len(pool) <= FEW:
        return pool
    return [pool[(2 * k + 1) * len(pool) // (2 * FEW)] for k in range(FEW)]


def typed(info: Info, pool: Sequence[T]) -> list[tuple[str, T]]:
    """Combine dtypes with the elements of a pool; for an adapter that compiles, only until each stood there once."""
    if not info.compiles:
        return list(itertools.product(info.dtypes, pool))
    length = max(len(info.dtypes), len(pool))
    return list(itertools.islice(zip(itertools.cycle(info.dtypes), itertools.cycle(pool), strict=False), length))


@st.composite
def cases(
    draw: st.DrawFn,
    info: Info,
    *,
    training: bool | None = True,
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64"),
    eps: tuple[float, ...] = (1e-5, 1e-3, 0.2),
    momenta: tuple[float, ...] = MOMENTA,
) -> Case:
    """Draw a random call without constant channels."""
    dtype = draw(st.sampled_from([d for d in dtypes if d in info.dtypes]))
    shape, axis = pick(draw, few(info, all_shapes(draw(st.sampled_from(info.ranks)), info.axes != "any")))
    # One draw in place of four: drawing takes most of the time.
    constants = few(info, tuple(itertools.product(eps, momenta)))
    kappa, scale, (epsilon, momentum) = pick(
        draw, tuple(itertools.product(kappas(info, dtype), SCALES[dtype], constants))
    )
    case = sample(
        draw(SEEDS),
        dtype,
        shape,
        axis,
        kappa=kappa,
        scale=scale,
        eps=epsilon,
        momentum=momentum,
        training=draw(st.booleans()) if training is None else training,
        running_variance=info.running_variance,
    )
    assume((np.ptp(rows(case.x, axis), axis=1) > 0).all())
    return case


def any_call(info: Info) -> st.SearchStrategy[Case]:
    """Draw a random call, in training or, if the adapter infers, in inference."""
    return cases(info, training=None if info.infers else True)


def pairs(info: Info) -> st.SearchStrategy[tuple[Case, Case]]:
    """Draw two random calls in training."""
    return st.tuples(cases(info), cases(info))


def no_float32(info: Info) -> str | None:
    """Return why a property that needs float32 does not apply, or None."""
    return None if "float32" in info.dtypes else "the adapter declares no float32"


@st.composite
def lattices(
    draw: st.DrawFn, info: Info, *, far: bool = False, wide: bool = False, tails: bool = False, most_channels: int = 7
) -> Lattice:
    """Draw a lattice call in training; ``far`` puts it as far from zero as the dtype holds it.

    With ``tails``, the number of values may be odd, too, where an algorithm that multiplies by 1 / m rounds.
    """
    dtype = draw(st.sampled_from([d for d in (WIDE if wide else POWERS) if d in info.dtypes]))
    rank = draw(st.sampled_from(info.ranks))
    pools = [few(info, all_lattice_shapes(rank, info.axes != "any", most_channels, odd)) for odd in (False, tails)]
    if info.compiles:
        shapes: Sequence[tuple[tuple[int, ...], int, int]] = [*pools[0][: FEW // 2], *pools[1][FEW // 2 :]]
    else:  # apart from each other, because numbers of one long list would not shrink from one kind to the other
        shapes = pools[draw(st.integers(0, 1))] if tails else pools[0]
    rest, axis, channels = pick(draw, shapes)
    power, rho = pick(draw, few(info, all_powers(dtype, wide)))
    offset = draw(st.sampled_from((OFFSETS[dtype],) if far else offsets(info)))
    made = lattice(draw(SEEDS), dtype, channels, rest, axis % rank, power, offset)
    return expecting(info, made, momentum=rho)


def offsets(info: Info) -> list[int]:
    """Return small offsets at which kappa, at most ``offset / sqrt(5)``, is not above the one declared."""
    return [k for k in (0, 1, 17) if info.max_kappa is None or k / math.sqrt(5) <= info.max_kappa]


def expecting(info: Info, made: Lattice, momentum: float = 0.75) -> Lattice:
    """Return a lattice call with the running variance that an adapter declares, and with this momentum."""
    return made._replace(case=made.case._replace(running_variance=info.running_variance, momentum=momentum))


def fixed_lattice(info: Info, seed: int, dtype: str, channels: int, rest: tuple[int, ...], **options: Any) -> Lattice:
    """Make a lattice call with the channel axis second."""
    momentum = options.pop("momentum", 0.75)
    return expecting(info, lattice(seed, dtype, channels, rest, 1, **options), momentum)


def fitted(info: Info, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Add axes of length 1 to a shape ``(N, C, ...)``, or merge its last axes, for a rank that the adapter serves."""
    rank = min(info.ranks, key=lambda r: (abs(r - len(shape)), r))
    head, tail = shape[: rank - 1], shape[rank - 1 :]
    if rank >= len(shape):
        return shape + (1,) * (rank - len(shape))
    if rank == 2:
        return (shape[0] * math.prod(shape[2:]), shape[1])
    return (*head, math.prod(tail))


def plain(info: Info, seed: int, dtype: str, shape: tuple[int, ...], **options: Any) -> Case:
    """Make a random call with the channel axis second."""
    return sample(seed, dtype, fitted(info, shape), 1, running_variance=info.running_variance, **options)


def small(info: Info, seed: int, dtype: str) -> Lattice:
    """Make a lattice call with 32 values per channel."""
    shape = fitted(info, (8, 5, 4))
    return fixed_lattice(info, seed, dtype, 5, (shape[0], *shape[2:]), offset=offsets(info)[-1])


class Seeded(NamedTuple):
    """A seed and a dtype to fill a fixed shape with."""

    seed: int
    dtype: str


def seeds(info: Info) -> st.SearchStrategy[Seeded]:
    """Draw a seed and a dtype."""
    return st.builds(Seeded, SEEDS, st.sampled_from(info.dtypes))
