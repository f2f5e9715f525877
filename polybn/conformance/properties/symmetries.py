"""Changes of the input after which results stay the same to the bit, or change in a known way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from polybn.conformance.cases import Array, Case, Outcome, statistics_dtype
from polybn.conformance.lattice import Lattice
from polybn.conformance.properties import served
from polybn.conformance.properties.compare import agree, exact, in_either_mode, same, take, take_outcome
from polybn.conformance.properties.property import Property
from polybn.conformance.runner import Violation, run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info


class Change(NamedTuple):
    """A case, and a signed power of two to multiply some of its arguments by."""

    case: Case
    power: int
    sign: int = 1


def scaled(array: Array | None, factor: float) -> Any:
    """Multiply by a signed power of two, in the array's dtype."""
    return None if array is None else (array * array.dtype.type(factor)).astype(array.dtype)


def demand_scaled(name: str, what: str, got: Array | None, base: Array | None, factor: float) -> None:
    """Demand ``got == base * factor``, except where storing one of them underflowed."""
    if got is None or base is None:
        return
    a, b = got.astype(np.float64), base.astype(np.float64)
    floor = {"float16": 2.0**-13, "float64": 2.0**-1021}.get(got.dtype.name, 2.0**-125)
    normal = (np.abs(a) > floor) & (np.abs(b) > floor) | np.isnan(a) | np.isnan(b)
    if not np.array_equal(a[normal], b[normal] * factor, equal_nan=True):
        raise Violation(
            f"{name} must be multiplied by exactly {factor:g} {what}",
            got=got,
            expected=(b * factor).astype(base.dtype),
        )


def demand_all(what: str, got: Outcome, base: Outcome, factors: dict[str, float]) -> float:
    """Demand the factor of each named result."""
    for name, factor in factors.items():
        demand_scaled(name, what, getattr(got, name), getattr(base, name), factor)
    return 0.0


@st.composite
def scalings(draw: st.DrawFn, info: Info, training: bool = True) -> Change:
    """Draw a power of two to multiply x by; not below 1 for float16, whose small numbers would become subnormal."""
    case = draw(served.cases(info, training=training))
    largest = {"float16": 2, "bfloat16": 30, "float32": 30, "float64": 300}[case.x.dtype.name]
    return Change(case, draw(st.integers(0 if case.x.dtype == np.float16 else -largest, largest)))


def scaling_x(adapter: Adapter, info: Info, change: Change) -> float:
    """Multiply x by a power of two and eps by its square: y, dgamma and dbeta stay the same to the bit."""
    case, factor = change.case, 2.0**change.power
    other = case._replace(
        x=scaled(case.x, factor),
        running_mean=scaled(case.running_mean, factor),
        running_var=scaled(case.running_var, factor**2),
        eps=case.eps * factor**2,
    )
    base, got = run(adapter, info, case), run(adapter, info, other)
    what = f"when x is multiplied by 2^{change.power} and eps by its square"
    same(what, got, base, ("y", "dgamma", "dbeta"))
    if not case.training:
        return 0.0
    return demand_all(what, got, base, {"running_mean": factor, "running_var": factor**2, "dx": 1 / factor})


def negating_x(adapter: Adapter, info: Info, case: Case) -> float:
    """Change the signs of x and beta: batch norm is an odd function."""
    negated: dict[str, Any] = {n: -getattr(case, n) for n in ("x", "beta", "running_mean")}
    base, got = run(adapter, info, case), run(adapter, info, case._replace(**negated))
    odd = {"y", "running_mean", "dgamma"} if case.training else {"y"}
    expected = Outcome(**{n: scaled(v, -1) if n in odd else v for n, v in base._asdict().items()})
    names = Outcome._fields if case.training else ("y",)
    return same("when x and beta change sign, except for the signs of y, running_mean and dgamma", got, expected, names)


@st.composite
def affine_scalings(draw: st.DrawFn, info: Info) -> Change:
    """Draw a small power of two and a sign."""
    return Change(draw(served.cases(info)), draw(st.integers(-2, 2)), draw(st.sampled_from((-1, 1))))


def scaling_affine(adapter: Adapter, info: Info, change: Change) -> float:
    """Multiply gamma and beta by a signed power of two: y and dx are multiplied by it, all else stays the same."""
    case, factor = change.case, change.sign * 2.0**change.power
    vectors: dict[str, Any] = {n: scaled(getattr(case, n), factor) for n in ("gamma", "beta")}
    base, got = run(adapter, info, case), run(adapter, info, case._replace(**vectors))
    what = f"when gamma and beta are multiplied by {factor:g}"
    same(what, got, base, ("running_mean", "running_var", "dgamma", "dbeta"))
    return demand_all(what, got, base, {"y": factor, "dx": factor})


def scaling_dy(adapter: Adapter, info: Info, change: Change) -> float:
    """Multiply dy by a signed power of two, not below 1 for float16: all gradients are multiplied by it."""
    case = change.case
    factor = change.sign * 2.0 ** (abs(change.power) if case.dy.dtype == np.float16 else change.power)
    base, got = run(adapter, info, case), run(adapter, info, case._replace(dy=scaled(case.dy, factor)))
    factors = dict.fromkeys(("dx", "dgamma", "dbeta"), factor)
    return demand_all(f"when dy is multiplied by {factor:g}", got, base, factors)


class Channels(NamedTuple):
    """A lattice call, and channels to choose."""

    case: Case
    which: Array


