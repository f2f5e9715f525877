"""Compare the results of a batch norm with the exact ones: each error with its own bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn.conformance import bounds, forms
from polybn.conformance.cases import Case, Outcome
from polybn.conformance.channels import Measured, measure
from polybn.conformance.forms import Form
from polybn.conformance.words import listed

Floats = NDArray[np.float64]


class Certificate(NamedTuple):
    """Proof that an outcome lies within the envelope."""

    ratio: float
    """The largest error, as a share of its bound."""
    y: Floats
    """The bounds on ``y``, as channel rows; 0 in deleted places."""
    dx: Floats
    """The bounds on ``dx``, as channel rows; 0 in deleted places."""


def certify(
    case: Case,
    outcome: Outcome,
    *,
    form: Form = "K",
    dtype: str | None = None,
    arithmetic: str | None = None,
    flushes: bool = False,
    additions: int | None = None,
) -> Certificate:
    """Check that every error of an outcome lies within its bound for a form; AssertionError if one does not.

    Results that the outcome lacks are left out. ``dtype`` and ``arithmetic`` say which roundings count, by default
    those of ``case.x``; ``additions`` is the longest chain of additions in a sum, by default the form's. A bound that
    certifies nothing is a VacuousBoundError.

    Examples
    --------
    >>> import numpy as np
    >>> from polybn.conformance.cases import Case, Outcome
    >>> x, one = np.float32([[-3], [-1], [1], [3]]), np.ones(1, np.float32)
    >>> case = Case(x, one, one, None, None, x, eps=11.0)
    >>> certify(case, Outcome(x / 4 + 1)).ratio < 1
    True
    >>> certify(case, Outcome(x / 4))
    Traceback (most recent call last):
    AssertionError: y of channel 0: value 1 is -0.25; its error 1 is 2.46e+06 times its bound 4.06e-07
    """
    f = forms.format_of(dtype or case.x.dtype.name, arithmetic=arithmetic, flushes=flushes)
    count = case.x.size // max(case.x.shape[case.axis], 1)
    y, dx = (np.zeros((case.x.shape[case.axis], count)) for _ in range(2))
    worst = 0.0
    for measured in measure(case, outcome):
        limits = bounds.envelope(form, measured.channel, f, additions)
        y[measured.place, measured.kept] = limits["y"]
        dx[measured.place, measured.kept] = np.ldexp(limits["dx"], -measured.channel.exponent)
        worst = max(worst, _hold(measured, limits))
    return Certificate(worst, y, dx)


def shares(errors: Floats, limits: Floats) -> Floats:
    """Return errors as shares of their bounds: 0 for no error; infinite for an error where the bound is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found: Floats = np.where(errors == 0, 0.0, errors / limits)
    return found


def _hold(measured: Measured, limits: Mapping[str, Floats]) -> float:
    """Return the largest share of a channel; AssertionError with the names of all results that leave their bounds."""
    found = {name: shares(errors, limits[name]) for name, errors in measured.errors.items()}
    wrong = [name for name in Outcome._fields if name in found and not found[name].max() <= 1]
    if not wrong:
        return float(max(share.max() for share in found.values()))
    first, *others = wrong
    worst = int(np.argmax(found[first]))
    # Which results are wrong together tells much about the cause.
    more = f"; {listed(others)} {'is' if len(others) == 1 else 'are'} out of bounds, too" if others else ""
    raise AssertionError(
        f"{first} of channel {measured.place}: value {worst} is {float(measured.got[first][worst])!r}; its error "
        f"{measured.errors[first][worst]:.3g} is {found[first][worst]:.3g} times its bound "
        f"{limits[first][worst]:.3g}{more}"
    )
