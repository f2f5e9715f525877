"""The number of digits that float32 keeps in inference, by the error bounds of :mod:`polybn.conformance`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from polybn.conformance.bounds import envelope
from polybn.conformance.forms import FORMATS, Channel, VacuousBoundError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from polybn.inspection.channels import Channels

    Floats = NDArray[np.float64]


def bound(x: Floats, mean: float, var: float, gamma: float, beta: float, eps: float) -> Floats:
    """Bound the errors of y in inference, computed in float32, for values ``x`` of one channel.

    Most libraries compute inference as ``x * scale + (beta - mean * scale)``, which rounds away digits of the mean;
    the bound is for these, in form T.
    """
    channel = Channel(
        x=np.abs(x),
        c=np.abs(x - mean),
        dy=np.zeros_like(x),
        length=x.size,
        mean=mean,
        variance=var,
        eps=eps,
        square=var + eps,
        root=(var + eps) ** -0.5,
        gamma=gamma,
        beta=beta,
        stored_beta=beta,
        old_mean=mean,
        old_variance=var,
        momentum=1.0,
        unbiased=False,
        training=False,
    )
    return envelope("T", channel, FORMATS["float32"])["y"]


def sure_digits(c: Channels, place: int) -> float:
    """Return how many decimal digits of y are certain, for values one standard deviation from the mean."""
    mean, var, gamma, beta = (float(values[place]) for values in (c.mean, c.var, c.gamma, c.beta))
    deviation = math.sqrt(var)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            error = float(bound(mean + np.array([-deviation, deviation]), mean, var, gamma, beta, c.eps).max())
    except VacuousBoundError:
        return 0.0
    if not error < math.inf:
        return 0.0
    return math.inf if error == 0 else -math.log10(error / (abs(gamma) * deviation * (var + c.eps) ** -0.5))
