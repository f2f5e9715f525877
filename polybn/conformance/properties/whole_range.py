"""The whole range of numbers, from subnormal to largest: each result against the exact one, on a grid of sizes.

Sizes of x, its spread, gamma, beta, dy, eps and running statistics are combined; channels are constant, nearly
constant, wide, or of two sizes, and hold one to three values. Values have few bits, so that most sums are exact and
every correct algorithm finds the exact mean. In some calls, other channels hold NaN or infinity. Exact results are
fractions. A bound is computed for the same channel scaled to sizes near 1, and scaled back by powers of
two. A result that is too large for its dtype must be infinity with the right sign; only the last operation may lose
digits to underflow.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polybn.conformance import bounds, oracle
from polybn.conformance.cases import Case, Outcome, rows, statistics_dtype
from polybn.conformance.forms import Channel, Floats, Form, VacuousBoundError, format_of
from polybn.conformance.properties.compare import VECTORS, take, widest
from polybn.conformance.properties.grid import Grid, call_of, grids
from polybn.conformance.properties.property import Property
from polybn.conformance.runner import CallError, Violation, run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

QUANTITIES = {
    True: ("y", "running_mean", "running_var", "dx", "dgamma", "dbeta"),
    False: ("y", "dx", "dgamma", "dbeta"),
}
"""What is compared, in training and in inference."""


class Scales(NamedTuple):
    """The powers of two that bring a channel near 1."""

    x: int
    y: int
    dy: int

    def of(self, name: str) -> int:
        """Return the power of two of a result."""
        found = {
            "y": self.y,
            "running_mean": self.x,
            "running_var": 2 * self.x,
            "dx": self.y + self.dy - self.x,
            "dgamma": self.dy,
            "dbeta": self.dy,
        }
        return found[name]


def whole_range(adapter: Adapter, info: Info, grid: Grid) -> float:
    """Make one call with many sizes: the results of each channel lie within their bounds of the exact ones."""
    case = call_of(info, grid)
    outcome, worst = run(adapter, info, case, gradients=grid.derivatives), 0.0
    for c in judged(case):
        with contextlib.suppress(VacuousBoundError):  # some points of the grid certify nothing
            worst = max(worst, _judge(info, take(case, [c]), _channel(outcome, case, c), grid))
    return worst


def judged(case: Case) -> list[int]:
    """List the channels without NaN and infinity."""
    return np.flatnonzero(np.isfinite(rows(case.x, case.axis)).all(axis=1)).tolist()


def tally(adapter: Adapter, info: Info) -> tuple[int, int]:
    """Return how many channels of the whole grid in float32 are wrong, and how many were judged.

    Calls that the library refuses are left out.
    """
    wrong = total = 0
    modes = [(True, info.differentiates), (False, info.differentiates_inference)][: 1 + info.infers]
    for training, gradients in modes:
        for derivatives in (False, True)[: 1 + gradients]:
            for grid in grids(info._replace(dtypes=("float32",)), training=training, derivatives=derivatives):
                case = call_of(info, grid)
                with contextlib.suppress(CallError):
                    verdicts = _verdicts(info, case, run(adapter, info, case, gradients=derivatives), grid)
                    wrong += verdicts.count(False)
                    total += len(verdicts)
    return wrong, total


def _verdicts(info: Info, case: Case, outcome: Outcome, grid: Grid) -> list[bool]:
    """Return whether each channel is right, leaving out channels whose bounds are vacuous."""
    found = []
    for c in judged(case):
        try:
            _judge(info, take(case, [c]), _channel(outcome, case, c), grid)
        except VacuousBoundError:
            continue
        except Violation:
            found.append(False)
        else:
            found.append(True)
    return found


def _channel(outcome: Outcome, case: Case, c: int) -> dict[str, Floats]:
    axis = {"y": case.axis, "dx": case.axis}
    return {
        name: rows(value, axis[name])[c] if name in axis else value[c : c + 1].astype(np.float64)
        for name, value in outcome._asdict().items()
        if value is not None
    }


def _judge(info: Info, case: Case, got: dict[str, Floats], grid: Grid) -> float:
    """Compare one channel with the exact result."""
    exact, channel, scales = _exact(case, derivatives=grid.derivatives)
    try:
        # Here the mean of a constant channel is exact, so its gradients have only the rounding errors of dy.
        form: Form = "K" if channel.constant and grid.derivatives else widest(info)
        limits = bounds.envelope(form, channel, format_of(grid.dtype))
    except OverflowError:
        raise VacuousBoundError("sizes are too far apart") from None
    worst, of_statistics = 0.0, statistics_dtype(case.x)
    for name in QUANTITIES[grid.training]:
        if name not in got or name not in exact:
            continue
        dtype = case.x.dtype if name in ("y", "dx") else of_statistics
        lost = _underflow(info.flushes, dtype.name)
        lost += _lost_in(name, channel, scales) * _underflow(info.flushes, of_statistics.name)
        values, denominator = exact[name]
        for i, (value, numerator, limit) in enumerate(zip(got[name].tolist(), values, limits[name], strict=True)):
            allowed = Fraction(float(limit)) * _power(scales.of(name)) + lost
            share = _share(value, numerator, denominator, allowed, dtype.name)
            if not share <= 1:
                raise Violation(_words(name, i, value, Fraction(numerator, denominator), case))
            worst = max(worst, share)
    return worst


def _exact(case: Case, *, derivatives: bool) -> tuple[dict[str, oracle.ExactRow], Channel, Scales]:
    """Return exact results of one channel, its magnitudes scaled near 1, and the powers of two of that scaling."""
    x, dy = (rows(a, case.axis)[0] for a in (case.x, case.dy))
    gamma, beta, mean, var = (Fraction(float(v[0])) for v in _vectors(case))
    exact_x, exact_dy, eps = oracle.row(x.tolist()), oracle.row(dy.tolist()), Fraction(case.eps)
    s = oracle.batch_statistics(exact_x, eps) if case.training else oracle.given_statistics(len(x), mean, var, eps)
    unbiased = case.running_variance == "unbiased"
    if derivatives:
        d = oracle.derivatives(exact_x, exact_dy, s, gamma, training=case.training)
        found = {"dx": d.x, "dgamma": _alone(d.gamma), "dbeta": _alone(d.beta)}
    else:
        found = {"y": oracle.output(exact_x, s, gamma, beta)}
    if not derivatives and case.training and not (unbiased and s.m == 1):
        rho = Fraction(case.momentum)
        found["running_mean"] = _alone(oracle.blend(mean, s.mean, rho))
        found["running_var"] = _alone(oracle.blend(var, oracle.unbiased(s) if unbiased else s.variance, rho))
    k = max(_exponent(*x, 0.0 if case.training else float(mean)), (_exponent_of(s.square) + 1) // 2)
    scales = Scales(k, _exponent(float(gamma), float(beta)), _exponent(*dy))
    down, square = _power(-k), _power(-2 * k)
    if s.square and not float(s.square * square):
        raise VacuousBoundError("x is too far from the running mean")
    stored = float(np.asarray(float(beta)).astype(case.x.dtype).astype(np.float64))
    channel = Channel(
        x=np.abs(_scaled(exact_x, -k)),
        c=np.abs(_scaled(oracle.centered(exact_x, s), -k)),
        dy=np.abs(np.ldexp(dy, -scales.dy)),
        length=len(x),
        mean=_rounded(s.mean * down),
        variance=_rounded(s.variance * square),
        eps=_rounded(eps * square),
        square=_rounded(s.square * square),
        root=_rounded(s.root / down),
        gamma=math.ldexp(float(gamma), -scales.y),
        beta=math.ldexp(float(beta), -scales.y),
        stored_beta=math.ldexp(stored, -scales.y) if math.isfinite(stored) else math.ldexp(float(beta), -scales.y),
        old_mean=_rounded(mean * down),
        old_variance=_rounded(var * square),
        momentum=case.momentum,
        unbiased=unbiased and s.m > 1,
        training=case.training,
    )
    return found, channel, scales


def _scaled(values: oracle.ExactRow, k: int) -> list[float]:
    """Round each number times ``2 ** k``."""
    n, d = values
    if any(p and not -1000 < p.bit_length() - d.bit_length() + k < 1000 for p in n):
        raise VacuousBoundError("sizes are too far apart")
    return [p / (d << -k) for p in n] if k < 0 else [(p << k) / d for p in n]


def _rounded(value: Fraction) -> float:
    return _scaled(_alone(value), 0)[0]


def _vectors(case: Case) -> Iterator[Any]:
    return (np.asarray(v) for v in (case.gamma, case.beta, case.running_mean, case.running_var))


def _alone(value: Fraction) -> oracle.ExactRow:
    return oracle.ExactRow([value.numerator], value.denominator)


@cache
def _power(k: int) -> Fraction:
    return Fraction(2) ** k


def _exponent(*values: float) -> int:
    """Return the exponent of the largest magnitude, 0 for 0."""
    largest = max(map(abs, values), default=0.0)
    return math.frexp(largest)[1] if largest else 0


def _exponent_of(value: Fraction) -> int:
    return value.numerator.bit_length() - value.denominator.bit_length() if value else -(10**6)


@cache
def _underflow(flushes: bool, dtype: str) -> Fraction:
    """Return what the last operations may lose to underflow: two steps of the dtype, or every subnormal number."""
    kind = np.finfo("float32" if dtype == "bfloat16" else dtype)
    step = Fraction(float(kind.smallest_subnormal)) * (2**16 if dtype == "bfloat16" else 1)
    return Fraction(float(kind.smallest_normal)) * 2 if flushes else 2 * step


@cache
def _largest(dtype: str) -> Fraction:
    return Fraction(3.3895313892515355e38 if dtype == "bfloat16" else float(np.finfo(dtype).max))


def _lost_in(name: str, ch: Channel, scales: Scales) -> Fraction:
    """Return the factor that magnifies an underflow of ``x - mean``, which S10 tolerates where eps dominates."""
    if name == "y":
        return Fraction(ch.root) * abs(Fraction(ch.gamma)) * _power(scales.y - scales.x)
    if name == "dgamma":
        return Fraction(ch.root) * Fraction(float(ch.dy.sum())) * _power(scales.dy - scales.x)
    return Fraction(0)


def _share(got: float, numerator: int, denominator: int, allowed: Fraction, dtype: str) -> float:
    """Return the error as a share of what is allowed."""
    if math.isinf(got):
        exact = Fraction(numerator, denominator)
        return 0.0 if (exact if got > 0 else -exact) + allowed >= _largest(dtype) else math.inf
    if math.isnan(got):
        return math.inf
    p, q = got.as_integer_ratio()
    error = abs(p * denominator - numerator * q) * allowed.denominator
    room = allowed.numerator * q * denominator
    return error / room if error <= room * 10**6 else math.inf


def _words(name: str, i: int, got: float, exact: Fraction, case: Case) -> str:
    x, dy = (rows(a, case.axis)[0].tolist() for a in (case.x, case.dy))
    given = [f"{n} = {float(v[0]):.6g}" for n, v in zip(VECTORS, _vectors(case), strict=True)]
    given = given[: 2 if case.training and not name.startswith("running") else 4]
    mode = "training" if case.training else "inference"
    place = f" of value {i}" if name in ("y", "dx") else ""
    sizes = f"x = {_short(x)}, " + (f"dy = {_short(dy)}, " if name.startswith("d") else "")
    return (
        f"{name}{place} must be {_decimal(exact)}; got {got!r} ({mode}, {sizes}{', '.join(given)}, eps = {case.eps:g})"
    )


def _short(values: list[float]) -> str:
    return f"[{', '.join(f'{v:.6g}' for v in values)}]"


def _decimal(exact: Fraction) -> str:
    try:
        return repr(float(exact))
    except OverflowError:
        return "infinity" if exact > 0 else "-infinity"


def _cases(*, training: bool, derivatives: bool) -> Any:
    return lambda info: grids(info, training=training, derivatives=derivatives)


PROPERTIES: Sequence[Property] = (
    Property("G1", "From subnormal to largest numbers, y and the running statistics in training are right.",
             "S2 S3 S4 S8 S10", whole_range, _cases(training=True, derivatives=False)),
    Property("G2", "From subnormal to largest numbers, the gradients in training are right.",
             "S8 S10 S13", whole_range, _cases(training=True, derivatives=True), ("vjp",)),
    Property("G3", "From subnormal to largest numbers, y in inference is right.",
             "S5 S10", whole_range, _cases(training=False, derivatives=False), ("infer",)),
    Property("G4", "From subnormal to largest numbers, the gradients in inference are right.",
             "S10 S13", whole_range, _cases(training=False, derivatives=True), ("infer", "infer_vjp")),
)  # fmt: skip
