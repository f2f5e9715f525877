"""Constants, degenerate shapes, repeated calls, memory and types."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from polybn.conformance.cases import Array, Case, Outcome, equal, statistics_dtype
from polybn.conformance.forms import VacuousBoundError
from polybn.conformance.placing import placed
from polybn.conformance.properties import served
from polybn.conformance.properties.compare import (
    VECTORS,
    certified,
    changed,
    difference,
    in_either_mode,
    returned,
    same,
)
from polybn.conformance.properties.property import Property
from polybn.conformance.runner import CallError, Violation, backward, guarded, run, where

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

EXTREME = {
    "float16": (65504.0, -65504.0, 2.0**-24),
    "bfloat16": (3.38e38, -3.38e38, 1e-38),
    "float32": (3.4028234e38, -3e38, 1e-38),
    "float64": (1.7976931348623157e308, -1e300, 1e-300),
}


class Constant(NamedTuple):
    """A constant channel: its dtype, its value, and how many times it holds it."""

    dtype: str
    value: float
    many: int


def constants(info: Info) -> Sequence[Constant]:
    """List constant channels."""
    values = (0.0, 1.0, -4.0, 0.1, -1234.567, 10_000.1)
    return [Constant(dtype, value, m) for dtype in info.dtypes for value in values for m in (2, 7, 512)]


def extremes(info: Info) -> Sequence[Constant]:
    """List constant channels at the ends of the range."""
    return [Constant(dtype, value, 8) for dtype in info.dtypes for value in EXTREME[dtype]]


def constant(adapter: Adapter, info: Info, made: Constant) -> float:
    """Train on equal values: y is exactly beta, variance and dgamma are 0.

    The mean of a correct algorithm below class K may be off by a rounding, which 1 / sqrt(eps) magnifies.
    """
    case = served.plain(info, 1, made.dtype, (made.many, 3), momentum=0.0)
    case = case._replace(x=np.full(case.x.shape, made.value).astype(case.x.dtype))
    assert case.beta is not None
    zero = np.zeros_like(case.beta)
    y = np.broadcast_to(case.beta.astype(case.x.dtype).reshape(1, -1, *[1] * (case.x.ndim - 2)), case.x.shape)
    words = f"{made.many} values {made.value:g} must give exactly beta, variance 0 and dgamma 0"
    return excused(info, case, run(adapter, info, case), words, {"y": y, "running_var": zero, "dgamma": zero})


def excused(info: Info, case: Case, outcome: Outcome, words: str, expected: dict[str, Array]) -> float:
    """Compare results that are not exact with their bounds; without bounds, with the most that rounding can do.

    A rounded mean makes xhat at most 1, and folding ``x * scale + shift`` rounds numbers of the size of
    ``|gamma x| / sqrt(eps)``. An overflow is not excused, except that of the square of a rounded mean.
    """
    expected = returned(outcome, expected)
    wrong = {
        name: getattr(outcome, name) for name, value in expected.items() if not equal(getattr(outcome, name), value)
    }
    if not wrong:
        return 0.0
    name = next(iter(wrong))
    # The name comes first, because the words about the call name other results, too.
    words = f"{name}: {difference(wrong[name], expected[name])}, but {words}"
    try:
        return certified(info, case, outcome).ratio
    except VacuousBoundError:
        unit = 2.0**-53 if case.x.dtype == np.float64 else 2.0**-24
        xhat = 2 + 4 * unit * float(np.abs(case.x.astype(np.float64)).max()) * case.eps**-0.5
        most = {
            "y": xhat * np.abs(np.asarray(case.gamma)).max(),
            "dgamma": xhat * np.abs(case.dy.astype(np.float64)).sum(),
        }
        for name in wrong.keys() & most.keys():
            got, exact = wrong[name].astype(np.float64), expected[name]
            if not np.abs(got - exact).max() <= most[name]:
                raise Violation(words, got=got, expected=exact) from None
        raise
    except Violation as violation:
        raise Violation(f"{words}: {violation}", got=wrong[name], expected=expected[name]) from None


SINGLE = ((1, 5), (1, 5, 1, 1))


def single_value(adapter: Adapter, info: Info, which: tuple[str, tuple[int, ...]]) -> float:
    """Train on one value per channel: y is beta and gradients are 0, or an error is raised, as declared."""
    dtype, shape = which
    case = served.plain(info, 1, dtype, shape, kappa=4.0, momentum=0.5)
    if info.single_value == "error":
        try:
            run(adapter, info, case, gradients=False)
        except CallError:
            return 0.0
        raise Violation("training on one value per channel must raise an error, as declared; it returned a result")
    outcome = run(adapter, info, case)
    assert case.beta is not None
    assert case.running_var is not None
    zero = np.zeros_like(case.beta)
    y = case.beta.astype(case.x.dtype).reshape(case.x.shape)
    expected = {"y": y, "dgamma": zero, "dx": np.zeros_like(case.x)}
    for name in ("running_mean", "running_var"):
        got = getattr(outcome, name)
        if got is not None and not np.isfinite(got).all():
            raise Violation(f"training on one value per channel must leave {name} finite; got {got[0]}", got=got)
    if info.running_variance == "biased":
        expected["running_var"] = (case.running_var * zero.dtype.type(0.5)).astype(zero.dtype)
    words = "of one value per channel, y must be beta, the running variance half the old one and gradients 0"
    return excused(info, case, outcome, words, expected)


def repeated(adapter: Adapter, info: Info, pair: tuple[Case, Case]) -> float:
    """Make a call, another one, and the first one again: the results are the same to the bit."""
    case, other = pair
    first = run(adapter, info, case)
    run(adapter, info, other)
    return same("when the same call is made again", run(adapter, info, case), first)


def of_latest(adapter: Adapter, info: Info, case: Case) -> float:
    """Run another forward pass before the backward pass: frameworks keep values of the latest forward pass."""
    first = run(adapter, info, case)
    run(adapter, info, case._replace(x=-case.x), gradients=False)
    names = ("dx", "dgamma", "dbeta")
    again = Outcome(first.y, **dict(zip(names, backward(adapter, info, case), strict=True)))
    return same("when other values of the same shape went forward before", again, first, names)


def digest(array: Array) -> str:
    """Fingerprint an array."""
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes()).hexdigest()


def methods(adapter: Adapter, info: Info, case: Case) -> dict[str, Callable[[dict[str, Array]], tuple[Array, ...]]]:
    """Return the adapter's methods as functions of the arrays."""
    options: dict[str, Any] = {"eps": case.eps, "axis": case.axis}
    weight = case.momentum if info.momentum == "old" else 1 - case.momentum

    def forward(a: dict[str, Array]) -> list[Array]:
        return [a[name] for name in case.arrays()]

    found: dict[str, Callable[[dict[str, Array]], tuple[Array, ...]]] = {
        "train": lambda a: adapter.train(*forward(a), momentum=weight, **options),
        "infer": lambda a: (adapter.infer(*forward(a), **options),),
        "vjp": lambda a: adapter.vjp(a["x"], a["gamma"], a["beta"], a["dy"], **options),
    }
    there = {"train": True, "infer": info.infers, "vjp": info.differentiates}
    return {name: call for name, call in found.items() if there[name]}


