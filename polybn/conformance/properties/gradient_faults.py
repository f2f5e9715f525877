"""The usual faults of gradients, by their names: terms that are missing, means for sums, signs, results swapped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from polybn.conformance.cases import Array, Case, rows
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
NAMES = ("dx", "dgamma", "dbeta")
PLURAL = {"has": "have", "is a mean": "are means", "it must be a sum": "they must be sums", "is that": "are those"}
"""What changes in the words about a fault if several results have it."""


def said(adapter: Adapter, info: Info) -> str:
    """Say which usual faults the gradients of a call have that tells them apart; nothing if they have none."""
    dtype = next((name for name in ("float32", "float64") if name in info.dtypes), info.dtypes[0])
    shape = served.fitted(deep(info), (2, 3, 8))
    case = served.fixed_lattice(info, 1, dtype, 3, (shape[0], *shape[2:])).case
    outcome = run(adapter, info, case)
    assert outcome.dx is not None
    assert outcome.dgamma is not None
    assert outcome.dbeta is not None
    got = {"dx": rows(outcome.dx, 1), "dgamma": outcome.dgamma, "dbeta": outcome.dbeta}
    right = gradients(case)
    close = max(CLOSE, ROUNDINGS * format_of(dtype).stored)
    wrong = [name for name in NAMES if not _near(got[name], right[name], close)]
    if {"dgamma", "dbeta"} <= {*wrong} and all(
        _near(got[name], right[other], close) for name, other in (("dgamma", "dbeta"), ("dbeta", "dgamma"))
    ):
        return "dgamma and dbeta are swapped"
    found = dict[str, list[str]]()
    for name in wrong:
        for fault, faulty in faults(case, right)[name].items():
            if _near(got[name], faulty, close):
                found.setdefault(fault, []).append(name)
                break
    return ", ".join(_sentence(names, fault) for fault, names in found.items())


def faults(case: Case, right: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """Return what each gradient is with each usual fault, by the words about the fault."""
    without_eps, m = gradients(case._replace(eps=0.0)), right["dx"].shape[1]
    found = {name: {"has the opposite sign": -right[name], "is that for eps = 0": without_eps[name]} for name in NAMES}
    for name in ("dgamma", "dbeta"):
        found[name]["is a mean over the values of a channel, where it must be a sum"] = right[name] / m
    found["dx"] |= {
        "lacks the term of mean(dy)": gradients(case, mean=0)["dx"],
        "lacks the term of xhat * mean(dy * xhat)": gradients(case, product=0)["dx"],
        "lacks the terms of mean(dy) and of xhat * mean(dy * xhat)": gradients(case, mean=0, product=0)["dx"],
        "is divided by the number of values of a channel": right["dx"] / m,
    }
    return found


def gradients(case: Case, mean: int = 1, product: int = 1) -> dict[str, Array]:
    """Return the gradients of a call with the channels second, in float64, dx as rows; 0 leaves a term out."""
    x, g = rows(case.x, 1), rows(case.dy, 1)
    gamma = np.asarray(case.gamma, np.float64)[:, None]
    root = 1 / np.sqrt(x.var(axis=1, keepdims=True) + case.eps)
    xhat = (x - x.mean(axis=1, keepdims=True)) * root
    lost = mean * g.mean(axis=1, keepdims=True) + product * xhat * (g * xhat).mean(axis=1, keepdims=True)
    return {"dx": gamma * root * (g - lost), "dgamma": (g * xhat).sum(axis=1), "dbeta": g.sum(axis=1)}


def _near(got: Array, wanted: Array, close: float) -> bool:
    return bool(np.abs(got - wanted).max() <= close * np.abs(wanted).max())


def _sentence(names: list[str], fault: str) -> str:
    if len(names) > 1:
        for one, several in PLURAL.items():
            fault = fault.replace(one, several)
    return f"{' and '.join(names)} {fault}"
