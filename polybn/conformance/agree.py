"""Compare batch norms with each other: make the same random calls to all, and find each pair's largest differences.

Two results, each within its error bound of the exact one, differ by at most the sum of both bounds. Where
calls have exact answers (:mod:`polybn.conformance.lattice`), results that agree are equal bit by bit.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from polybn.conformance import bounds, forms
from polybn.conformance.adapters import ADAPTERS
from polybn.conformance.agree_calls import common, draw, serves, space_of, spaces
from polybn.conformance.cases import Case, Outcome, rows
from polybn.conformance.certify import shares
from polybn.conformance.channels import measure
from polybn.conformance.reproducer import program
from polybn.conformance.runner import Recorder, Violation, run
from polybn.conformance.subject import declaration, make
from polybn.dispatch import installed
from polybn.spec import DomainError

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Array, Info
    from polybn.conformance.agree_calls import Space
    from polybn.conformance.check import Progress

MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
LOWEST = {"float16": -14, "bfloat16": -126, "float32": -126, "float64": -1022}
"""Exponent of the smallest normal number."""


class Difference(NamedTuple):
    """The largest difference between two batch norms in one quantity of one dtype."""

    first: str
    second: str
    quantity: str
    """``"y"``, ``"dx"``, ``"dgamma"``, ``"dbeta"``, ``"running_mean"`` or ``"running_var"``."""
    dtype: str
    """Dtype of ``x``."""
    ulps: float
    """The difference in units in the last place of the larger of the two values."""
    share: float
    """The difference as a share of the sum of the two error bounds; above 1 at least one of the two is wrong."""
    bits: bool
    """Whether the two were equal bit by bit on all calls with exact answers."""
    exact: int
    """The number of these calls; 0 if there was none, as among few calls."""
    calls: int
    """The number of calls with this quantity that both made."""
    program: str
    """Text of a Python program that repeats the call with the largest share."""


class Agreement(NamedTuple):
    """What :func:`agree` found."""

    names: list[str]
    cases: int
    """Number of calls; of these, a batch norm makes those that it declares."""
    differences: list[Difference]

    def calls(self, first: str, second: str) -> int:
        """Return how many calls both made."""
        return sum(d.calls for d in self.differences if {d.first, d.second} == {first, second} and d.quantity == "y")

    def worst(self, first: str, second: str) -> Difference:
        """Return the difference with the largest share between two of the names."""
        pair = {first, second}
        return max((d for d in self.differences if {d.first, d.second} == pair), key=lambda d: d.share)

    def beyond(self, first: str, second: str) -> list[Difference]:
        """Return the worst difference between two of the names, and that of each other quantity beyond its bounds.

        A large error of one quantity, which one algorithm may always have, must not hide a fault of another.
        """
        pair, worst = {first, second}, dict[str, Difference]()
        for d in sorted(self.differences, key=lambda d: -d.share):
            if {d.first, d.second} == pair and (d.share > 1 or not worst):
                worst.setdefault(d.quantity, d)
        return list(worst.values())

    def within(self) -> bool:
        """Return whether every two results differ by at most the sum of their bounds."""
        return all(difference.share <= 1 for difference in self.differences)

    def to_json(self) -> str:
        """Return everything as JSON."""
        plain = {"names": self.names, "cases": self.cases, "differences": [d._asdict() for d in self.differences]}
        return json.dumps(plain, indent=1) + "\n"


class _Subject(NamedTuple):
    name: str
    adapter: Adapter
    info: Info


def agree(
    adapters: Sequence[str],
    *,
    cases: int = 60,
    seed: int = 0,
    progress: Progress | None = None,
) -> Agreement:
    """Give the same calls to several batch norms and compare each with each.

    ``adapters`` are two or more names of installed backends, or what :func:`polybn.conformance.resolve` takes.
    Dtypes, ranks, channel axes, distances from zero, training and inference vary from call to call, among what the
    batch norms declare: where some declare less than others, calls are drawn in turn from what two have in common, and
    each is made by all that declare it. ``progress`` is called as ``progress(what, done, total)`` before a batch norm
    is given a call. One that raises where it should return a result is a CallError.

    Examples
    --------
    >>> from polybn.conformance.agree import agree
    >>> found = agree(["numpy", "polybn-numpy"], cases=4)
    >>> found.within(), max(difference.ulps for difference in found.differences)
    (True, 0.0)
    """
    if len(set(adapters)) < max(2, len(adapters)):
        raise DomainError(
            f"polybn.conformance.agree: adapters must be two or more, each once; got {', '.join(adapters) or 'none'} "
            "(names of backends that `polybn info` lists, or adapters, such as pytorch or my_module:MyAdapter)"
        )
    subjects = [_subject(name) for name in adapters]
    among = _spaces(subjects, cases)
    best: dict[tuple[str, ...], Difference] = {}
    for number in range(cases):
        case, exact = draw(number, seed, among)
        for found in _compare(case, subjects, _teller(progress, number, cases), exact=exact):
            key = found[:4]
            old = best.get(key)
            best[key] = found if old is None else _join(old, found)
    return Agreement(list(adapters), cases, list(best.values()))


def _spaces(subjects: Sequence[_Subject], cases: int) -> list[Space]:
    """Return what two batch norms have in common, for each two that differ in that; refuse what leaves a pair out."""
    for one, other in combinations(subjects, 2):
        if not common(space_of(one.info), space_of(other.info)):
            raise DomainError(
                f"polybn.conformance.agree: {one.name} and {other.name} must have a dtype, and a channel axis of a "
                f"rank of 2 to 5, in common; got {_declared(one.info)}, and {_declared(other.info)} (what they declare)"
            )
    among = spaces(subject.info for subject in subjects)
    if cases < len(among):
        raise DomainError(
            f"polybn.conformance.agree: cases must be {len(among)} or more; got {cases} (a call for each kind of calls "
            "that two of the batch norms have in common)"
        )
    return among


def _declared(info: Info) -> str:
    return f"dtypes={info.dtypes}, ranks={info.ranks}, axes={info.axes!r}"


def _subject(name: str) -> _Subject:
    adapter = make(adapter_name(name))
    return _Subject(name, adapter, declaration(adapter))


def _join(old: Difference, new: Difference) -> Difference:
    worse = new if new.share > old.share else old
    exact, calls = old.exact + new.exact, old.calls + new.calls
    return worse._replace(ulps=max(old.ulps, new.ulps), bits=old.bits and new.bits, exact=exact, calls=calls)


def _teller(progress: Progress | None, done: int, total: int) -> Callable[[str], None]:
    def tell(what: str) -> None:
        if progress is not None:
            progress(what, done, total)

    return tell


def _compare(
    case: Case, subjects: list[_Subject], tell: Callable[[str], object], *, exact: bool
) -> Iterator[Difference]:
    dtype = case.x.dtype.name
    words = f"{'training' if case.training else 'inference'}, {dtype}, shape {case.x.shape}, axis {case.axis}"
    asked = [subject for subject in subjects if serves(subject.info, case)]
    outcomes, recorders = {}, {}
    for name, adapter, info in asked:
        tell(f"{name}: {words}")
        recorders[name] = Recorder(adapter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries warn of overflows, which some calls mean to cause
            outcomes[name] = run(recorders[name], info, case)
    infos = {subject.name: subject.info for subject in asked}
    limits = {name: _limits(case, info) for name, info in infos.items()}
    for first, second in combinations(outcomes, 2):
        for quantity, a in outcomes[first]._asdict().items():
            b = getattr(outcomes[second], quantity)
            if a is None or b is None or quantity not in limits[first]:
                continue
            if quantity == "running_var" and len({infos[name].running_variance for name in (first, second)}) > 1:
                continue  # biased and unbiased variances are different numbers
            bound = limits[first][quantity] + limits[second][quantity]
            gap, ulps = _distance(a, b, case.axis)
            worst = float(np.nan_to_num(shares(gap, bound), nan=np.inf).max(initial=0.0))
            most = float(ulps.max(initial=0.0))
            said = f"{quantity} differs by {worst:.3g} of the bounds"
            written = _program([(name, recorders[name]) for name in (first, second)], said)
            equal = not exact or most == 0
            yield Difference(first, second, quantity, dtype, most, worst, equal, int(exact), 1, written)


def _program(recorders: Sequence[tuple[str, Recorder]], words: str) -> str:
    """Write a program that makes the calls with both batch norms, each with its own meaning of momentum."""
    parts = list[str]()
    for name, recorder in recorders:
        what = f"{' and '.join(name for name, _ in recorders)}: {words}. First {name}:" if not parts else f"Now {name}:"
        parts.append(program(adapter_name(name), what, recorder.calls, Violation(words)))
    return "\n".join(parts)


def adapter_name(name: str) -> str:
    """Prefer a backend of PolyBN, in one of its forms too (``"jax-jit"``), to an adapter of the same name."""
    known = installed()
    return f"polybn-{name}" if name in known or (name.partition("-")[0] in known and name not in ADAPTERS) else name


def _limits(case: Case, info: Info) -> dict[str, Array]:
    """Bound the error of each quantity, value by value, for class K, the class of PolyBN's own backends."""
    f = forms.format_of(case.x.dtype.name, flushes=info.flushes)
    found: dict[str, list[Array]] = {}
    for measured in measure(case, Outcome(np.zeros_like(case.x))):
        for quantity, bound in bounds.envelope("K", measured.channel, f).items():
            found.setdefault(quantity, []).append(bound)
    return {quantity: np.concatenate(parts) for quantity, parts in found.items()}


def _distance(a: Array, b: Array, axis: int) -> tuple[Array, Array]:
    """Return differences in channel rows, and in units in the last place."""
    left, right = (rows(z, axis).ravel() if z.ndim > 1 else z.astype(np.float64) for z in (a, b))
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(left - right))
    exponent = np.frexp(np.maximum(np.abs(left), np.abs(right)))[1] - 1
    unit = np.ldexp(1.0, np.maximum(exponent, LOWEST[a.dtype.name]) - MANTISSA[a.dtype.name])
    return gap, gap / unit
