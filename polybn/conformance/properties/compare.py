"""How properties compare: with exact numbers, with an error bound, and with each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.conformance.cases import Array, Case, Outcome, equal
from polybn.conformance.certify import Certificate, certify
from polybn.conformance.forms import VACUOUS, Form, VacuousBoundError, format_of
from polybn.conformance.runner import CallError, Violation

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

FEW_ROUNDINGS = 32
"""The roundings by which results are close: a wrong formula is off by much more, save in the last bits."""
VECTORS = ("gamma", "beta", "running_mean", "running_var")


def widest(info: Info) -> Form:
    """Return the class with the widest bounds that an adapter's declaration allows; grades use the narrower ones."""
    return "F" if info.max_kappa is None else "O"


def certified(info: Info, case: Case, outcome: Outcome, *, dtype: str | None = None) -> Certificate:
    """Compare an outcome with the exact one, within the bounds of the widest class."""
    if case.training and info.trains_by == "running":
        raise VacuousBoundError("training does not normalize by the batch: no bound says how far its y may be")
    try:
        return certify(case, outcome, form=widest(info), dtype=dtype, flushes=info.flushes)
    except VacuousBoundError:
        raise
    except AssertionError as error:
        raise Violation(str(error)) from None


def changed(case: Case, **fields: Any) -> Case:
    """Return a case with other fields, from a dictionary that a type checker cannot check."""
    return case._replace(**fields)


def take(case: Case, index: Any) -> Case:
    """Select channels."""
    chosen: dict[str, Any] = {n: None if (v := getattr(case, n)) is None else v[index] for n in VECTORS}
    return case._replace(x=np.take(case.x, index, case.axis), dy=np.take(case.dy, index, case.axis), **chosen)


def take_outcome(outcome: Outcome, axis: int, index: Any) -> Outcome:
    """Select channels of every result."""
    whole = ("y", "dx")
    chosen: dict[str, Any] = {
        name: None if v is None else np.take(v, index, axis) if name in whole else v[index]
        for name, v in outcome._asdict().items()
    }
    return Outcome(**chosen)


def in_either_mode(check: Callable[[Adapter, Info, Case], float]) -> Callable[[Adapter, Info, Case], float]:
    """Let a check of calls in training and in inference say in which of them something is wrong."""

    def saying(adapter: Adapter, info: Info, case: Case) -> float:
        try:
            return check(adapter, info, case)
        except CallError:  # it names the method
            raise
        except Violation as violation:
            violation.args = (f"In {'training' if case.training else 'inference'}: {violation}",)
            raise

    return saying


def returned(outcome: Outcome, expected: dict[str, Array]) -> dict[str, Array]:
    """Leave out results that the adapter declares not to return."""
    return {name: value for name, value in expected.items() if getattr(outcome, name) is not None}


def exact(info: Info, case: Case, outcome: Outcome, expected: dict[str, Array]) -> float:
    """Compare with exact results: by ``==``, or else by the error bounds of the channels with the largest errors.

    Sums, products and roots of the lattice are exact in any order. An algorithm with other intermediate results, such
    as Welford's, is also right if it stays within its bounds.
    """
    expected = returned(outcome, expected)
    wrong = [name for name, value in expected.items() if not equal(getattr(outcome, name), value)]
    if not wrong:
        return 0.0
    got, right = getattr(outcome, wrong[0]), expected[wrong[0]]
    words = f"{' and '.join(wrong)} must be exactly the numbers of the specification: {difference(got, right)}"
    channels = sorted({c for name in wrong for c in farthest(getattr(outcome, name), expected[name], case.axis)})
    try:
        return certified(info, take(case, channels), take_outcome(outcome, case.axis, channels)).ratio
    except VacuousBoundError:
        # So many roundings have no useful bound, but on the lattice few values are rounded: a large error is a fault.
        if all(_near(getattr(outcome, name), expected[name]) for name in wrong):
            raise
        raise Violation(words, got=got, expected=right) from None
    except Violation as violation:
        raise Violation(f"{words}; {violation}", got=got, expected=right) from None


def _near(got: Array, expected: Array) -> bool:
    a, b = got.astype(np.float64), expected.astype(np.float64)
    return bool(np.isfinite(a).all() and np.abs(a - b).max() <= VACUOUS * np.abs(b).max())


def farthest(got: Array, expected: Array, axis: int, most: int = 3) -> list[int]:
    """Return the channels with the largest differences."""
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    distance = np.nan_to_num(distance, nan=np.inf)
    if distance.ndim > 1:
        distance = np.moveaxis(distance, axis, 0).reshape(distance.shape[axis], -1).max(axis=1)
    return [int(c) for c in np.argsort(distance)[::-1][:most] if distance[c] > 0]


def same(what: str, got: Outcome, expected: Outcome, names: Sequence[str] = Outcome._fields) -> float:
    """Demand equal bits; signs of zero and NaN payloads are ignored."""
    for name in names:
        if not equal(getattr(got, name), getattr(expected, name)):
            raise Violation(
                f"{name} must be the same to the bit {what}; {difference(getattr(got, name), getattr(expected, name))}",
                got=getattr(got, name),
                expected=getattr(expected, name),
            )
    return 0.0


def agree(info: Info, what: str, *runs: tuple[Case, Outcome, Outcome]) -> float:
    """Compare the outcome of each case with the one expected: equal bits, or else both within their bounds.

    Two results within their own bounds of one exact number differ by at most the sum of the bounds.
    """
    share = 0.0
    for case, got, expected in runs:
        try:
            same(what, got, expected)
        except Violation as violation:
            try:
                share = max(share, certified(info, case, got).ratio, certified(info, case, expected).ratio)
            except Violation as outside:
                violation.args = (f"{violation}: {outside}",)
                raise violation from None
    return share


def close(got: Array | None, expected: Array | None) -> bool:
    """Return whether two arrays of one form differ by no more than some roundings of their largest value."""
    if got is None or expected is None or (got.dtype, got.shape) != (expected.dtype, expected.shape) or not got.size:
        return False
    a, b = got.astype(np.float64), expected.astype(np.float64)
    f = format_of(got.dtype.name)
    limit = FEW_ROUNDINGS * max(f.unit, f.stored) * np.abs(b).max()
    return bool(np.isfinite(a).all() and np.abs(a - b).max() <= limit)


def difference(got: Array | None, expected: Array | None) -> str:
    """Say where two arrays differ first."""
    if got is None or expected is None:
        return f"got {got}, expected {expected}"
    a, b = got.astype(np.float64), expected.astype(np.float64)
    differ = np.argwhere((a != b) & ~(np.isnan(a) & np.isnan(b)))
    if not len(differ):
        return f"got dtype {got.dtype.name}, expected {expected.dtype.name}"
    place = tuple(int(i) for i in differ[0])
    return f"at {list(place)} got {float(a[place])!r}, expected {float(b[place])!r} ({len(differ)} of {a.size} differ)"
