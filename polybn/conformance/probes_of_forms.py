"""Which channel axes, ranks and dtypes are served, as far as calls with exact answers show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polybn.conformance import forms
from polybn.conformance.cases import DTYPES, Case, statistics_dtype
from polybn.conformance.lattice import lattice
from polybn.conformance.probes import CLOSE, ROUNDINGS, named_dtype, plain_call
from polybn.conformance.properties.compare import changed
from polybn.conformance.runner import CallError, KitAdapterError, run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info


def axes(adapter: Adapter, info: Info) -> str:
    """See where the channel axis may be."""
    rank = max(info.ranks)
    second = lattice(1, named_dtype(info), 3, (4,) * (rank - 1), 1).case
    base = run(adapter, info, second, gradients=False)
    close = max(CLOSE, ROUNDINGS * forms.format_of(named_dtype(info)).stored)
    for axis in {0, rank - 1, -rank} - {1}:
        try:
            got = run(adapter, info, second.moved(axis)._replace(axis=axis), gradients=False)
        except CallError:
            return "second"
        if not np.allclose(np.moveaxis(got.y, axis, 1).astype(float), base.y.astype(float), close, close):
            return "second"
    return "any"


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
    """List the ranks of x that are served."""
    dtype = named_dtype(info)
    calls = {rank: lattice(1, dtype, 3, (4,) + (1,) * (rank - 2), 1).case for rank in info.ranks}
    return ", ".join(str(rank) for rank, case in calls.items() if _serves(adapter, info, case))


def _serves(adapter: Adapter, info: Info, case: Case) -> bool:
    try:
        run(adapter, info, case, gradients=False)
    except (CallError, KitAdapterError):
        return False
    return True
