"""The usual faults of gradients, by their names: terms and factors that are wrong, means for sums, results swapped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polybn.conformance.cases import Array, Case, rows, statistics_dtype
from polybn.conformance.counts import deep
from polybn.conformance.forms import format_of
from polybn.conformance.properties import served
from polybn.conformance.runner import run

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

CLOSE = 1e-3
"""The relative difference that counts, of the largest value of a result."""
ROUNDINGS = 4
"""The roundings of a narrow dtype that may come together in a gradient."""
GAMMA, BETA = (0.5, -1.5, 3.0), (1.0, -2.0, 0.75)
"""Numbers that no fault turns into each other."""
NAMES = ("dx", "dgamma", "dbeta")
PLURAL = {"has": "have", "is a mean": "are means", "it must be": "they must be", "be a sum": "be sums",
          "is that": "are those", "is 0": "are 0"}  # fmt: skip
"""What changes in the words about a fault if several results have it."""


def call(info: Info) -> Case:
    """Make a call of three channels, in training, that tells usual faults apart."""
    dtype = next((name for name in ("float32", "float64") if name in info.dtypes), info.dtypes[0])
    shape = served.fitted(deep(info), (2, 3, 8))
    case = served.fixed_lattice(info, 1, dtype, 3, (shape[0], *shape[2:]), offset=1).case
    wide = statistics_dtype(case.x)
    return case._replace(gamma=np.asarray(GAMMA, wide), beta=np.asarray(BETA, wide))


def tolerance(case: Case) -> float:
    """Return the relative difference that counts in the dtype of a call."""
    return max(CLOSE, ROUNDINGS * format_of(case.x.dtype.name).stored)


def said(adapter: Adapter, info: Info) -> str:
    """Say which usual faults the gradients of a call have that tells them apart; nothing if they have none."""
    case = call(info)
    outcome = run(adapter, info, case)
    assert outcome.dx is not None
    assert outcome.dgamma is not None
    assert outcome.dbeta is not None
    got = {"dx": rows(outcome.dx, 1), "dgamma": outcome.dgamma, "dbeta": outcome.dbeta}
    right = gradients(case)
    close = tolerance(case)
    wrong = [name for name in NAMES if not near(got[name], right[name], close)]
    if {"dgamma", "dbeta"} <= {*wrong} and all(
        near(got[name], right[other], close) for name, other in (("dgamma", "dbeta"), ("dbeta", "dgamma"))
    ):
        return "dgamma and dbeta are swapped"
    found = dict[str, list[str]]()
    for name in wrong:
        for fault, faulty in faults(case, right)[name].items():
            if near(got[name], faulty, close):
                found.setdefault(fault, []).append(name)
                break
    return ", ".join(_sentence(names, fault) for fault, names in found.items())


def faults(case: Case, right: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """Return what each gradient is with each usual fault, by the words about the fault."""
    without_eps, m = gradients(case._replace(eps=0.0)), right["dx"].shape[1]
    x, g, gamma = rows(case.x, 1), rows(case.dy, 1), np.asarray(case.gamma, np.float64)[:, None]
    root, bare = 1 / np.sqrt(x.var(axis=1, keepdims=True) + case.eps), right["dx"] / gamma
    found = {
        name: {
            "has the opposite sign": -right[name],
            "is that for eps = 0": without_eps[name],
            "is 0 throughout": 0 * right[name],
        }
        for name in NAMES
    }
    for name in ("dgamma", "dbeta"):
        found[name]["is a mean over the values of a channel, where it must be a sum"] = right[name] / m
    found["dgamma"] |= {
        "is sum(dy * x), where it must be sum(dy * xhat)": (g * x).sum(axis=1),
        "is sum(dy * (x - mean)), where it must be sum(dy * xhat)": right["dgamma"] / root[:, 0],
        "is multiplied by gamma": right["dgamma"] * gamma[:, 0],
    }
    found["dx"] |= {
        "lacks the term of mean(dy)": gradients(case, mean=0)["dx"],
        "lacks the term of xhat * mean(dy * xhat)": gradients(case, product=0)["dx"],
        "lacks the terms of mean(dy) and of xhat * mean(dy * xhat)": gradients(case, mean=0, product=0)["dx"],
        "adds mean(dy), where it must subtract it": gradients(case, mean=-1)["dx"],
        "adds xhat * mean(dy * xhat), where it must subtract it": gradients(case, product=-1)["dx"],
        "is divided by the number of values of a channel": right["dx"] / m,
        "has the factor 1 + gamma in place of gamma": (1 + gamma) * bare,
        "lacks the factor gamma": bare,
        "has the factor gamma twice": gamma**2 * bare,
        "has the factor abs(gamma) in place of gamma": np.abs(gamma) * bare,
        "lacks the factor 1 / sqrt(variance + eps)": right["dx"] / root,
        "has the factor 1 / sqrt(variance + eps) twice": right["dx"] * root,
    }
    return found


def gradients(case: Case, mean: int = 1, product: int = 1) -> dict[str, Array]:
    """Return the gradients of a call with the channels second, in float64, dx as rows.

    ``mean`` and ``product`` are the weights of two terms: 0 leaves one out.
    """
    x, g = rows(case.x, 1), rows(case.dy, 1)
    gamma = np.asarray(case.gamma, np.float64)[:, None]
    root = 1 / np.sqrt(x.var(axis=1, keepdims=True) + case.eps)
    xhat = (x - x.mean(axis=1, keepdims=True)) * root
    lost = mean * g.mean(axis=1, keepdims=True) + product * xhat * (g * xhat).mean(axis=1, keepdims=True)
    return {"dx": gamma * root * (g - lost), "dgamma": (g * xhat).sum(axis=1), "dbeta": g.sum(axis=1)}


def near(got: Array, wanted: Array, close: float) -> bool:
    """Return whether a result is what is wanted, up to a share of the largest value."""
    return bool(np.abs(got - wanted).max() <= close * np.abs(wanted).max())


def _sentence(names: list[str], fault: str) -> str:
    if len(names) > 1:
        for one, several in PLURAL.items():
            fault = fault.replace(one, several)
    return f"{' and '.join(names)} {fault}"