def pure(adapter: Adapter, info: Info, case: Case) -> float:
    """Pass the arrays themselves: none may change, and no result may share their memory or change later."""
    case = placed(info, case)
    given = {n: a.copy() for n, a in {**case.arrays(), "dy": case.dy}.items() if a is not None}
    before = {name: digest(a) for name, a in given.items()}
    run(adapter, info, changed(case, **given), as_is=True)  # raises here if a call fails or returns something else
    factors = {"x": -1, "dy": 0.5, "running_mean": -1, "running_var": 2}
    others = {name: (a * a.dtype.type(factors.get(name, 1))).astype(a.dtype) for name, a in given.items()}
    for method, call in methods(adapter, info, case).items():
        returned = guarded(info, method, partial(call, given))
        for name, a in given.items():
            if digest(a) != before[name]:
                raise Violation(
                    f"{method} must not write its arguments; it changed {name}", got=a, expected=getattr(case, name)
                )
            if any(np.shares_memory(a, r) for r in returned):
                raise Violation(f"what {method} returns must have its own memory; it shares that of {name}")
        kept = [digest(r) for r in returned]
        guarded(info, method, partial(call, others))
        if [digest(r) for r in returned] != kept:
            raise Violation(f"what {method} returned must stay as it is; the next call changed it")
    return 0.0


