"""Faults and possible faults of a model's batch norms: one sentence for each, the worst first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from polybn.dialects import CHAINER, Dialect
from polybn.inspection.channels import Channels, channels_of, unknown
from polybn.inspection.digits import sure_digits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from polybn.model_files import Model, Norm

Level: TypeAlias = Literal["error", "warning", "note"]
Rule: TypeAlias = Callable[[Channels], Iterable["Finding"]]

LARGE, TINY = 100.0, 1e-10
"""A large factor of inference; and a variance so small that it is a rounding error or a decayed initial 1."""
FEW_DIGITS = 3
"""The number of certain digits, of float32's seven, below which there is a finding."""
FAR = 100.0
"""The distance of a mean from 0, in standard deviations, below which the loss of digits does not matter."""


class Finding(NamedTuple):
    """A fault, a possible fault or a remarkable fact of one batch norm."""

    level: Level
    """How grave it is: an error if inference is wrong, a warning if it may be, a note for what may be intended."""
    norm: str
    """The layer's name."""
    kind: str
    """The kind of finding, such as ``"variance is negative"``."""
    sentence: str
    """The finding with figures, and advice."""
    channels: tuple[int, ...] = ()
    """The channels; empty if the finding is about all."""


def inspect(model: Model, target: Dialect | None = None) -> list[Finding]:
    """Look for faults of a model's batch norms, in its framework or after conversion to another one.

    Parameters
    ----------
    model : Model
        A model, as from :func:`polybn.model_files.read`.
    target : Dialect, optional
        The dialect of the framework that the model will be moved to.

    Returns
    -------
    list of Finding
        Errors first, then warnings, then notes.

    Examples
    --------
    >>> import numpy as np
    >>> from polybn.model_files import Model, Norm
    >>> state = {"running_mean": np.ones(2), "running_var": np.array([1, -4])}
    >>> inspect(Model("safetensors", [Norm("bn1", "pytorch", state)], 4))[0].kind
    'variance is negative'
    """
    found = list[Finding]()
    for norm in model.norms:
        channels = channels_of(norm)
        if channels is None:
            found.append(_unknown(norm))
            continue
        for rule in RULES:
            found += rule(channels)
        found += _for_target(channels, target)
    found += [
        Finding(left.level, left.layer, left.kind, f"{left.layer}: left out: {left.why}.") for left in model.left_out
    ]
    levels = ("error", "warning", "note")
    return sorted(found, key=lambda finding: levels.index(finding.level))


def _not_finite(c: Channels) -> Iterator[Finding]:
    for name, values in (("variance", c.var), ("mean", c.mean), ("gamma", c.gamma), ("beta", c.beta)):
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            flat = name == "variance" and (values[bad] == np.inf).all()
            words = "inf, and y is beta" if flat else f"{values[bad].min()}, and y is NaN or infinite"
            yield _some(c, "error", f"{name} is NaN or infinite", bad, words)


def _eps(c: Channels) -> Iterator[Finding]:
    if not 0 <= c.eps < np.inf:
        yield _all(c, "error", "eps is negative, NaN or infinite", f"{c.eps:g} is added to every variance")


def _negative(c: Channels) -> Iterator[Finding]:
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(c.var < 0)
    if bad.size:
        nan = int(np.count_nonzero(c.var[bad] + c.eps <= 0))
        so = f"y is NaN in {nan} of them" if nan else f"eps {c.eps:g} covers it, a smaller one gives NaN"
        yield _some(c, "error", "variance is negative", bad, f"down to {c.var[bad].min():.3g}; {so}")


def _training(c: Channels) -> Iterator[Finding]:
    if c.training:
        words = "each batch is normalized by its own statistics, not by those in the file; export for inference"
        yield _all(c, "error", "training_mode is 1", words)


def _never_updated(c: Channels) -> Iterator[Finding]:
    if _initial(c):
        words = "mean 0 and variance 1 throughout, as before training; inference does not normalize"
        yield _all(c, "warning", "statistics were never updated", words)
    elif c.batches == 0 and c.dialect is not CHAINER:  # whose N counts fine-tuning alone
        words = f"{c.dialect.names['count']} is 0; if the model was ported, the other framework's eps must be set, too"
        yield _all(c, "note", "statistics came from elsewhere", words)


def _placeholders(c: Channels) -> Iterator[Finding]:
    vectors = (c.gamma, c.beta, c.mean, c.var)
    if c.mean.size > 1 and not _initial(c) and all(np.ptp(values) == 0 for values in vectors):
        values = f"mean {c.mean[0]:g}, variance {c.var[0]:g}, gamma {c.gamma[0]:g}, beta {c.beta[0]:g}"
        yield _all(
            c, "warning", "all channels are the same", f"{values}; as of weights that were stripped or never loaded"
        )


