"""The calls that :mod:`polybn.conformance.agree` makes: drawn from what two batch norms both declare."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polybn.conformance.cases import Case
from polybn.conformance.lattice import in_inference, lattice
from polybn.conformance.strategies import LARGEST_KAPPA, SCALES, sample

if TYPE_CHECKING:
    from polybn.conformance.adapter import Info

DTYPES = ("float16", "bfloat16", "float32", "float64")
SHAPES = ((7, 3), (2, 5), (11, 2, 3), (3, 2, 5, 7), (2, 13, 3, 1, 5))
EXACT_RESTS = ((4, 2, 4), (4, 8), (32,), (2, 2, 2, 4))
"""Shapes of x without the channel axis for calls with exact answers: the first one whose rank is served is taken."""


class Space(NamedTuple):
    """What calls may be like."""

    dtypes: tuple[str, ...]
    axes: tuple[tuple[int, tuple[int, ...]], ...]
    """For each rank that has any, the channel axes."""
    infers: bool

    def __bool__(self) -> bool:
        """Return whether there is any call."""
        return bool(self.dtypes and self.axes)


def space_of(info: Info) -> Space:
    """Return what a batch norm declares."""
    ranks = (rank for rank in sorted({len(shape) for shape in SHAPES}) if rank in info.ranks)
    dtypes = tuple(dtype for dtype in DTYPES if dtype in info.dtypes)
    return Space(dtypes, tuple((rank, _axes(info, rank)) for rank in ranks), info.infers)


def _axes(info: Info, rank: int) -> tuple[int, ...]:
    """Return the channel axes of calls; who serves the last axis is given channels there that a call has at axis 1."""
    return {"second": (1,), "last": tuple({1, rank - 1})}.get(info.axes, tuple(range(rank)))


def common(a: Space, b: Space) -> Space:
    """Return what both serve."""
    dtypes, others = tuple(dtype for dtype in a.dtypes if dtype in b.dtypes), dict(b.axes)
    both = ((rank, tuple(axis for axis in axes if axis in others.get(rank, ()))) for rank, axes in a.axes)
    return Space(dtypes, tuple((rank, axes) for rank, axes in both if axes), a.infers and b.infers)


def spaces(infos: Iterable[Info]) -> list[Space]:
    """List what two of the batch norms have in common, each once."""
    return [*dict.fromkeys(common(a, b) for a, b in combinations(map(space_of, infos), 2))]


def draw(number: int, seed: int, among: list[Space]) -> tuple[Case, bool]:
    """Return a call from each space in turn, and whether its answers are exact."""
    rng = np.random.default_rng([seed, number])
    space, turn = among[number % len(among)], number // len(among)
    dtype = space.dtypes[turn % len(space.dtypes)]
    training = turn % 3 != 2 or not space.infers
    axes = dict(space.axes)
    if turn % 5 == 4:
        rest = next(rest for rest in EXACT_RESTS if len(rest) + 1 in axes)
        axis = int(rng.choice(axes[len(rest) + 1]))
        made = lattice(int(rng.integers(2**32)), dtype, 3, rest, axis, offset=17)
        return (made if training else in_inference(made)).case, True
    shapes = [shape for shape in SHAPES if len(shape) in axes]
    shape = shapes[int(rng.integers(len(shapes)))]
    options: dict[str, Any] = {
        "axis": int(rng.choice(axes[len(shape)])),
        "kappa": float(rng.choice((0.3, 3.0, 0.1 * LARGEST_KAPPA[dtype]))),
        "scale": float(rng.choice(SCALES[dtype])),
    }
    return sample(int(rng.integers(2**32)), dtype, shape, **options, training=training), False


def serves(info: Info, case: Case) -> bool:
    """Return whether a batch norm declares a call."""
    placed = case.x.ndim in info.ranks and case.axis in _axes(info, case.x.ndim)
    return placed and (case.training or info.infers) and case.x.dtype.name in info.dtypes
