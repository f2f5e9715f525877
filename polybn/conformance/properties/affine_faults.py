"""The usual faults of gamma and beta in y, by their formulas: 1 + gamma, gamma squared or ignored, beta left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polybn.conformance.cases import Array, Case, rows
from polybn.conformance.properties.gradient_faults import call, near, tolerance
from polybn.conformance.runner import run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

RIGHT = "gamma * xhat + beta"
PLUS_ONE = "(1 + gamma) * xhat + beta"
HINTS = {PLUS_ONE: " (if gamma is meant to be the distance from 1, pass gamma - 1)"}
"""What to do, by the wrong form, where a library may mean it."""


def said(adapter: Adapter, info: Info, *, training: bool) -> str:
    """Say of which usual wrong form the y of a call is; nothing if it is of none."""
    case = call(info)._replace(training=training)
    y, close = rows(run(adapter, info, case, gradients=False).y, 1), tolerance(case)
    found = next((form for form, wanted in forms(case).items() if near(y, wanted, close)), RIGHT)
    return "" if found == RIGHT else f"y is {found}, where it must be {RIGHT}{HINTS.get(found, '')}"


def forms(case: Case) -> dict[str, Array]:
    """Return the right y and those with a usual fault, as rows, by their formulas."""
    x = rows(case.x, 1)
    gamma, beta, mean, variance = (
        np.asarray(v, np.float64)[:, None] for v in (case.gamma, case.beta, case.running_mean, case.running_var)
    )
    if case.training:
        mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    xhat = (x - mean) / np.sqrt(variance + case.eps)
    of_product = (gamma * mean, gamma**2 * variance) if case.training else (mean, variance)
    return {
        RIGHT: gamma * xhat + beta,
        PLUS_ONE: (1 + gamma) * xhat + beta,
        "gamma^2 * xhat + beta": gamma**2 * xhat + beta,
        "abs(gamma) * xhat + beta": np.abs(gamma) * xhat + beta,
        "xhat + beta": xhat + beta,
        "gamma * xhat": gamma * xhat,
        "xhat": xhat,
        "gamma * xhat - beta": gamma * xhat - beta,
        "gamma * xhat + 2 * beta": gamma * xhat + 2 * beta,
        "gamma * (xhat + beta)": gamma * (xhat + beta),
        "beta * xhat + gamma": beta * xhat + gamma,
        "gamma[0] * xhat + beta": gamma[0] * xhat + beta,
        "gamma * x, normalized, + beta": (gamma * x - of_product[0]) / np.sqrt(of_product[1] + case.eps) + beta,
    }
