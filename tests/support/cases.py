"""Additions to the conformance kit for the tests of the contract: outcomes with gradients, bounds on statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import polybn
from polybn.conformance import bounds, cases, forms
from polybn.conformance.bounds import SAFETY, Errors
from polybn.conformance.cases import Array, Case, equal
from polybn.conformance.channels import measure
from polybn.conformance.forms import FORMATS

if TYPE_CHECKING:
    from polybn.spec import Backend


class Outcome(cases.Outcome):
    """The results of a call with its gradients, which every backend has."""

    dx: Array


def run(backend: Backend, case: Case) -> Outcome:
    """Make a call and its pullback on a backend."""
    arrays = {name: None if value is None else backend.asarray(value) for name, value in case.arrays().items()}
    where = None if case.where is None else backend.asarray(case.where)
    result, pullback = polybn.batch_norm_vjp(*arrays.values(), **case.options(), where=where)
    gradients = pullback(backend.asarray(case.dy))
    return Outcome._make(None if value is None else backend.to_numpy(value) for value in (*result, *gradients))


def assert_others_equal(got: Outcome, base: Outcome, channel: int) -> None:
    """Return whether all channels except one are equal bit by bit; the channel axis is 1."""
    for name, a in got._asdict().items():
        whole = getattr(base, name)
        if a is not None:
            axis = 1 if a.ndim > 1 else 0
            assert equal(np.delete(a, channel, axis), np.delete(whole, channel, axis)), name


def errors(case: Case) -> list[Errors]:
    """Bound the statistics and normalized values of each channel (S2); raise if a bound certifies nothing."""
    found, f = [], FORMATS[case.x.dtype.name]
    for _, _, ch, _, _ in measure(case, cases.Outcome(np.zeros_like(case.x))):
        e = bounds.normalized("K", ch, f, forms.additions("K", ch.m, ch.length))
        found.append(Errors(SAFETY * e.mean, SAFETY * e.variance, SAFETY * e.root, SAFETY * e.xhat, e.size, e.h))
    return found
