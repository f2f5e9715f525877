"""What is wrong, or may be, with the batch norms of a model: one sentence for each thing, the worst first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from polybn.dialects import Dialect
from polybn.inspection.channels import Channels, channels_of
from polybn.inspection.digits import sure_digits

if TYPE_CHECKING:
    from polybn.inspection.channels import Floats
    from polybn.model_files import Model

LARGE, TINY = 100.0, 1e-10
"""A factor by which inference may blow up what it is given; and a variance that is rounding, or a decayed 1."""
FEW_DIGITS = 3
"""Of float32's seven; fewer that are sure are worth a word."""
FAR = 100.0
"""Deviations from 0 of a mean, below which no digit is lost that anybody misses."""


class Finding(NamedTuple):
    """Something to know about one batch norm."""

    level: Literal["error", "warning", "note"]
    """error: inference is wrong; warning: it may be; note: so it is, and may be meant."""
    norm: str
    """The layer's name."""
    kind: str
    """The same for all findings of a sort, such as ``"variance is negative"``."""
    sentence: str
    """What it is, with figures, and what to do."""
    channels: tuple[int, ...] = ()
    """Which channels; none stands for all."""


def inspect(model: Model, target: Dialect | None = None) -> list[Finding]:
    """Look for what harms the batch norms of a model, there or after a move to another framework.

    Parameters
    ----------
    model : Model
        As :func:`polybn.model_files.read` returns it.
    target : Dialect, optional
        Where the model is to go.

    Returns
    -------
    list of Finding
        Errors first, then warnings, then notes.

    Examples
    --------
    >>> import numpy as np
    >>> from polybn.model_files import Model, Norm
    >>> state = {"weight": np.ones(2), "bias": np.zeros(2), "running_mean": np.ones(2), "running_var": np.array([1, -4])}
    >>> inspect(Model("safetensors", [Norm("bn1", "pytorch", state)], 4))[0].kind
    'variance is negative'
    """
    found = list[Finding]()
    for norm in model.norms:
        channels = channels_of(norm)
        if channels is None:
            found.append(Finding("note", norm.name, "statistics are not in the file", f"{norm.lacks}: not looked at."))
            continue
        for rule in RULES:
            found += rule(channels)
        found += _for_target(channels, target)
    levels = ("error", "warning", "note")
    return sorted(found, key=lambda finding: levels.index(finding.level))


def _not_finite(c: Channels) -> Iterator[Finding]:
    for name, values in (("variance", c.var), ("mean", c.mean), ("gamma", c.gamma), ("beta", c.beta)):
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            yield _finding(c, "error", f"{name} is NaN or infinite", bad, f"{name} {values[bad[0]]}: y is NaN there.")


def _negative(c: Channels) -> Iterator[Finding]:
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(c.var < 0)
    if bad.size:
        nan = int(np.count_nonzero(c.var[bad] + c.eps <= 0))
        so = f"y is NaN in {nan} of them" if nan else f"eps {c.eps:g} covers it, a smaller one gives NaN"
        yield _finding(c, "error", "variance is negative", bad, f"down to {c.var[bad].min():.3g}: {so}.")


def _never_updated(c: Channels) -> Iterator[Finding]:
    initial = c.mean.size and (c.mean == 0).all() and (c.var == 1).all()
    if initial and c.batches != 0:
        yield _finding(
            c, "warning", "statistics were never updated", None, "mean 0 and variance 1 throughout: inference does not "
            "normalize. Was it trained with the statistics frozen, or saved before training?",
        )  # fmt: skip
    elif c.batches == 0:
        yield _finding(c, "note", "no batches were counted", None, "num_batches_tracked is 0: saved before training?")


