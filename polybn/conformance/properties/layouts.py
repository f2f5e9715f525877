"""P12: how arrays lie in memory does not matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from hypothesis import strategies as st

from polybn.conformance.cases import Array
from polybn.conformance.lattice import Lattice, in_inference
from polybn.conformance.properties import drawn
from polybn.conformance.properties.kinds import Property, agree, changed
from polybn.conformance.runner import run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info


def fortran(a: Array) -> Array:
    """Lay out with the first axis fastest."""
    return np.asfortranarray(a)


def reversed_storage(a: Array) -> Array:
    """Lay out backwards, with negative strides."""
    flipped = tuple(slice(None, None, -1) for _ in a.shape)
    return np.ascontiguousarray(a[flipped])[flipped]


def every_second(a: Array) -> Array:
    """Leave a gap after every element."""
    wide = np.full([2 * n for n in a.shape], 77, a.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def channels_last(a: Array) -> Array:
    """Lay out with the channels of axis 1 fastest."""
    return a if a.ndim < 2 else np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


def offset(a: Array) -> Array:
    """Begin in the middle of a buffer."""
    room = np.full(a.size + 3, 55, a.dtype)
    room[3:] = a.ravel()
    return room[3:].reshape(a.shape)


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "Fortran order": fortran,
    "negative strides": reversed_storage,
    "every second element": every_second,
    "channels last in memory": channels_last,
    "an offset view": offset,
}


ARGUMENTS = ("x", "dy", "gamma", "beta", "running_mean", "running_var")


class Layout(NamedTuple):
    """A lattice call, and which of its arguments lie how in memory."""

    made: Lattice
    names: dict[str, str]
    """From arguments to layouts; those that are not there are plain."""


@st.composite
def layouts(draw: st.DrawFn, info: Info) -> Layout:
    """Draw a layout for each argument."""
    made, choice = draw(drawn.lattices(info)), st.sampled_from(("", *LAYOUTS))
    return Layout(made, {name: found for name in ARGUMENTS if (found := draw(choice))})


def layout(adapter: Adapter, info: Info, which: Layout) -> float:
    """P12, in training and in inference."""
    runs = []
    for made in (which.made, in_inference(which.made)) if info.infers else (which.made,):
        case = made.case
        laid = changed(case, **{name: LAYOUTS[found](getattr(case, name)) for name, found in which.names.items()})
        runs.append((laid, run(adapter, info, laid, as_is=True), run(adapter, info, case)))
    words = " and ".join(f"{name} in {found}" for name, found in which.names.items()) or "plain order"
    return agree(info, f"when arguments lie in memory otherwise: {words}", *runs)


def broadcast(adapter: Adapter, info: Info, filled: drawn.Seeded) -> float:
    """P12: 0-strides; dy of all ones is what a sum sends back, and it is one number in memory."""
    case = drawn.small(info, *filled).case
    shape, one = case.x.shape, np.ones((1,) * case.x.ndim, case.x.dtype)
    laid = case._replace(x=np.broadcast_to(case.x[..., :1], shape), dy=np.broadcast_to(one, shape))
    plain = laid._replace(x=np.array(laid.x, order="C"), dy=np.array(laid.dy, order="C"))
    base, got = run(adapter, info, plain), run(adapter, info, laid, as_is=True)
    return agree(info, "when x and dy are broadcast, with strides of 0", (plain, got, base))


PROPERTIES: Sequence[Property] = (
    Property("P12", "Strides do not matter: Fortran order, steps, negative strides, offsets, for every argument.",
             "S1", layout, layouts),
    Property("P12b", "Arrays that are broadcast, with strides of 0, are read like any others.",
             "S1", broadcast, drawn.seeds),
)  # fmt: skip
