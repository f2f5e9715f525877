"""Inputs whose exact answers are floating-point numbers: results are compared with ``==``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from hypothesis import strategies as st

from polybn.conformance.cases import Array, equal, statistics_dtype
from polybn.conformance.forms import VacuousBoundError
from polybn.conformance.lattice import Lattice, in_inference, many_values, more_than_float32_counts
from polybn.conformance.properties import lengths, served
from polybn.conformance.properties.compare import difference, exact
from polybn.conformance.properties.property import Property
from polybn.conformance.runner import Violation, run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info


def output(adapter: Adapter, info: Info, made: Lattice) -> float:
    """Train on the lattice: y is exact."""
    outcome = run(adapter, info, made.case, gradients=False)
    return exact(info, made.case, outcome, {"y": made.y.astype(made.case.x.dtype)})


def statistics(adapter: Adapter, info: Info, made: Lattice) -> float:
    """Train on the lattice: both running statistics are exactly ``rho old + (1 - rho) batch``."""
    case, m = made.case, made.case.x.size // len(made.mean)
    variance = made.variance
    if info.running_variance == "unbiased":
        variance = variance * m / (m - 1) if made.unbiased is None else made.unbiased
    expected = {
        "running_mean": blend(case.momentum, case.running_mean, made.mean),
        "running_var": blend(case.momentum, case.running_var, variance),
    }
    return exact(info, case, run(adapter, info, case, gradients=False), expected)


def blend(momentum: float, old: Array | None, batch: Array) -> Array:
    """Return the new running statistic."""
    assert old is not None
    new: Array = (momentum * old.astype(np.float64) + (1 - momentum) * batch).astype(old.dtype)
    return new


@st.composite
def odd(draw: st.DrawFn, info: Info) -> Lattice:
    """Draw a call with 5 or 9 values a channel, for which ``m / (m - 1)`` is exact."""
    dtype, m, power = draw(st.sampled_from(info.dtypes)), draw(st.sampled_from((5, 9))), draw(st.integers(-3, 3))
    rho = draw(st.sampled_from((0.0, 0.25, 0.5, 0.75, 1.0)))
    offset = draw(st.sampled_from(served.offsets(info)))
    shape = served.fitted(info, (m, 3))
    options = {"power": power, "offset": offset, "momentum": rho}
    return served.fixed_lattice(info, draw(served.SEEDS), dtype, 3, (m, *shape[2:]), **options)


def gradients(adapter: Adapter, info: Info, made: Lattice) -> float:
    """Differentiate on the lattice: dx, dgamma and dbeta are exact."""
    outcome, wide = run(adapter, info, made.case), statistics_dtype(made.case.x)
    expected = {
        "dx": made.dx.astype(made.case.x.dtype),
        "dgamma": made.dgamma.astype(wide),
        "dbeta": made.dbeta.astype(wide),
    }
    return exact(info, made.case, outcome, expected)


def inference(adapter: Adapter, info: Info, made: Lattice) -> float:
    """Infer with running statistics that are not the batch's: y is exact."""
    other = in_inference(made, int(made.dbeta.sum()) % 997)
    return exact(info, other.case, run(adapter, info, other.case), {"y": other.y.astype(other.case.x.dtype)})


class Size(NamedTuple):
    """A shape beyond vector widths, 16-bit counters or grid limits."""

    dtype: str
    channels: int
    values: int


LONG = 65_540
"""A number of values that 16 bits and float16 cannot count, and that is no multiple of a vector's width."""


def sizes(info: Info) -> Sequence[Size]:
    """List sizes; the largest in one dtype only."""
    first = "float32" if "float32" in info.dtypes else info.dtypes[0]
    each = [Size(dtype, *size) for dtype in info.dtypes for size in ((65, 64), (130, 64), (3, LONG))]
    return [*each, Size(first, 70_000, 16), Size(first, 3, 131_072), Size(first, 3, 2**20)]


