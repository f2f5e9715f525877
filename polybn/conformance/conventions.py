"""Find out, from inputs with exact answers, which convention a batch norm follows where libraries differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.conformance import counts, dialects, forms
from polybn.conformance.cases import DTYPES, Case, rows, statistics_dtype
from polybn.conformance.convention import UNSEEN, Convention
from polybn.conformance.lattice import lattice
from polybn.conformance.properties import served
from polybn.conformance.properties.compare import changed
from polybn.conformance.properties.property import UNTRACKED
from polybn.conformance.runner import CallError, KitAdapterError, run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info
    from polybn.conformance.cases import Outcome

CLOSE = 1e-3
"""The relative difference that counts: rounding errors are far below it, differences of convention far above."""

ROUNDINGS = 32
"""The roundings to a narrow dtype that y may have suffered where it counts as the same."""


def detect(adapter: Adapter, info: Info) -> list[Convention]:
    """Detect all conventions of :data:`NAMES` that can be seen.

    Examples
    --------
    >>> from polybn.conformance.adapters import resolve
    >>> adapter = resolve("polybn-numpy")
    >>> [c.seen for c in detect(adapter, adapter.info()) if c.name == "momentum"]
    ['old']
    """
    return [detect_one(adapter, info, name) for name in NAMES if why_not(info, name) is None]


def why_not(info: Info, name: str) -> str | None:
    """Return why a convention cannot be seen, or None; some can be seen only in running statistics."""
    return UNTRACKED if name in ("momentum", "running_variance", "flushes", "trains_by") and not info.tracks else None


def clause_of(name: str) -> str:
    """Return the clause of the specification that a convention is about."""
    return _CONVENTIONS[name][0]


def detect_one(adapter: Adapter, info: Info, name: str) -> Convention:
    """Detect one convention."""
    clause, look, declared, specification, explanation = _CONVENTIONS[name]
    if name == "single_value" and info.running_variance == "unbiased":
        specification = "error"  # the specification refuses an unbiased variance of one value
    found = Convention(name, declared(info), "", clause, explanation, specification)
    try:
        seen = look(adapter, _served(adapter, info, name))
    except (CallError, KitAdapterError) as error:
        seen = f"nothing, because {error}"
        return found._replace(seen=seen, advice=f"The convention {name} could not be seen: {error}")
    found = found._replace(seen=seen)
    # Declaring that subnormal numbers are flushed widens bounds; it promises nothing, so keeping them is no fault.
    if seen in (found.declared, UNSEEN) or (name == "flushes" and found.declared == "yes"):
        return found
    correction = _correction(name, seen)
    if correction is None:
        return found._replace(advice=f"{_NOT.get(name, f'{name} is')} {seen}, which no declaration covers")
    said = _SEEN.get((name, seen), f"The {name} that are served are {seen or 'none'}")
    advice = f"{said}: {dialects.declare(info, name, correction)}"
    return found._replace(advice=advice, correction=((name, correction),))


def _served(adapter: Adapter, info: Info, name: str) -> Info:
    """Return the declaration with only the ranks and dtypes that are served: other calls would raise."""
    if name == "ranks":
        return info
    info = info._replace(ranks=_correction("ranks", _ranks(adapter, info)) or info.ranks)
    if name == "dtypes":
        return info
    return info._replace(dtypes=_correction("dtypes", _dtypes(adapter, info)) or info.dtypes)


def _correction(name: str, seen: str) -> Any:
    """Return the value to declare for what was seen, or None if there is none."""
    words = [value for known, value in _SEEN if known == name]
    if name == "flushes":
        return {"yes": True, "no": False}.get(seen)
    if name == "ranks":
        return tuple(map(int, seen.split(", "))) if seen else None
    if name == "dtypes":
        return tuple(seen.split(", ")) if seen else None
    return seen if seen in words else None


def _plain(info: Info, **options: Any) -> Case:
    """Make a lattice call of five values: mean 2, biased variance 2, unbiased 2.5; old mean 8, old variance 4."""
    shape = served.fitted(info, (5, 3))
    dtype = "float32" if "float32" in info.dtypes else info.dtypes[0]
    made = lattice(1, dtype, 3, (5, *shape[2:]), 1, offset=0)
    wide = statistics_dtype(made.case.x)
    x = (made.case.x + made.case.x.dtype.type(2)).astype(made.case.x.dtype)
    old = {"running_mean": np.full(3, 8, wide), "running_var": np.full(3, 4, wide)}
    return changed(made.case, x=x, **old, **options)


def _nearest(value: float, candidates: dict[str, float], rare: dict[str, float] | None = None) -> str:
    """Return the name of what a value is; what is rare is not listed if it is nothing that is known."""
    near = [name for name, of in (candidates | (rare or {})).items() if abs(value - of) <= CLOSE * abs(of)]
    return near[0] if near else f"{value:.6g} where {', '.join(f'{n} gives {v:g}' for n, v in candidates.items())}"


def _momentum(adapter: Adapter, info: Info) -> str:
    # Whatever is declared, the library itself receives 0.75.
    case = _plain(info, momentum=0.75 if info.momentum == "old" else 0.25)
    outcome = run(adapter, info, case, gradients=False)
    candidates = {"old": 6.5, "new": 3.5, "the old value, always": 8.0, "the batch's value, always": 2.0}
    return _nearest(float(_vector(outcome, "running_mean")[0]), candidates)


def _running_variance(adapter: Adapter, info: Info) -> str:
    # With both weights one half, it does not matter which value momentum weighs. The lengths of the axes tell counts
    # that are taken for m apart.
    shape = counts.shape(info)
    made = lattice(1, _dtype(info), shape[1], (shape[0], *shape[2:]), 1).case
    wide = statistics_dtype(made.x)
    old = {"running_mean": np.full(shape[1], 8, wide), "running_var": np.full(shape[1], 4, wide)}
    case = changed(made, momentum=0.5, eps=0.25, **old)
    variance = 2 * float(_vector(run(adapter, info, case, gradients=False), "running_var")[0]) - 4
    candidates = {
        "biased": 2.0,
        "unbiased": 2 * counts.M / (counts.M - 1),
        "the standard deviation": 2**0.5,
        "the variance plus eps": 2 + case.eps,
        "1 / sqrt(variance + eps)": (2 + case.eps) ** -0.5,
        "the old value again": 4.0,
    }
    wrong = {f"the variance times {w}{note}": 2 * factor for w, (factor, note) in counts.factors(shape).items()}
    return _nearest(variance, candidates, wrong)


def _vector(outcome: Outcome, name: str) -> Any:
    return getattr(outcome, name)


def _single_value(adapter: Adapter, info: Info) -> str:
    case = _plain(info)
    case = case._replace(x=case.x[:1].copy(), dy=case.dy[:1].copy())
    try:
        outcome = run(adapter, info, case, gradients=False)
    except CallError:
        return "error"
    assert case.beta is not None
    beta = case.beta.reshape((1, 3) + (1,) * (outcome.y.ndim - 2)).astype(outcome.y.dtype)
    by_running = "running" in (info.trains_by, info.tracks and _trains_by(adapter, info))
    if not np.array_equal(outcome.y, beta) and not by_running:
        return f"y = {outcome.y.ravel().tolist()} where beta is {case.beta.tolist()}"
    for name in ("running_mean", "running_var") if info.tracks else ():
        if not np.isfinite(_vector(outcome, name)).all():
            return f"{float(_vector(outcome, name)[0])} in {name}"
    return "beta"


def _empty(adapter: Adapter, info: Info) -> str:
    case = _plain(info)
    try:
        outcome = run(adapter, info, case._replace(x=case.x[:0].copy(), dy=case.dy[:0].copy()), gradients=False)
    except CallError:
        return "error"
    names = ("running_mean", "running_var") if info.tracks else ()
    kept = all(np.array_equal(_vector(outcome, n), getattr(case, n)) for n in names)
    return "kept" if kept else "changed"


_TINY = {"float32": 2.0**-140, "float64": 2.0**-1060, "bfloat16": 2.0**-131}
"""Subnormal numbers; half of each is subnormal, too."""


def _flushes(adapter: Adapter, info: Info) -> str:
    dtype = next((name for name in _TINY if name in info.dtypes), None)
    if dtype is None:
        return "yes" if info.flushes else "no"
    # Both weights are one half, as above. The normal number comes first, to see that the running mean is as expected.
    normal, tiny = 2.0**-90, _TINY[dtype]
    if _mean_of(adapter, info, dtype, normal) != normal / 2:
        return UNSEEN
    mean = _mean_of(adapter, info, dtype, tiny)
    return {tiny / 2: "no", 0.0: "yes"}.get(mean, f"a mean of {mean} for values {tiny}")


def _mean_of(adapter: Adapter, info: Info, dtype: str, value: float) -> float:
    """Return the running mean, which was 0, after training on equal values with both weights one half."""
    case = lattice(1, dtype, 3, (*fitted_rest(info, 4),), 1).case
    x, wide = np.full_like(case.x, value), statistics_dtype(case.x)
    case = case._replace(x=x, momentum=0.5, eps=1e-5, running_mean=np.zeros(3, wide))
    return float(_vector(run(adapter, info, case, gradients=False), "running_mean")[0])


def fitted_rest(info: Info, m: int) -> tuple[int, ...]:
    """Return a shape without channels, of m values, that the adapter serves."""
    shape = served.fitted(info, (m, 3))
    return (shape[0], *shape[2:])


def _trains_by(adapter: Adapter, info: Info) -> str:
    case = _plain(info, momentum=0.5)
    outcome = run(adapter, info, case, gradients=False)
    mean, var = (_vector(outcome, name).astype(np.float64) for name in ("running_mean", "running_var"))
    gamma, beta = (np.asarray(v, np.float64)[:, None] for v in (case.gamma, case.beta))
    x, y = rows(case.x, 1), rows(outcome.y, 1)
    by_batch = gamma * (x - 2) * (2 + case.eps) ** -0.5 + beta
    by_running = gamma * (x - mean[:, None]) / np.sqrt(np.abs(var[:, None]) + case.eps) + beta
    near = {
        name
        for name, right in {"batch": by_batch, "running": by_running}.items()
        if np.abs(y - right).max() <= 0.02 * np.abs(right).max()
    }
    return near.pop() if len(near) == 1 else UNSEEN


def _axes(adapter: Adapter, info: Info) -> str:
    rank = max(info.ranks)
    second = lattice(1, _dtype(info), 3, (4,) * (rank - 1), 1).case
    base = run(adapter, info, second, gradients=False)
    close = max(CLOSE, ROUNDINGS * forms.format_of(_dtype(info)).stored)
    for axis in {0, rank - 1, -rank} - {1}:
        try:
            got = run(adapter, info, second.moved(axis)._replace(axis=axis), gradients=False)
        except CallError:
            return "second"
        if not np.allclose(np.moveaxis(got.y, axis, 1).astype(float), base.y.astype(float), close, close):
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
        run(adapter, info, case, gradients=False)
    except (CallError, KitAdapterError):
        return False
    return True


def _text(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))


_SEEN = {
    ("momentum", "old"): "Your momentum weighs the old value",
    ("momentum", "new"): "Your momentum weighs the new value",
    ("running_variance", "biased"): "Your running variance takes in the biased variance",
    ("running_variance", "unbiased"): "Your running variance takes in the unbiased variance",
    ("single_value", "beta"): "Training on one value per channel returns beta",
    ("single_value", "error"): "Training on one value per channel raises an error",
    ("empty", "kept"): "Training on no values keeps the running statistics",
    ("empty", "changed"): "Training on no values changes the running statistics",
    ("empty", "error"): "Training on no values raises an error",
    ("axes", "any"): "Any axis may be the channel axis",
    ("axes", "second"): "Only the second axis may be the channel axis",
    ("flushes", "yes"): "Subnormal numbers are flushed to zero",
    ("flushes", "no"): "Subnormal numbers are kept",
    ("trains_by", "batch"): "Training normalizes by the statistics of the batch",
    ("trains_by", "running"): "Training normalizes by the running statistics",
}
"""Sentences for what was seen, by the name of the convention and the value to declare."""
_NOT = {
    "momentum": "The new running mean is",
    "running_variance": "Your running variance takes in",
    "single_value": "Training on one value per channel gives",
    "flushes": "Training on subnormal numbers gives",
}
"""Beginnings of sentences for what was seen and cannot be declared."""
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
    "trains_by": (
        "S2", _trains_by, lambda i: i.trains_by, "batch",
        "what training normalizes by: the statistics of the batch, or the running ones after their update; the "
        "specification: the batch",
    ),
    "flushes": (
        "S2", _flushes, lambda i: "yes" if i.flushes else "no", "no",
        "whether subnormal numbers are flushed to zero; the specification leaves them",
    ),
}  # fmt: skip
NAMES = tuple(_CONVENTIONS)
"""The names of all conventions that are detected."""
