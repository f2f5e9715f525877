"""See, from inputs with exact answers, what a batch norm means by the same words, and compare with what it declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polybn.conformance.cases import DTYPES, Case, statistics_dtype
from polybn.conformance.lattice import lattice
from polybn.conformance.properties import served
from polybn.conformance.properties.compare import changed
from polybn.conformance.properties.property import UNTRACKED
from polybn.conformance.runner import CallError, KitAdapterError, run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info
    from polybn.conformance.cases import Outcome

CLOSE = 1e-3
"""Candidates are told apart to this; roundings are far below it, and conventions far above."""


class Convention(NamedTuple):
    """What an adapter declares about one convention, and what was seen."""

    name: str
    declared: str
    seen: str
    """In the words of the declaration, or what else was found."""
    clause: str
    explanation: str
    """What it means, and what the specification says; for people."""
    specification: str
    """What the specification would declare."""

    @property
    def ok(self) -> bool:
        """Whether the declaration is true."""
        # To declare that subnormal numbers are flushed is to ask for room, not a promise.
        return self.seen == self.declared or (self.name == "flushes" and self.declared == "yes")

    @property
    def differs(self) -> bool:
        """Whether what is declared is not what the specification says."""
        return self.declared != self.specification


def detect(adapter: Adapter, info: Info) -> list[Convention]:
    """Find out what an adapter does wherever libraries disagree.

    Parameters
    ----------
    adapter : Adapter
        Which is called a few times for each convention.
    info : Info
        What it declares.

    Returns
    -------
    list of Convention
        One for each name in :data:`NAMES` that can be seen.

    Examples
    --------
    >>> from polybn.conformance.adapters import resolve
    >>> adapter = resolve("polybn-numpy")
    >>> [c.seen for c in detect(adapter, adapter.info()) if c.name == "momentum"]
    ['old']
    """
    return [detect_one(adapter, info, name) for name in NAMES if why_not(info, name) is None]


def why_not(info: Info, name: str) -> str | None:
    """Return why a convention cannot be seen, or None: some are seen in running statistics alone.

    Parameters
    ----------
    name : str
        One of :data:`NAMES`.
    """
    return UNTRACKED if name in ("momentum", "running_variance", "flushes") and not info.tracks else None


def detect_one(adapter: Adapter, info: Info, name: str) -> Convention:
    """Find out about one convention.

    Parameters
    ----------
    name : str
        One of :data:`NAMES`.
    """
    clause, look, declared, specification, explanation = _CONVENTIONS[name]
    try:
        seen = look(adapter, info)
    except (CallError, KitAdapterError) as error:
        seen = f"nothing, because {error}"
    if name == "single_value" and info.running_variance == "unbiased":
        specification = "error"  # the specification refuses an unbiased variance of one value
    return Convention(name, declared(info), seen, clause, explanation, specification)


def _plain(info: Info, **options: Any) -> Case:
    """Make a lattice call of five values: mean 2, biased variance 2, unbiased 2.5; old mean 8, old variance 4."""
    shape = served.fitted(info, (5, 3))
    dtype = "float32" if "float32" in info.dtypes else info.dtypes[0]
    made = lattice(1, dtype, 3, (5, *shape[2:]), 1, offset=0)
    wide = statistics_dtype(made.case.x)
    x = (made.case.x + made.case.x.dtype.type(2)).astype(made.case.x.dtype)
    old = {"running_mean": np.full(3, 8, wide), "running_var": np.full(3, 4, wide)}
    return changed(made.case, x=x, **old, **options)


def _nearest(value: float, candidates: dict[str, float]) -> str:
    near = [name for name, of in candidates.items() if abs(value - of) <= CLOSE * abs(of)]
    return (
        near[0]
        if near
        else f"neither: {value:.6g} where {', '.join(f'{n} gives {v:g}' for n, v in candidates.items())}"
    )


def _momentum(adapter: Adapter, info: Info) -> str:
    # Whatever is declared, the library is given 0.75 itself.
    case = _plain(info, momentum=0.75 if info.momentum == "old" else 0.25)
    outcome = run(adapter, info, case, gradients=False)
    candidates = {"old": 6.5, "new": 3.5, "the old value, always": 8.0, "the batch's value, always": 2.0}
    return _nearest(float(_vector(outcome, "running_mean")[0]), candidates)


def _running_variance(adapter: Adapter, info: Info) -> str:
    # With the weights one half, the sense of momentum does not matter.
    case = _plain(info, momentum=0.5)
    variance = 2 * float(_vector(run(adapter, info, case, gradients=False), "running_var")[0]) - 4
    candidates = {
        "biased": 2.0, "unbiased": 2.5, "the standard deviation": 2**0.5, "the variance plus eps": 2 + case.eps,
        "1 / sqrt(variance + eps)": (2 + case.eps) ** -0.5, "nothing": 4.0,
    }  # fmt: skip
    return _nearest(variance, candidates)


def _vector(outcome: Outcome, name: str) -> Any:
    return getattr(outcome, name)


def _single_value(adapter: Adapter, info: Info) -> str:
    case = _plain(info)
    case = case._replace(x=case.x[:1].copy(), dy=case.dy[:1].copy())
    try:
        y = run(adapter, info, case, gradients=False).y
    except CallError:
        return "error"
    assert case.beta is not None
    beta = case.beta.reshape((1, 3) + (1,) * (y.ndim - 2)).astype(y.dtype)
    return (
        "beta" if np.array_equal(y, beta) else f"neither: y = {y.ravel().tolist()} where beta is {case.beta.tolist()}"
    )


def _empty(adapter: Adapter, info: Info) -> str:
    case = _plain(info)
    try:
        outcome = run(adapter, info, case._replace(x=case.x[:0].copy(), dy=case.dy[:0].copy()), gradients=False)
    except CallError:
        return "error"
    names = ("running_mean", "running_var") if info.tracks else ()
    kept = all(np.array_equal(_vector(outcome, n), getattr(case, n)) for n in names)
    return "kept" if kept else "changed"


def _flushes(adapter: Adapter, info: Info) -> str:
    if "float32" not in info.dtypes:
        return "no"
    tiny = np.float32(2.0**-140)
    case = _plain(info, momentum=0.0)
    case = case._replace(x=np.full_like(case.x, tiny), running_mean=np.zeros(3, np.float32))
    mean = _vector(run(adapter, info, case, gradients=False), "running_mean")
    return (
        "no"
        if np.array_equal(mean, np.full(3, tiny))
        else "yes"
        if not mean.any()
        else f"neither: the mean of 2^-140 is {mean[0]}"
    )


def _axes(adapter: Adapter, info: Info) -> str:
    rank = max(info.ranks)
    second = lattice(1, _dtype(info), 3, (4,) * (rank - 1), 1).case
    base = run(adapter, info, second, gradients=False)
    for axis in {0, rank - 1, -rank} - {1}:
        try:
            got = run(adapter, info, second.moved(axis)._replace(axis=axis), gradients=False)
        except CallError:
            return "second"
        if not np.array_equal(np.moveaxis(got.y, axis, 1), base.y):
            return "second"
    return "any"


def _dtype(info: Info) -> str:
    return "float32" if "float32" in info.dtypes else info.dtypes[0]


def _dtypes(adapter: Adapter, info: Info) -> str:
    case, seen = _plain(info), []
    for name in info.dtypes:
        dtype = DTYPES[name]
        other = case._replace(x=case.x.astype(dtype), dy=case.dy.astype(dtype))
        wide = statistics_dtype(other.x)
        vectors = {n: a.astype(wide) for n, a in case.arrays().items() if n != "x" and a is not None}
        other = changed(other, **vectors)
        seen += [name] if _serves(adapter, info, other) else []
    return ", ".join(seen)


def _ranks(adapter: Adapter, info: Info) -> str:
    dtype = _dtype(info)
    calls = {rank: lattice(1, dtype, 3, (4,) + (1,) * (rank - 2), 1).case for rank in info.ranks}
    return ", ".join(str(rank) for rank, case in calls.items() if _serves(adapter, info, case))


def _serves(adapter: Adapter, info: Info, case: Case) -> bool:
    try:
        run(adapter, info, case)
    except (CallError, KitAdapterError):
        return False
    return True


def _text(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))


_Look = tuple[str, Callable[["Adapter", "Info"], str], Callable[["Info"], str], str, str]
_CONVENTIONS: dict[str, _Look] = {
    "momentum": (
        "S4", _momentum, lambda i: i.momentum, "old",
        "which value the library's momentum weighs, the old running value or the new; the specification: the old",
    ),
    "running_variance": (
        "S4", _running_variance, lambda i: i.running_variance, "biased",
        "what the running variance takes in: v (biased), or v m / (m - 1) (unbiased); the specification: biased, "
        "unless running_variance='unbiased' asks for the other",
    ),
    "single_value": (
        "S11", _single_value, lambda i: i.single_value,
        "beta",
        "training on one value per channel; the specification: y is beta, and an error where the running variance is "
        "unbiased",
    ),
    "empty": (
        "S11", _empty, lambda i: i.empty, "kept",
        "the running statistics after training on no values; the specification: kept as they are",
    ),
    "axes": (
        "S1", _axes, lambda i: i.axes, "any",
        "where the channel axis may be; the specification: anywhere",
    ),
    "ranks": (
        "S1", _ranks, lambda i: _text(i.ranks), "2, 3, 4, 5",
        "the ranks of x that are served; the specification: 2 and more",
    ),
    "dtypes": (
        "S6", _dtypes, lambda i: _text(i.dtypes), ", ".join(DTYPES),
        "the dtypes of x that are served; the specification: these four",
    ),
    "flushes": (
        "S2", _flushes, lambda i: "yes" if i.flushes else "no", "no",
        "whether subnormal numbers are flushed to zero; the specification leaves them",
    ),
}  # fmt: skip
NAMES = tuple(_CONVENTIONS)
"""Of all conventions that are detected."""
