"""MXNet's second order beyond the protocol: the form for devices, the tape, memory, empty arrays and bad calls."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

import polybn
from polybn.conformance.cases import equal
from polybn.conformance.strategies import sample
from polybn.spec import Gradients
from tests.test_second_order import assert_second, random_cotangents

mxnet: Any = pytest.importorskip("polybn_mxnet.batch_norm", reason="MXNet cannot be imported", exc_type=ImportError)

from polybn_mxnet.compat import mxnet as mx  # noqa: E402


def array(host: Any, kind: str = "nd") -> Any:
    made = polybn.backend("mxnet").asarray(np.asarray(host))
    return made.as_np_ndarray() if kind == "np" else made


def call(training: bool = True, kind: str = "nd", dtype: str = "float32") -> tuple[Any, Any, Any]:
    """Return a pullback, a dy for it, and cotangents of its results."""
    case = sample(5, dtype, (7, 3, 5), training=training)
    _, pullback = polybn.batch_norm_vjp(*(array(a, kind) for a in case.arrays().values()), **case.options())
    cotangents = (None if a is None else array(a, kind) for a in random_cotangents(case, 6))
    return pullback, array(case.dy, kind), Gradients(*cotangents)


def hosts(gradients: Any) -> list[Any]:
    return [None if a is None else polybn.backend("mxnet").to_numpy(a) for a in gradients]


@pytest.mark.clause("S13")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("masked", [True, False])
def test_the_form_in_operators(training: bool, dtype: str, axis: int, masked: bool) -> None:
    """The form in MXNet's operators gives second derivatives within the bounds, too."""
    case = sample(13, dtype, (7, 3, 5), axis, training=training, kappa=8.0)
    if masked:
        case = case._replace(where=np.random.default_rng(2).random(case.x.shape) < 0.7)
    with mxnet.operators_only():
        assert_second("mxnet", case, random_cotangents(case, 13))


@pytest.mark.parametrize("kind", ["nd", "np"])
@pytest.mark.parametrize("training", [True, False])
def test_results_are_of_the_kind_of_x(kind: str, training: bool) -> None:
    pullback, dy, cotangents = call(training, kind)
    _, second = pullback.vjp(dy)
    expected = {"nd": mx.nd.NDArray, "np": mx.np.ndarray}[kind]
    results = [a for a in second(cotangents) if a is not None]
    assert len(results) == (3 if training else 5)
    assert {type(a) for a in results} == {expected}


@pytest.mark.parametrize("scope", [contextlib.nullcontext, mxnet.operators_only])
def test_nothing_is_recorded(scope: Any) -> None:
    """``record()`` changes no bit, and no result has a gradient to the arguments."""
    with scope():
        pullback, dy, cotangents = call()
    outside = hosts(pullback.vjp(dy)[1](cotangents))
    for given in (dy, cotangents.x, cotangents.gamma):
        given.attach_grad()
    with mx.autograd.record():
        results = pullback.vjp(dy)[1](cotangents)
        assert mx.autograd.is_recording()
    assert all(equal(a, b) for a, b in zip(hosts(results), outside, strict=True))
    for result in (results.dy, results.x):
        with pytest.raises(mx.MXNetError, match="Cannot differentiate node"):
            result.backward()


@pytest.mark.clause("S13")
def test_an_absent_cotangent_is_zero_beside_infinity() -> None:
    """None for the cotangent of dx gives 0, and not 0 times an infinity in dy."""
    pullback, dy, _ = call()
    dy[0, 0, 0] = np.inf
    found = hosts(pullback.vjp(dy)[1](Gradients(None, None, array(np.ones(3, np.float32)))))
    assert (found[0] == 1).all()


@pytest.mark.clause("S11")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 3, 5), (7, 0, 5), (7, 3, 0)])
def test_empty(shape: tuple[int, ...], training: bool) -> None:
    """Without values the derivatives are empty arrays and zeros."""
    x, vector = array(np.empty(shape, np.float32)), np.ones(shape[1], np.float32)
    arrays = [array(vector) for _ in range(4)]
    pullback: Any = polybn.batch_norm_vjp(x, *arrays, training=training)[1]
    first, second = pullback.vjp(x)
    found = second(Gradients(*(None if a is None else a for a in first)))
    assert found.dy.shape == found.x.shape == shape
    assert [a.shape for a in found[2:] if a is not None] == [(shape[1],)] * (1 if training else 3)
    assert not any(np.any(a) for a in hosts(found)[2:] if a is not None)


@pytest.mark.clause("S14")
def test_bad_cotangents() -> None:
    """A bad cotangent is refused before any work is done."""
    pullback, dy, cotangents = call()
    _, second = pullback.vjp(dy)
    with pytest.raises(polybn.DTypeError, match=r"cotangents must be a polybn.Gradients; got tuple"):
        second(tuple(cotangents))
    with pytest.raises(polybn.BackendError, match="the cotangent of gamma must be a plain MXNet array; got numpy"):
        second(cotangents._replace(gamma=np.ones(3, np.float32)))
    with pytest.raises(polybn.ShapeError, match=r"the cotangent of x must have shape \(7, 3, 5\); got \(7, 3\)"):
        second(cotangents._replace(x=array(np.ones((7, 3), np.float32))))
    with pytest.raises(polybn.DTypeError, match="the cotangent of beta must have dtype float32; got float64"):
        second(cotangents._replace(beta=array(np.ones(3))))
    with pytest.raises(polybn.DomainError, match="the cotangent of running_mean must be None; got shape"):
        second(cotangents._replace(running_mean=array(np.ones(3, np.float32))))
