"""Which channel axes, ranks and dtypes are served, as far as calls with exact answers show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polybn.conformance import forms
from polybn.conformance.cases import DTYPES, Array, Case, statistics_dtype
from polybn.conformance.convention import UNSEEN
from polybn.conformance.lattice import lattice
from polybn.conformance.probes import CLOSE, ROUNDINGS, named_dtype, plain_call
from polybn.conformance.properties.compare import changed
from polybn.conformance.runner import CallError, KitAdapterError, run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info


def axes(adapter: Adapter, info: Info) -> str:
    """See where the channel axis may be."""
    info, rank = info._replace(axes="any"), max(info.ranks)
    made = lattice(1, named_dtype(info), 3, (4,) * (rank - 1), 1)
    found = {axis: _channels_second(adapter, info, made.case, axis) for axis in (1, 0, rank - 1, -rank)}
    # Who is wrong at any axis is wrong for other reasons; then results that agree show which axes are served.
    right = [axis for axis in found if _near(found[axis], made.y)] or [a for a in found if _near(found[a], found[1])]
    if not right:
        run(adapter, info, made.case, gradients=False)  # raises, which says why
    if len(right) == len(found):
        return "any"
    return "second" if 1 in right else "last" if rank - 1 in right else UNSEEN


def _channels_second(adapter: Adapter, info: Info, case: Case, axis: int) -> Array | None:
    """Return y for a channel axis, moved to the second place; None if such a call is not served."""
    try:
        outcome = run(adapter, info, case.moved(axis)._replace(axis=axis), gradients=False)
    except (CallError, KitAdapterError):
        return None
    return np.moveaxis(outcome.y, axis, 1)


def _near(got: Array | None, right: Array | None) -> bool:
    if got is None or right is None:
        return False
    close = max(CLOSE, ROUNDINGS * forms.format_of(got.dtype.name).stored)
    return np.allclose(got.astype(float), right.astype(float), close, close)


def dtypes(adapter: Adapter, info: Info) -> str:
    """List the dtypes of x that are served."""
    case, seen = plain_call(info), []
    for name in info.dtypes:
        dtype = DTYPES[name]
        other = case._replace(x=case.x.astype(dtype), dy=case.dy.astype(dtype))
        wide = statistics_dtype(other.x)
        vectors = {n: a.astype(wide) for n, a in case.arrays().items() if n != "x" and a is not None}
        other = changed(other, **vectors)
        seen += [name] if _serves(adapter, info, other) else []
    return ", ".join(seen)


def ranks(adapter: Adapter, info: Info) -> str:
    """List the ranks of x that are served, with the channels second or last."""
    info, dtype = info._replace(axes="any"), named_dtype(info)
    calls = {rank: lattice(1, dtype, 3, (4,) + (1,) * (rank - 2), 1).case for rank in info.ranks}
    return ", ".join(
        str(rank)
        for rank, case in calls.items()
        if _serves(adapter, info, case) or _serves(adapter, info, case.moved(rank - 1))
    )


def _serves(adapter: Adapter, info: Info, case: Case) -> bool:
    try:
        run(adapter, info, case, gradients=False)
    except (CallError, KitAdapterError):
        return False
    return True
