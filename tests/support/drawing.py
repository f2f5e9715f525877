"""Strategies that draw few forms for a library that compiles a program for each: values vary as freely as ever.

A form is what a compiled program is made for: dtype, shape, axis, mode, and which arguments are there. With the kit's
own strategies nearly each example has another one, and half a second of compiling says nothing about batch norm.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from hypothesis import strategies as st

from polybn.conformance import strategies
from polybn.conformance.cases import DTYPES, Case
from polybn.conformance.lattice import Lattice, in_inference, lattice

T = TypeVar("T")
_FEW = ContextVar("_FEW", default=False)


@contextmanager
def few_forms(few: bool = True) -> Generator[None, None, None]:
    """Draw few forms inside of this context, if asked to."""
    token = _FEW.set(few)
    try:
        yield
    finally:
        _FEW.reset(token)


class Form(NamedTuple):
    """What a random call is compiled for."""

    dtype: str
    shape: tuple[int, ...]
    axis: int
    training: bool
    running_variance: Any
    absent: tuple[str, ...] = ()


FORMS = (
    Form("float32", (7, 3, 5), 1, True, "unbiased"),
    Form("float32", (11, 2), -1, False, "biased"),
    Form("float64", (3, 2, 5, 7), 1, True, "biased"),
    Form("float64", (5, 3), 0, False, "unbiased", ("beta",)),
    Form("float16", (5, 2, 3, 1, 7), -3, True, "biased", ("gamma",)),
    Form("float16", (7, 2, 3), 1, False, "biased"),
    Form("bfloat16", (11, 3), 1, True, "unbiased", ("running_mean", "running_var")),
    Form("bfloat16", (2, 3, 5), -3, False, "biased", ("gamma", "beta")),
)
"""Each dtype in both modes, each rank, channels first, in the middle and last; each vector is absent at times."""
EVEN = (((2, 1, 8), 0, 7), ((4, 2, 4), 1, 5), ((8,), 1, 3), ((2, 2, 1, 4), 4, 2))
"""Of a lattice: the shape without the channel axis, that axis, and how many channels."""
ODD = (((3, 3), 1, 7), ((5,), 1, 3), ((9,), 0, 5), ((1, 5, 1), 3, 2))


@st.composite
def cases(
    draw: st.DrawFn, /, dtypes: tuple[str, ...] = tuple(DTYPES), *, training: bool | None = None, **options: Any
) -> Case:
    """Draw a random call, as the strategy of this name in the kit does."""
    if not _FEW.get():
        return draw(strategies.cases(dtypes, training=training, **options))
    form = draw(st.sampled_from([f for f in FORMS if f.dtype in dtypes and training in (None, f.training)]))
    largest = options.get("largest_kappa", math.inf)
    case = draw(strategies.values(*form[:3], training=form.training, largest_kappa=largest))
    absent: dict[str, Any] = dict.fromkeys(form.absent)
    return case._replace(running_variance=form.running_variance, **absent)


@st.composite
def lattices(
    draw: st.DrawFn,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    *,
    wide: bool = False,
    odd: bool = False,
    training: bool = True,
) -> Lattice:
    """Draw a call whose answers are exact, as the strategy of this name in the kit does."""
    if not _FEW.get():
        return draw(strategies.lattices(dtypes, wide=wide, odd=odd, training=training))
    dtypes = tuple(d for d in dtypes if not wide or d in strategies.WIDE)
    dtype, (rest, axis, channels) = draw(forms(dtypes, ODD if odd and training else EVEN))
    power, offset, momentum = draw(strategies.lattice_values(dtype, wide=wide))
    seed = st.integers(0, 2**32)
    made = lattice(draw(seed), dtype, channels, rest, axis, power, offset)
    made = made._replace(case=made.case._replace(momentum=momentum))
    return made if training else in_inference(made, draw(seed))


@st.composite
def narrowed(draw: st.DrawFn, strategy: st.SearchStrategy[T], few: Sequence[T]) -> T:
    """Draw from a strategy; where forms are few, one of these."""
    return draw(st.sampled_from(few) if _FEW.get() else strategy)


@st.composite
def forms(draw: st.DrawFn, *pools: Sequence[Any]) -> tuple[Any, ...]:
    """Draw one of each pool; where forms are few, only combinations that together hold each member of each pool."""
    if not _FEW.get():
        return tuple(draw(st.sampled_from(pool)) for pool in pools)
    k = draw(st.integers(0, max(map(len, pools)) - 1))
    return tuple(pool[k % len(pool)] for pool in pools)
