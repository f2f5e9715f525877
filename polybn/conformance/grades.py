"""Grade the accuracy of a batch norm: one letter per dtype, for inputs near zero and far from it, usual and extreme.

=====  =================================================================================================================
class  what every result of every family satisfies
=====  =================================================================================================================
S      y within 4 ulp of exact at any kappa: ``|y^ - y| <= 4 ulp(max(|gamma xhat|, |beta|))``, value by value, exactly
       beta for constant channels, and the rest within the bounds of K. Only for float32 and float64: in a half type
       every form reaches 4 ulp.
K      the bounds of the kappa-free form (S2), at any kappa; none is vacuous; constant channels give exactly beta
T      the bounds of a two-pass form with tree sums, where they are not vacuous
N      the same with sums in any order
F      the bounds of Welford's and Chan's recurrences, where they are not vacuous
O      the bounds of the one-pass form ``E[x^2] - E[x]^2``, where they are not vacuous
``-``  none of them
=====  =================================================================================================================

"The rest" means running statistics and, where the adapter has them, dx, dgamma and dbeta. The letter is the first
class that holds. In the range families, where the squares of x leave the range of float32, a result may be right, or
visibly wrong: NaN or infinity. A finite wrong result rules out S and K (S10). The other classes promise nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from polybn.conformance import bounds
from polybn.conformance.cases import DTYPES, Array, Case, Outcome, case_of
from polybn.conformance.certify import shares
from polybn.conformance.channels import Measured, measure
from polybn.conformance.families import FAMILIES, RESTS, Family
from polybn.conformance.forms import FORMS, Channel, Floats, Form, Format, VacuousBoundError, format_of

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

Letter: TypeAlias = Literal["S", "K", "T", "N", "F", "O", "-"]
LETTERS: dict[Letter, str] = {
    "S": "4 ulp, at any mean",
    "K": "independent of the mean",
    "T": "two passes, sums in a tree",
    "N": "two passes, sums in any order",
    "F": "Welford's or Chan's recurrence",
    "O": "one pass",
    "-": "no class of algorithms",
}
"""What each letter stands for, from best to worst."""
LADDER: tuple[Letter, ...] = ("S", *FORMS)
"""The letters that have bounds."""
ULPS = 4
ANCHOR = FAMILIES["float32"][0].name
"""A class holds only if it certifies this family at some m."""


class Row(NamedTuple):
    """One family at one m."""

    family: str
    kappa: float
    """``sqrt(1 + mean^2 / variance)``, the largest of the channels."""
    m: int
    error: float
    """The largest error of y; NaN if a value of y is not finite."""
    bounds: dict[str, float | None]
    """The largest bound on y by class; None if not certified."""
    ratio: dict[str, float | None]
    """The largest error of any result by class, as a share of its bound; the class holds here if this is at most 1."""
    case: Case
    """The input."""
    offender: str = ""
    """The result that exceeds the widest bounds most, and its error; empty if all results are within them."""
    in_range: bool = True
    """Whether the squares of x stay in the range of the arithmetic."""


class Grade(NamedTuple):
    """The letter of one dtype, and the rows that it is based on."""

    dtype: str
    letter: Letter
    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        return f"Grade({self.dtype!r}, {self.letter!r}, {len(self.rows)} rows)"  # with the arrays of a thousand calls


def grade(
    adapter: Adapter,
    info: Info,
    dtype: str,
    run: Callable[[Adapter, Info, Case], Outcome],
    progress: Callable[[int, int], None] | None = None,
) -> Grade:
    """Grade an adapter in one dtype of x.

    ``run`` makes the calls of a case; ``progress`` is called with the number of rows done and of all rows.

    Examples
    --------
    >>> from polybn.conformance.adapters.backend import BackendAdapter
    >>> from polybn.conformance.runner import run
    >>> adapter = BackendAdapter("numpy")
    >>> grade(adapter, adapter.info(), "float16", run).letter
    'K'
    """
    planned = [
        (family, m, last)
        for family in FAMILIES[dtype]
        for last in ((False, True) if family.both_layouts and info.axes == "any" else (False,))
        for m in family.sizes
    ]
    rows = []
    for i, (family, m, last) in enumerate(planned):
        case = _case(info, dtype, family, m, last=last, seed=i)
        name = f"{family.name}, channels last" if last else family.name
        try:
            outcome = run(adapter, info, case)
        except AssertionError:  # the call failed: no class holds
            rows.append(_failed(name, m, case, in_range=family.in_range))
        else:
            rows.append(_row(info, name, case, outcome, in_range=family.in_range))
        if progress is not None:
            progress(i + 1, len(planned))
    return Grade(dtype, _letter(dtype, rows), tuple(rows))


def holds(rows: list[Row], name: str) -> bool:
    """Return whether a class holds for all rows of a dtype: S and K everywhere, the others where they are certified."""
    ratios = [row.ratio[name] for row in rows]
    certified = [ratio for ratio in ratios if ratio is not None]
    everywhere = len(certified) == len(ratios)
    anchored = any(row.ratio[name] is not None for row in rows if row.family == ANCHOR)
    return (everywhere or name not in ("S", "K")) and anchored and all(ratio <= 1 for ratio in certified)


def at_least(letter: Letter, demanded: Letter) -> bool:
    """Return whether a letter is the one demanded, or a better one."""
    order = list(LETTERS)
    return order.index(letter) <= order.index(demanded)


def _letter(dtype: str, rows: list[Row]) -> Letter:
    for name in LADDER:
        if holds(rows, name) and (name != "S" or dtype in ("float32", "float64")):
            return name
    return "-"


def _failed(name: str, m: int, case: Case, *, in_range: bool) -> Row:
    none: dict[str, float | None] = dict.fromkeys(LADDER)
    return Row(name, math.nan, m, math.nan, none, dict.fromkeys(LADDER, math.inf), case, "a failed call", in_range)


def _row(info: Info, name: str, case: Case, outcome: Outcome, *, in_range: bool) -> Row:
    f, m = format_of(case.x.dtype.name, flushes=info.flushes), case.x.size // case.x.shape[case.axis]
    try:
        found = list(measure(case, outcome))
    except AssertionError:
        return _failed(name, m, case, in_range=in_range)
    limits: dict[str, float | None] = {}
    ratio: dict[str, float | None] = {}
    offender = ""
    for letter in LADDER:
        try:
            judged = [_judge(letter, one, f, in_range=in_range) for one in found]
        except VacuousBoundError:
            limits[letter] = ratio[letter] = None
        else:
            limits[letter], ratio[letter] = (max(values) for values in list(zip(*judged, strict=True))[:2])
            share, worst = max((share, whose) for _, share, whose in judged)
            offender = worst if share > 1 else ""
    kappa = max(_kappa(one.channel) for one in found)
    error = float(np.max([_worst(one) for one in found]))
    return Row(name, kappa, m, error, limits, ratio, case, offender, in_range)


def _judge(letter: Letter, one: Measured, f: Format, *, in_range: bool) -> tuple[float, float, str]:
    """Return the largest bound on y, the largest share of any bound, and the result that has this share."""
    form: Form = "K" if letter == "S" or letter == "-" else letter
    limits = bounds.envelope(form, one.channel, f)
    if letter == "S" and not one.channel.constant:
        limits["y"] = _ulps(one.channel, f)
    worst = (0.0, "")
    for name, errors in one.errors.items():
        found = shares(errors, limits[name])
        if not in_range:  # NaN and infinity are allowed there: users can see them
            found = np.where(np.isfinite(one.got[name]), found, 0.0)
        worst = max(worst, (float(found.max()), f"an error of {float(errors.max()):.3g} in {name}"))
    return float(limits["y"].max()), *worst


def _ulps(ch: Channel, f: Format) -> Floats:
    """Return the bound of class S on y: ulps of the larger of its two terms, at the precision of the arithmetic."""
    larger = np.maximum(abs(ch.gamma) * ch.c * ch.root, abs(ch.beta))
    _, exponent = np.frexp(larger)
    return np.asarray(ULPS * np.ldexp(f.unit, exponent), np.float64)


def _kappa(ch: Channel) -> float:
    return math.hypot(1, ch.mean / math.sqrt(ch.variance)) if ch.variance else math.inf


def _worst(one: Measured) -> float:
    return float(one.errors["y"].max()) if np.isfinite(one.got["y"]).all() else math.nan


def _case(info: Info, dtype: str, family: Family, m: int, *, last: bool, seed: int) -> Case:
    rng, channels = np.random.default_rng([m, seed]), 2 if m > 4096 else 3
    rest = RESTS[m] if 4 in info.ranks else (m,)
    axis = len(rest) if last else 1

    def shaped(rows: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(rows.reshape(channels, *rest), 0, axis)).astype(DTYPES[dtype])

    x, dy = shaped(family.make(rng, channels, m)), shaped(rng.normal(0.3, 1.2, (channels, m)))
    signs = rng.choice([-1, 1], (3, channels))
    spread = np.sqrt(np.abs(family.scale)) * rng.uniform(0.5, 2, (3, channels))
    vectors = (
        signs[0] * rng.uniform(0.5, 2, channels),
        signs[1] * rng.uniform(0.5, 1.5, channels),
        signs[2] * spread[0],
    )
    running_var = np.maximum(1.0, family.scale * rng.uniform(0.3, 3, channels))
    options: dict[str, Any] = {"axis": axis, "running_variance": info.running_variance}
    return case_of(x, (*vectors, running_var), dy, momentum=0.25, **options)