@st.composite
def choices(draw: st.DrawFn, info: Info) -> Channels:
    """Draw channels of a lattice call, in any order."""
    dtype, channels, seed = (
        draw(st.sampled_from(info.dtypes)),
        draw(st.sampled_from(served.few(info, (2, 3, 7, 17, 65)))),
        draw(served.SEEDS),
    )
    shape = served.fitted(info, (4, channels, 4, 2))
    made = served.fixed_lattice(info, seed, dtype, channels, (shape[0], *shape[2:]), offset=served.offsets(info)[-1])
    training = True if not info.infers else draw(st.booleans())
    index = np.random.default_rng(seed).permutation(channels)[
        : draw(st.sampled_from(served.few(info, range(1, channels + 1))))
    ]
    return Channels(made.case._replace(training=training), index)


def channels(adapter: Adapter, info: Info, chosen: Channels) -> float:
    """Select and reorder channels: each keeps its results."""
    case, index = chosen
    got, whole = run(adapter, info, take(case, index)), run(adapter, info, case)
    what = "whatever other channels there are, in whatever order"
    return agree(info, what, (take(case, index), got, take_outcome(whole, case.axis, index)))


def order(adapter: Adapter, info: Info, filled: served.Seeded) -> float:
    """Shuffle the values of each channel: y and dx are shuffled, statistics and other gradients stay the same."""
    case, rng = served.small(info, *filled).case, np.random.default_rng(filled.seed)
    places = [rng.permutation(n) if axis != 1 else np.arange(n) for axis, n in enumerate(case.x.shape)]

    def shuffled(array: Array | None) -> Any:
        return None if array is None else array[np.ix_(*places)]

    other = case._replace(x=shuffled(case.x), dy=shuffled(case.dy))
    base, got = run(adapter, info, case), run(adapter, info, other)
    expected = base._replace(y=shuffled(base.y), dx=shuffled(base.dx))
    return agree(info, "when the values of each channel change places, except for the places", (other, got, expected))


def negative_axis(adapter: Adapter, info: Info, case: Case) -> float:
    """Count the channel axis from the other end: results are the same to the bit."""
    rank = case.x.ndim
    other = case._replace(axis=case.axis - rank if case.axis >= 0 else case.axis + rank)
    base, got = run(adapter, info, case), run(adapter, info, other)
    return same(f"for axis {case.axis} and axis {other.axis} of rank {rank}", got, base)


class Moved(NamedTuple):
    """A lattice call, and where to move its channel axis."""

    made: Lattice
    axis: int


@st.composite
def moves(draw: st.DrawFn, info: Info) -> Moved:
    """Draw another channel axis."""
    made = draw(served.lattices(info))
    return Moved(made, draw(st.integers(0, made.case.x.ndim - 1)))


def moved_axis(adapter: Adapter, info: Info, moved: Moved) -> float:
    """Move the channel axis: it moves in y and dx, and nothing else changes."""
    case = moved.made.case
    other = case.moved(moved.axis)
    base, got = run(adapter, info, case), run(adapter, info, other)

    def along(array: Array | None) -> Any:
        return None if array is None else np.moveaxis(array, case.axis, moved.axis)

    expected = base._replace(y=along(base.y), dx=along(base.dx))
    return agree(info, "when the channel axis is elsewhere", (other, got, expected))


def twice(adapter: Adapter, info: Info, filled: served.Seeded) -> float:
    """Repeat all values: y of [x; x] is y twice, mean and biased variance stay, dgamma and dbeta double."""
    made = served.small(info, *filled)
    case, m = made.case, made.case.x.size // 5

    def doubled(array: Array) -> Array:
        return np.concatenate([array, array])

    other = case._replace(x=doubled(case.x), dy=doubled(case.dy))
    wide, dtype = statistics_dtype(case.x), case.x.dtype
    factor = 2 * m / (2 * m - 1) if info.running_variance == "unbiased" else 1.0
    assert case.running_var is not None
    variance = case.momentum * case.running_var.astype(np.float64) + (1 - case.momentum) * made.variance * factor
    expected = {"y": doubled(made.y).astype(dtype), "running_var": variance.astype(wide)}
    if info.differentiates:
        expected |= {
            "dx": doubled(made.dx).astype(dtype),
            "dgamma": (2 * made.dgamma).astype(wide),
            "dbeta": (2 * made.dbeta).astype(wide),
        }
    return exact(info, other, run(adapter, info, other), expected)


def _either(info: Info) -> st.SearchStrategy[Change]:
    return st.one_of(scalings(info), scalings(info, training=False)) if info.infers else scalings(info)


PROPERTIES: Sequence[Property] = (
    Property("P7", "Multiplying x by a power of two, and eps by its square, changes no bit of y, dgamma and dbeta.",
             "S2 S3 S5 S13", scaling_x, _either),
    Property("P8", "Changing the sign of x and beta changes the sign of y and dgamma, and not a bit more.",
             "S3 S5 S13", in_either_mode(negating_x), served.any_call),
    Property("P9", "Multiplying gamma and beta by a power of two multiplies y and dx by it exactly, and nothing else.",
             "S3 S13", scaling_affine, affine_scalings),
    Property("P9b", "Multiplying dy by a power of two multiplies all gradients by it exactly.",
             "S13", scaling_dy, affine_scalings, ("vjp",)),
    Property("P10", "A channel's results do not depend on which other channels there are, or in which order.",
             "S1", channels, choices),
    Property("P11", "Reordering the values of a channel reorders y and dx, and leaves statistics and gradients.",
             "S1", order, served.seeds),
    Property("P13", "Axis a and axis a - rank are the same axis.",
             "S1", in_either_mode(negative_axis), served.any_call, ("axes",)),
    Property("P13b", "Moving the channel axis moves it in y and dx, and changes nothing else.",
             "S1", moved_axis, moves, ("axes",)),
    Property("P14", "Repeating all values repeats y and dx, keeps the biased variance, doubles dgamma and dbeta.",
             "S1 S2 S4 S13", twice, served.seeds),
)  # fmt: skip
