"""The number of digits that float32 keeps in inference, by the error bounds of :mod:`polybn.conformance`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from polybn.conformance.bounds import envelope
from polybn.conformance.forms import FORMATS, Channel, VacuousBoundError

if TYPE_CHECKING:
    from polybn.inspection.channels import Channels


def sure_digits(c: Channels, place: int) -> float:
    """Return how many decimal digits of y are certain, for values one standard deviation from the mean.

    Most libraries compute inference as ``x * scale + (beta - mean * scale)``, which rounds away digits of the mean;
    the bound is for these, in form T.
    """
    mean, var, gamma = float(c.mean[place]), float(c.var[place]), float(c.gamma[place])
    deviation = math.sqrt(var)
    channel = Channel(
        x=np.array([abs(mean - deviation), abs(mean + deviation)]),
        c=np.full(2, deviation),
        dy=np.zeros(2),
        length=2,
        mean=mean,
        variance=var,
        eps=c.eps,
        square=var + c.eps,
        root=(var + c.eps) ** -0.5,
        gamma=gamma,
        beta=float(c.beta[place]),
        stored_beta=float(c.beta[place]),
        old_mean=mean,
        old_variance=var,
        momentum=1.0,
        unbiased=False,
        training=False,
    )
    size = abs(gamma) * deviation * channel.root
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            bound = float(envelope("T", channel, FORMATS["float32"])["y"].max())
    except VacuousBoundError:
        return 0.0
    if not bound < math.inf:
        return 0.0
    return -math.log10(bound / size) if bound > 0 else math.inf