def size(adapter: Adapter, info: Info, which: Size) -> float:
    """Call with very many channels, or values per channel: all results are exact."""
    if which.values >= LONG:
        made = served.expecting(info, _deepened(many_values(which.values, which.dtype), min(info.ranks)))
    else:
        shape = served.fitted(info, (which.values // 8, which.channels, 8))
        made = served.fixed_lattice(info, which.channels, which.dtype, which.channels, (shape[0], *shape[2:]))
    wide, dtype = statistics_dtype(made.case.x), made.case.x.dtype
    expected = {"y": made.y.astype(dtype), "running_mean": blend(0.75, made.case.running_mean, made.mean)}
    if info.differentiates:
        expected |= {"dx": made.dx.astype(dtype), "dgamma": made.dgamma.astype(wide), "dbeta": made.dbeta.astype(wide)}
    return exact(info, made.case, run(adapter, info, made.case), expected)


def _deepened(made: Lattice, rank: int) -> Lattice:
    """Append axes of length 1."""
    shape = made.y.shape + (1,) * (rank - 2)
    case = made.case._replace(x=made.case.x.reshape(shape), dy=made.case.dy.reshape(shape))
    return made._replace(case=case, y=made.y.reshape(shape), dx=made.dx.reshape(shape))


def count(adapter: Adapter, info: Info, value: float) -> float:
    """Call with more equal values than float32 can count.

    Adding 2^24 numbers one by one may lose half of them, and bounds on so long a chain are useless. An error is a fault
    only if no order of the sums explains it: more than half of the mean or of the count; a variance above the square
    of the value; or y and dx beyond what ``|xhat| <= |value| / sqrt(eps)`` and ``r <= 1 / sqrt(eps)`` allow.
    """
    made = _deepened(more_than_float32_counts(value=value), min(info.ranks))
    outcome, (gamma,), root = run(adapter, info, made.case), np.asarray(made.case.gamma), made.case.eps**-0.5
    expected = {
        "running_mean": (made.mean, abs(value) / 2),
        "running_var": (made.variance, value**2),
        "dbeta": (made.dbeta, made.dbeta[0] / 2),
        "y": (made.y, abs(gamma * value) * root),
        "dx": (made.dx, 4 * abs(gamma) * root),
    }
    vacuous = ""
    for name, (right, most) in expected.items():
        got, right = getattr(outcome, name), right.astype(np.float32)
        if got is None or equal(got, right):
            continue
        words = f"{name} of {made.case.x.size} values {value:g}: {difference(got, right)}"
        if not np.abs(got.astype(np.float64) - right).max() <= most:
            raise Violation(f"{words}, which no order of the sums explains", got=got[:1], expected=right[:1])
        vacuous = vacuous or words
    if vacuous:
        raise VacuousBoundError(vacuous)
    return 0.0


def _with_tails(info: Info) -> st.SearchStrategy[Lattice]:
    return served.lattices(info, tails=True)


def _declared(info: Info) -> str | None:
    far = "the adapter declares max_kappa: its algorithm is not meant for values far from zero"
    return None if info.max_kappa is None else far


PROPERTIES: Sequence[Property] = (
    Property("P1", "Where mean, variance and root are floating-point numbers, y is exactly the right one.",
             "S1 S2 S3 S6", output, _with_tails, then=lengths.cases),
    Property("P2", "Where y is exact, the new running statistics are exactly rho * old + (1 - rho) * batch.",
             "S4", statistics, _with_tails, ("running",), then=lengths.cases),
    Property("P2b", "With 5 or 9 values a channel, the running variance is the declared one of biased and unbiased.",
             "S4", statistics, odd, ("running",)),
    Property("P3", "Where y is exact, dx, dgamma and dbeta are exactly the right numbers, too.",
             "S13", gradients, _with_tails, ("vjp",), then=lengths.cases),
    Property("P4", "Inference normalizes by the running statistics that it was given, not by the batch's.",
             "S5", inference, _with_tails, ("infer",), context="In inference", then=lengths.cases),
    Property("P5", "Values a thousand deviations away from zero are normalized exactly, too.",
             "S2", output, lambda info: served.lattices(info, far=True), (), _declared,
             context="A thousand deviations away from zero"),
    Property("P6", "No number of channels or of values is too large: 70,000 channels, 2^20 values a channel.",
             "S1 S2 S3 S13", size, sizes, context="With very many channels or values"),
    Property("P6b", "2^24 + 4 equal values, more than float32 can count, give beta, the value, and variance 0.",
             "S2 S8", count, lambda info: (0.1,), (), served.no_float32, slow=True),  # noqa: ARG005
)  # fmt: skip