def _constant(c: Channels) -> Iterator[Finding]:
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero((c.var >= 0) & (c.var < min(TINY, c.eps or TINY)) & (c.gamma != 0))
    if bad.size:
        most = c.var[bad].max()
        dead = f"variance {f'at most {most:.2g}' if most else 0}, as of dead filters"
        words = f"{dead}; a difference of 1 becomes {_most(c, bad):.3g}"
        yield _some(c, "warning", "channels are constant", bad, words)


def _blown_up(c: Channels) -> Iterator[Finding]:
    with np.errstate(invalid="ignore"):
        small = (c.var >= TINY) & (c.var < c.eps)
    bad = np.flatnonzero(small & (np.abs(c.gamma) * c.root > LARGE))
    if bad.size:
        words = f"differences grow up to {_most(c, bad):.3g} times, and eps {c.eps:g} decides by how much: keep it"
        yield _some(c, "warning", "variance is tiny and gamma is not", bad, words)


def _digits(c: Channels) -> Iterator[Finding]:
    with np.errstate(invalid="ignore"):
        far_off = (c.ratio > FAR) & (c.var >= TINY) & np.isfinite(c.mean)
        far = np.flatnonzero(far_off & (c.gamma != 0) & np.isfinite(c.gamma + c.beta))
    sure = {int(place): sure_digits(c, int(place)) for place in far}
    bad = np.array([place for place, digits in sure.items() if digits < FEW_DIGITS], np.int64)
    if bad.size:
        digits = max(min(sure[int(place)] for place in bad), 0)
        ratio = f"the mean is up to {c.ratio[bad].max():.3g} deviations from 0"
        words = f"{ratio}, so that {digits:.1f} of 7 digits are sure in inference; subtract a constant before"
        yield _some(c, "warning", "float32 loses digits", bad, words)


def _momentum(c: Channels) -> Iterator[Finding]:
    if c.momentum is not None and not 0 <= c.momentum <= 1:
        words = f"the old value weighs {c.momentum:g} and the batch {1 - c.momentum:g}; training on diverges"
        yield _all(c, "warning", f"{c.dialect.momentum_word} is not from 0 to 1", words)
    elif c.momentum == 1:
        words = "the old value weighs 1 and the batch 0; training on never changes the statistics"
        yield _all(c, "warning", f"{c.dialect.momentum_word} keeps statistics as they are", words)
    elif c.momentum is not None and c.momentum < 0.5:
        words = (
            f"the old value weighs {c.momentum:g} and the batch {1 - c.momentum:g}; other frameworks mean the reverse"
        )
        yield _all(c, "warning", f"{c.dialect.momentum_word} may have the other sense", words)


def _gamma_is_zero(c: Channels) -> Iterator[Finding]:
    bad = np.flatnonzero(c.gamma == 0)
    if bad.size:
        yield _some(c, "note", "gamma is 0", bad, "y is beta there, whatever x is")


def _lacks(c: Channels) -> Iterator[Finding]:
    if c.lacks:
        yield _all(c, "note", "the state is not whole", c.lacks)


RULES: tuple[Rule, ...] = (
    *(_not_finite, _eps, _negative, _training, _never_updated, _placeholders, _constant, _blown_up, _digits),
    *(_momentum, _gamma_is_zero, _lacks),
)


def _for_target(c: Channels, target: Dialect | None) -> Iterator[Finding]:
    if target is not None and c.eps_known and c.eps < target.least_eps:
        words = f"{c.eps:g} becomes {target.least_eps:g}"
        yield _all(c, "warning", f"eps is below the least of {target.name}", words)


def _unknown(norm: Norm) -> Finding:
    kind = "statistics cannot be told from the file"
    return Finding("warning", norm.name, kind, f"{norm.name}: {kind}: {unknown(norm)}; nothing is known of it.")


def _initial(c: Channels) -> bool:
    return bool(c.mean.size and (c.mean == 0).all() and (c.var == 1).all())


def _most(c: Channels, places: NDArray[np.int64]) -> float:
    return float((np.abs(c.gamma) * c.root)[places].max())


def _some(c: Channels, level: Level, kind: str, places: NDArray[np.int64], words: str) -> Finding:
    sentence = f"{c.name}: {kind} in {places.size} of {c.mean.size} channels: {words}."
    return Finding(level, c.name, kind, sentence, tuple(map(int, places)))


def _all(c: Channels, level: Level, kind: str, words: str) -> Finding:
    return Finding(level, c.name, kind, f"{c.name}: {kind}: {words}.")
