"""Find out, from inputs with exact answers, which convention a batch norm follows where libraries differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polybn.conformance import dialects, probes, probes_of_forms, probes_of_momentum
from polybn.conformance.cases import DTYPES
from polybn.conformance.convention import UNSEEN, Convention
from polybn.conformance.properties.property import UNTRACKED
from polybn.conformance.runner import CallError, KitAdapterError

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info


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
    if info.of_backend and name not in dialects.TRAITS:
        rule = f"clause {clause} asks a backend for {found.declared!r}, which no declaration changes"
        return found._replace(advice=f"{said}: {rule}")
    advice = f"{said}: {dialects.declare(info, {name: correction})}"
    return found._replace(advice=advice, correction=((name, correction),))


def _served(adapter: Adapter, info: Info, name: str) -> Info:
    """Return the declaration with only the ranks, axes and dtypes that are served: other calls would raise."""
    if name == "ranks":
        return info
    info = info._replace(ranks=_correction("ranks", probes_of_forms.ranks(adapter, info)) or info.ranks)
    if name == "axes":
        return info
    # Calls have their channels second, unless the last axis alone is served.
    last = probes_of_forms.axes(adapter, info) == "last"
    info = info._replace(axes="last" if last else "any" if info.axes == "last" else info.axes)
    if name == "dtypes":
        return info
    return info._replace(dtypes=_correction("dtypes", probes_of_forms.dtypes(adapter, info)) or info.dtypes)


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
    ("axes", "last"): "Only the last axis may be the channel axis",
    ("flushes", "yes"): "Subnormal numbers are flushed to zero",
    ("flushes", "no"): "Subnormal numbers are kept",
    ("trains_by", "batch"): "Training normalizes by the statistics of the batch",
    ("trains_by", "running"): "Training normalizes by the running statistics",
}
"""Sentences for what was seen, by the name of the convention and the value to declare."""
_NOT = {
    "momentum": "Your momentum",
    "running_variance": "Your running variance takes in",
    "single_value": "Training on one value per channel gives",
    "flushes": "Training on subnormal numbers gives",
}
"""Beginnings of sentences for what was seen and cannot be declared."""
_Look = tuple[str, Callable[["Adapter", "Info"], str], Callable[["Info"], str], str, str]
_CONVENTIONS: dict[str, _Look] = {
    "momentum": (
        "S4", probes_of_momentum.momentum, lambda i: i.momentum, "old",
        "which value the library's momentum weighs, the old running value or the new; the specification: the old",
    ),
    "running_variance": (
        "S4", probes_of_momentum.running_variance, lambda i: i.running_variance, "biased",
        "what the running variance takes in: v (biased), or v m / (m - 1) (unbiased); the specification: biased, "
        "unless running_variance='unbiased' asks for the other",
    ),
    "single_value": (
        "S11", probes.single_value, lambda i: i.single_value,
        "beta",
        "training on one value per channel; the specification: y is beta, and an error where the running variance is "
        "unbiased",
    ),
    "empty": (
        "S11", probes.empty, lambda i: i.empty, "kept",
        "the running statistics after training on no values; the specification: kept as they are",
    ),
    "axes": (
        "S1", probes_of_forms.axes, lambda i: i.axes, "any",
        "where the channel axis may be; the specification: anywhere",
    ),
    "ranks": (
        "S1", probes_of_forms.ranks, lambda i: _text(i.ranks), "2, 3, 4, 5",
        "the ranks of x that are served; the specification: 2 and more",
    ),
    "dtypes": (
        "S6", probes_of_forms.dtypes, lambda i: _text(i.dtypes), ", ".join(DTYPES),
        "the dtypes of x that are served; the specification: these four",
    ),
    "trains_by": (
        "S2", probes.trains_by, lambda i: i.trains_by, "batch",
        "what training normalizes by: the statistics of the batch, or the running ones after their update; the "
        "specification: the batch",
    ),
    "flushes": (
        "S2", probes.flushes, lambda i: "yes" if i.flushes else "no", "no",
        "whether subnormal numbers are flushed to zero; the specification leaves them",
    ),
}  # fmt: skip
NAMES = tuple(_CONVENTIONS)
"""The names of all conventions that are detected."""
