"""What a result may depend on, and what it may not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from polybn.conformance.cases import Array, Case, equal, statistics_dtype
from polybn.conformance.properties import served
from polybn.conformance.properties.compare import agree, changed, same
from polybn.conformance.properties.property import Property
from polybn.conformance.runner import Violation, run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info


def ends(adapter: Adapter, info: Info, case: Case) -> float:
    """Train with momentum 1 and 0: the old statistics stay to the bit, or have no influence."""
    wide, channels = statistics_dtype(case.x), case.x.shape[case.axis]
    old = [(np.arange(channels) + z).astype(wide) for z in (1e3 + 1 / 3, 7 + 1 / 7)]
    kept = run(adapter, info, case._replace(momentum=1.0, running_mean=old[0], running_var=old[1]), gradients=False)
    expected = kept._replace(running_mean=old[0], running_var=old[1])
    same("where the old value has all the weight", kept, expected)
    fresh = [
        run(adapter, info, case._replace(momentum=0.0, running_mean=mean, running_var=var), gradients=False)
        for mean, var in (old, [np.zeros(channels, wide), np.ones(channels, wide)])
    ]
    return same("where the batch has all the weight, whatever the old value was", fresh[0], fresh[1])


def unknown_state(adapter: Adapter, info: Info, case: Case) -> float:
    """Train with other running statistics and another momentum: y stays the same to the bit."""
    wide, channels = statistics_dtype(case.x), case.x.shape[case.axis]
    strange = [np.full(channels, z, wide) for z in (1e3, 7.0)]
    other = case._replace(running_mean=strange[0], running_var=strange[1], momentum=0.3)
    base, got = run(adapter, info, case, gradients=False), run(adapter, info, other, gradients=False)
    return same("in training, for any running statistics and any momentum", got, base, ("y",))


def no_hidden_state(adapter: Adapter, info: Info, pair: tuple[Case, Case]) -> float:
    """Infer and go backward between two equal calls, and train between two equal inferences: results are equal."""
    case, other = pair
    first = run(adapter, info, case)
    run(adapter, info, other._replace(training=False))
    if info.differentiates:
        run(adapter, info, other)
    same("after an inference and a backward pass in between", run(adapter, info, case), first)
    inferred = run(adapter, info, case._replace(training=False))
    run(adapter, info, case)
    return same(
        "in inference, before and after a training call", run(adapter, info, case._replace(training=False)), inferred
    )


def by_value(adapter: Adapter, info: Info, case: Case) -> float:
    """Infer for each example of a batch alone: y is that of the whole batch."""
    cut = 0 if case.axis % case.x.ndim else 1
    whole, runs = run(adapter, info, case), []
    for i in range(case.x.shape[cut]):
        part = case._replace(x=np.take(case.x, [i], cut), dy=np.take(case.dy, [i], cut))
        runs.append((part, run(adapter, info, part), whole._replace(y=np.take(whole.y, [i], cut))))
    return agree(info, "in inference, whatever else is in the batch", *runs)


POISON = ((math.nan,), (math.inf,), (-math.inf,), (math.inf, -math.inf))


class Poisoned(NamedTuple):
    """A channel of a call, and what is put into it."""

    dtype: str
    shape: tuple[int, ...]
    channel: int
    values: tuple[float, ...]
    gamma: float = 1.5


def poisoned(info: Info) -> Sequence[Poisoned]:
    """List calls that hold NaN or infinity."""
    shapes = (((5, 7, 3), 2), ((4, 1, 3), 0), ((520, 3, 2), 1))
    return [
        Poisoned(dtype, shape, channel, values, gamma)
        for dtype, (shape, channel) in served.typed(info, shapes)
        for values in POISON
        for gamma in (1.5, 0.0)
    ]


def poison(array: Array, made: Poisoned) -> Array:
    """Put the values into the channel, at uneven places."""
    spoiled = array.copy()
    first = np.moveaxis(spoiled, 1, 0)[made.channel].reshape(-1)
    for i, value in enumerate(made.values):
        first[(5 * i + 3) % first.size] = value
    np.moveaxis(spoiled, 1, 0)[made.channel] = first.reshape(np.moveaxis(spoiled, 1, 0)[made.channel].shape)
    return spoiled


def nan_forward(adapter: Adapter, info: Info, made: Poisoned) -> float:
    """Put NaN or infinity into one channel: its y is NaN throughout, other channels do not change."""
    return _nan(adapter, info, made, ("y",), gradients=False)


def nan_statistics(adapter: Adapter, info: Info, made: Poisoned) -> float:
    """Put NaN or infinity into one channel: its running statistics are NaN, others do not change.

    They are NaN even where the mean is infinite, so that later updates cannot make them finite again (S9).
    """
    return _nan(adapter, info, made, ("running_mean", "running_var"), gradients=False)


def nan_backward(adapter: Adapter, info: Info, made: Poisoned) -> float:
    """Put NaN or infinity into one channel: its dx and dgamma are NaN, others do not change."""
    return _nan(adapter, info, made, ("dx", "dgamma"), gradients=True)


def nan_dbeta(adapter: Adapter, info: Info, made: Poisoned) -> float:
    """Put NaN or infinity into one channel of x: dbeta, a sum of dy alone, does not change."""
    case = served.plain(info, 2, made.dtype, made.shape)
    expected = run(adapter, info, case, gradients=True).dbeta
    got = run(adapter, info, case._replace(x=poison(case.x, made)), gradients=True).dbeta
    if not equal(got, expected):
        where = f"channel {made.channel} of x holds {' and '.join(map(str, made.values))}"
        raise Violation(f"dbeta must not change a bit where {where}", got=got, expected=expected)
    return 0.0


def _nan(adapter: Adapter, info: Info, made: Poisoned, names: Sequence[str], *, gradients: bool) -> float:
    case = served.plain(info, 2, made.dtype, made.shape)
    case = case._replace(gamma=np.full(made.shape[1], made.gamma, statistics_dtype(case.x)))
    base = run(adapter, info, case, gradients=gradients)
    got = run(adapter, info, case._replace(x=poison(case.x, made)), gradients=gradients)
    words = f"where channel {made.channel} holds {' and '.join(map(str, made.values))}"
    for name in names:
        value, whole = getattr(got, name), getattr(base, name)
        axis = 1 if value.ndim > 1 else 0
        if not equal(np.delete(value, made.channel, axis), np.delete(whole, made.channel, axis)):
            raise Violation(f"{name} of the other channels must not change a bit {words}", got=value, expected=whole)
        mine = np.take(value, made.channel, axis).astype(np.float64)
        if not np.isnan(mine).all():
            some = mine[~np.isnan(mine)].ravel()[0]
            raise Violation(f"{name} of the channel must be NaN throughout {words}, gamma {made.gamma}; got {some}")
    return 0.0


def gamma_zero(adapter: Adapter, info: Info, case: Case) -> float:
    """Call with gamma 0: y is beta, dx is 0, and dgamma and dbeta are those of any gamma."""
    usual, zero = run(adapter, info, case), changed(case, gamma=0 * np.asarray(case.gamma))
    got = run(adapter, info, zero)
    shape = [-1 if axis == case.axis % case.x.ndim else 1 for axis in range(case.x.ndim)]
    y = np.broadcast_to(np.asarray(case.beta).reshape(shape), case.x.shape).astype(case.x.dtype)
    expected = got._replace(y=y, dx=None if got.dx is None else np.zeros_like(case.x))
    same("where gamma is 0: y is beta, and dx is 0", got, expected)
    if info.infers:
        inferred = run(adapter, info, zero._replace(training=False))
        same("in inference where gamma is 0: y is beta", inferred, inferred._replace(y=y))
    return agree(info, "for any gamma", (zero, got, got._replace(dgamma=usual.dgamma, dbeta=usual.dbeta)))


PROPERTIES: Sequence[Property] = (
    Property("P34", "With all the weight, the old statistic is kept to the bit; with none, the batch's replaces it.",
             "S4", ends, served.cases, ("running",)),
    Property("P35", "In training, y does not depend on the running statistics, nor on momentum.",
             "S4", unknown_state, served.cases),
    Property("P37", "Inference and backward passes change nothing for later calls.",
             "S4 S5 S7", no_hidden_state, served.pairs, ("infer",)),
    Property("P37b", "In inference a value's output does not depend on the rest of the batch.",
             "S5", by_value, lambda info: served.cases(info, training=False), ("infer",)),
    Property("P38", "NaN and infinity in x stay in their channel, and leave nothing of its y but NaN.",
             "S9", nan_forward, poisoned),
    Property("P38b", "NaN and infinity in x leave nothing of its dx and dgamma but NaN, and change no other channel's.",
             "S9", nan_backward, poisoned, ("vjp",)),
    Property("P38c", "dbeta is the sum of dy: it does not depend on NaN and infinity in x.",
             "S9", nan_dbeta, poisoned, ("vjp",)),
    Property("P38d", "NaN and infinity in x leave nothing of its running statistics but NaN, and change no others.",
             "S9", nan_statistics, poisoned, ("running",)),
    Property("P39", "Where gamma is 0, y is beta, dx is 0, and dgamma is what it is for any gamma.",
             "S3 S5 S13", gamma_zero, served.cases),
)  # fmt: skip
