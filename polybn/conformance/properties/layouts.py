"""Results do not depend on how arrays lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from hypothesis import strategies as st

from polybn.conformance.lattice import Lattice, in_inference
from polybn.conformance.layouts import LAYOUTS
from polybn.conformance.properties import served
from polybn.conformance.properties.compare import agree, changed
from polybn.conformance.properties.property import Property
from polybn.conformance.runner import run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info


ARGUMENTS = ("x", "dy", "gamma", "beta", "running_mean", "running_var")


class Layout(NamedTuple):
    """A lattice call, and the memory layouts of its arguments."""

    made: Lattice
    names: dict[str, str]
    """The layout of each argument by name; arguments that are missing here are contiguous."""


@st.composite
def layouts(draw: st.DrawFn, info: Info) -> Layout:
    """Draw a layout for each argument."""
    made, choice = draw(served.lattices(info)), st.sampled_from(("", *LAYOUTS))
    return Layout(made, {name: found for name in ARGUMENTS if (found := draw(choice))})


def layout(adapter: Adapter, info: Info, which: Layout) -> float:
    """Call with arguments in other memory layouts, in training and in inference: results are the same."""
    runs = []
    for made in (which.made, in_inference(which.made)) if info.infers else (which.made,):
        case = made.case
        laid = changed(case, **{name: LAYOUTS[found](getattr(case, name)) for name, found in which.names.items()})
        runs.append((laid, run(adapter, info, laid, as_is=True), run(adapter, info, case)))
    words = " and ".join(f"{name} in {found}" for name, found in which.names.items()) or "plain order"
    return agree(info, f"when arguments lie in memory otherwise: {words}", *runs)


def broadcast(adapter: Adapter, info: Info, filled: served.Seeded) -> float:
    """Call with strides of 0, such as those of a dy of ones, the cotangent of a sum: results are the same."""
    case = served.small(info, *filled).case
    shape, one = case.x.shape, np.ones((1,) * case.x.ndim, case.x.dtype)
    laid = case._replace(x=np.broadcast_to(case.x[..., :1], shape), dy=np.broadcast_to(one, shape))
    plain = laid._replace(x=np.array(laid.x, order="C"), dy=np.array(laid.dy, order="C"))
    base, got = run(adapter, info, plain), run(adapter, info, laid, as_is=True)
    return agree(info, "when x and dy are broadcast, with strides of 0", (plain, got, base))


PROPERTIES: Sequence[Property] = (
    Property("P12", "Strides do not matter: Fortran order, steps, negative strides, offsets, for every argument.",
             "S1", layout, layouts),
    Property("P12b", "Arrays that are broadcast, with strides of 0, are read like any others.",
             "S1", broadcast, served.seeds),
)  # fmt: skip