def aliased(adapter: Adapter, info: Info, seed: tuple[int, str]) -> float:
    """Pass one array as x and dy, and one as all four vectors: results are those of separate copies."""
    case = placed(info, served.plain(info, seed[0], seed[1], (7, 3, 5)))
    assert case.gamma is not None
    vector = np.abs(case.gamma)
    apart = changed(case, dy=case.x.copy(), **{n: vector.copy() for n in VECTORS})
    together = apart._replace(x=case.x, dy=case.x, gamma=vector, beta=vector, running_mean=vector, running_var=vector)
    base, got = run(adapter, info, apart), run(adapter, info, together, as_is=True)
    return same(
        "when one array stands in several places, as x and dy, or as gamma, beta and both statistics", got, base
    )


def types(adapter: Adapter, info: Info, case: Case) -> float:
    """Pass momentum and eps as NumPy numbers: results are the same; the runner checks their shapes and dtypes."""
    base = run(adapter, info, case)
    other = case._replace(momentum=np.float64(case.momentum), eps=np.float64(case.eps))
    with where("When momentum and eps are NumPy numbers"):
        got = run(adapter, info, other)
    return same("when momentum and eps are NumPy numbers", got, base)


EMPTY = ((0, 5), (0, 5, 3, 2), (7, 5, 0), (7, 0), (7, 0, 3))


def empty(adapter: Adapter, info: Info, which: tuple[str, tuple[int, ...]]) -> float:
    """Train on no values: y is empty, gradients are 0, and nothing warns."""
    dtype, shape = which
    case = served.plain(info, 2, dtype, shape, momentum=0.25)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            with where("On no values"):
                outcome = run(adapter, info, case)
        except CallError:
            if info.empty == "error":
                return 0.0
            raise
    if info.empty == "error":
        raise Violation("training on no values must raise an error, as declared; it returned a result")
    if info.empty == "changed":
        return 0.0
    expected = outcome
    if info.tracks:
        expected = expected._replace(running_mean=case.running_mean, running_var=case.running_var)
    if outcome.dgamma is not None:
        zero = np.zeros(case.x.shape[1], statistics_dtype(case.x))
        expected = expected._replace(dgamma=zero, dbeta=zero)
    if heard:
        raise Violation(f"training on no values must not warn; got {heard[0].category.__name__}: {heard[0].message}")
    pure(adapter, info, case)
    return same("where there are no values: the old statistics, and gradients of 0", outcome, expected)


def _shapes(shapes: Sequence[tuple[int, ...]]) -> Any:
    def fitting(info: Info) -> Sequence[tuple[str, tuple[int, ...]]]:
        found = [shape for shape in shapes if len(shape) in info.ranks]
        return served.typed(info, found or [served.fitted(info, shapes[0])])

    return fitting


def _weighed(info: Info) -> st.SearchStrategy[Case]:
    """Draw calls with momentum 0 and 1, too, where an implementation may return an input instead of a new array."""
    return served.cases(info, momenta=(0.9, 0.0, 1.0))


PROPERTIES: Sequence[Property] = (
    Property("P15", "A constant channel gives exactly beta, variance 0 and dgamma 0.",
             "S8", constant, constants),
    Property("P15b", "A constant channel at the ends of the range gives exactly beta, too.",
             "S8 S10", constant, extremes),
    Property("P16", "One value per channel gives beta, or raises an error where that is declared.",
             "S11", single_value, _shapes(SINGLE)),
    Property("P17", "The same call gives the same bits, whatever was called in between.",
             "S7", repeated, served.pairs),
    Property("P17b", "A gradient is that of the values it is given, whatever went forward before.",
             "S7 S13", of_latest, served.cases, ("vjp",)),
    Property("P18", "No argument is written, no result shares memory with one, and no result changes later.",
             "S7", pure, _weighed),
    Property("P19", "One array may stand in several places: results are those of separate copies.",
             "S7", aliased, lambda info: st.tuples(served.SEEDS, st.sampled_from(info.dtypes))),
    Property("P21", "y and dx have the dtype of x, all else that of the statistics, whatever the types of numbers.",
             "S6", in_either_mode(types), served.any_call),
    Property("P40", "No values: an empty y, running statistics as declared, gradients of 0, no warning.",
             "S11", empty, _shapes(EMPTY)),
)  # fmt: skip