def _constant(c: Channels) -> Iterator[Finding]:
    with np.errstate(invalid="ignore"):
        still = (c.var >= 0) & (c.var < min(TINY, c.eps or TINY))
    bad = np.flatnonzero(still & (c.gamma != 0))
    if bad.size:
        yield _finding(
            c, "warning", "channels are constant", bad, f"variance {c.var[bad].max():.3g} and less: a dead filter, or one "
            f"value in training. A value that differs by 1 from the mean comes out as {_largest(c, bad):.3g}.",
        )  # fmt: skip


def _blown_up(c: Channels) -> Iterator[Finding]:
    with np.errstate(invalid="ignore"):
        small = (c.var >= TINY) & (c.var < c.eps)
    bad = np.flatnonzero(small & (np.abs(c.gamma) * c.root > LARGE))
    if bad.size:
        yield _finding(
            c, "warning", "variance is tiny and gamma is not", bad, f"eps {c.eps:g} decides the result: differences are "
            f"multiplied by up to {_largest(c, bad):.3g}. The same eps must be set wherever the model goes.",
        )  # fmt: skip


def _gamma_is_zero(c: Channels) -> Iterator[Finding]:
    bad = np.flatnonzero(c.gamma == 0)
    if bad.size:
        yield _finding(c, "note", "gamma is 0", bad, "y is beta there, whatever x is: pruned, or weight decay did it.")


def _digits(c: Channels) -> Iterator[Finding]:
    with np.errstate(invalid="ignore"):
        far = np.flatnonzero(np.isfinite(c.ratio) & (c.ratio > FAR) & (c.gamma != 0) & np.isfinite(c.gamma))
    sure = {place: sure_digits(c, int(place)) for place in far}
    bad = np.array([place for place, digits in sure.items() if digits < FEW_DIGITS], np.int64)
    if bad.size:
        worst = min(bad, key=lambda place: sure[place])
        yield _finding(
            c, "warning", "float32 loses digits", bad, f"the mean is up to {c.ratio[worst]:.3g} deviations from 0: of "
            f"float32's 7 digits {max(sure[worst], 0):.1f} are sure in inference. Subtract what is constant before it.",
        )  # fmt: skip


def _momentum(c: Channels) -> Iterator[Finding]:
    if c.momentum is not None and c.momentum < 0.5:
        word = c.dialect.momentum_word
        old = f"the old value weighs {c.momentum:g}, the batch {1 - c.momentum:g}"
        yield _finding(c, "warning", f"{word} has the other sense", None, f"{old}: was it meant to be the other way?")


def _training(c: Channels) -> Iterator[Finding]:
    if c.training:
        yield _finding(
            c, "error", "training_mode is 1", None, "each batch is normalized by its own statistics, and those in the file "
            "are not used: export the model in inference mode.",
        )  # fmt: skip


def _lacks(c: Channels) -> Iterator[Finding]:
    if c.lacks:
        yield _finding(c, "note", "the state is not whole", None, f"{c.lacks}.")


RULES: tuple[Callable[[Channels], Iterable[Finding]], ...] = (
    _not_finite, _negative, _training, _never_updated, _constant, _blown_up, _digits, _momentum, _gamma_is_zero, _lacks,
)  # fmt: skip


def _for_target(c: Channels, target: Dialect | None) -> Iterator[Finding]:
    if target is None:
        return
    if c.eps_known and c.eps < target.least_eps:
        yield _finding(
            c, "warning", f"eps is below the least of {target.name}", None, f"eps {c.eps:g} becomes {target.least_eps:g}."
        )  # fmt: skip


def _largest(c: Channels, places: Floats) -> float:
    return float((np.abs(c.gamma) * c.root)[places].max())


def _finding(c: Channels, level: Literal["error", "warning", "note"], kind: str, places: Floats | None, words: str) -> Finding:
    if places is None:
        return Finding(level, c.name, kind, f"{c.name}: {kind}: {words}")
    of = f"in {places.size} of {c.mean.size} channels"
    return Finding(level, c.name, kind, f"{c.name}: {kind} {of}: {words}", tuple(map(int, places)))
