"""MXNet's own differentiation through ``batch_norm``: what it records, and when it writes what."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import polybn

WHY_NOT = polybn.dispatch.why_not("mxnet")
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"mxnet: {WHY_NOT}")

if WHY_NOT is None:
    import mxnet as mx

    from polybn_mxnet.batch_norm import operators_only

Array = NDArray[Any]
NAMES = ("x", "gamma", "beta", "running_mean", "running_var")
SHAPES = [(7, 3, 5, 2), (11, 13), (3, 2, 67)]


def arrays(shape: tuple[int, ...], dtype: str = "float32") -> dict[str, Array]:
    """Draw arguments whose statistics are far from 0 and 1."""
    rng, vector = np.random.default_rng([5, *shape]), shape[1:2]
    x = (30 + 7 * rng.normal(size=shape)).astype(dtype)
    wide = np.float64 if dtype == "float64" else np.float32
    given = {name: (2.5 + rng.random(vector)).astype(wide) for name in NAMES[1:]}
    return {"x": x, **given, "dy": rng.normal(size=shape).astype(dtype)}


@pytest.fixture(params=["host", "operators"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compute in each of the two forms."""
    with operators_only() if request.param == "operators" else contextlib.nullcontext():
        yield str(request.param)


def attached(host: dict[str, Array], kind: str, grad_req: str = "write") -> dict[str, Any]:
    make = mx.nd.array if kind == "nd" else mx.np.array
    given = {name: make(host[name], dtype=host[name].dtype) for name in NAMES}
    for array in given.values():
        array.attach_grad(grad_req)
    return given


def send(host: Array, kind: str) -> Any:
    return (mx.nd.array if kind == "nd" else mx.np.array)(host, dtype=host.dtype)


@pytest.mark.parametrize("kind", ["nd", "np"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_is_the_pullback(form: str, kind: str, training: bool, masked: bool, shape: tuple[int, ...]) -> None:
    host = arrays(shape)
    given = attached(host, kind)
    where = send(np.random.default_rng(0).random(shape) < 0.8, kind) if masked else None
    _, pullback = polybn.batch_norm_vjp(*given.values(), training=training, where=where)
    expected = pullback(send(host["dy"], kind))
    with mx.autograd.record():
        y = polybn.batch_norm(*given.values(), training=training, where=where).y
    assert type(y) is type(given["x"])
    y.backward(send(host["dy"], kind))
    for name, wanted in zip(NAMES, expected, strict=True):
        got = given[name].grad.asnumpy()
        assert got.any() == (wanted is not None), name
        assert wanted is None or np.array_equal(got, wanted.asnumpy()), name


def test_gradients_flow_on_into_other_operators(form: str) -> None:
    """Between MXNet's operators, ``sum(3 * batch_norm(2 * x) * dy)`` has six times the gradient at 2 x."""
    host = arrays((7, 3, 5))
    given = attached(host, "nd")
    dy = mx.nd.array(host["dy"])
    with mx.autograd.record():
        y = polybn.batch_norm(given["x"] * 2, given["gamma"], training=True).y
        (y * 3 * dy).sum().backward()
    _, pullback = polybn.batch_norm_vjp(given["x"] * 2, given["gamma"], training=True)
    assert np.array_equal(given["x"].grad.asnumpy(), 2 * pullback(3 * dy).x.asnumpy())


@pytest.mark.parametrize("null", NAMES[:3])
def test_null_leaves_the_others_written(form: str, null: str) -> None:
    """A null gradient must not end backward, as it does in ``mxnet.autograd.Function``."""
    host = arrays((7, 3, 5))
    expected = attached(host, "nd")
    given = attached(host, "nd")
    given[null].attach_grad("null")
    for some in (expected, given):
        with mx.autograd.record():
            y = polybn.batch_norm(some["x"], some["gamma"], some["beta"], training=True).y
        y.backward(mx.nd.array(host["dy"]))
    assert given.pop(null).grad is None
    for name in set(NAMES[:3]) - {null}:
        assert np.array_equal(given[name].grad.asnumpy(), expected[name].grad.asnumpy()), name


def test_add_adds(form: str) -> None:
    host = arrays((7, 3, 5))
    once, thrice = attached(host, "nd"), attached(host, "nd", "add")
    for some, times in ((once, 1), (thrice, 3)):
        for _ in range(times):
            with mx.autograd.record():
                y = polybn.batch_norm(*some.values(), training=False).y
            y.backward(mx.nd.array(host["dy"]))
    for name in NAMES:
        one = once[name].grad.asnumpy()
        assert np.array_equal(thrice[name].grad.asnumpy(), one + one + one), name


def test_backward_twice_and_the_mode_of_the_tape(form: str) -> None:
    """``training`` decides in every mode of the tape, and a retained graph may be used again."""
    host = arrays((7, 3, 5))
    given = attached(host, "nd")
    seen = []
    for train_mode in (True, False):
        with mx.autograd.record(train_mode=train_mode):
            y = polybn.batch_norm(given["x"], given["gamma"], training=True).y
        y.backward(mx.nd.array(host["dy"]), retain_graph=True, train_mode=train_mode)
        seen.append(given["x"].grad.asnumpy())
        y.backward(mx.nd.array(host["dy"]), train_mode=train_mode)
        seen.append(given["x"].grad.asnumpy())
    assert all(np.array_equal(seen[0], other) for other in seen[1:])


def test_running_statistics_change_once_and_never_in_backward(form: str) -> None:
    host = arrays((7, 3, 5))
    given = attached(host, "nd")
    alone = polybn.batch_norm(*given.values(), training=True)
    with mx.autograd.record():
        recorded = polybn.batch_norm(*given.values(), training=True)
    after_forward = [z.asnumpy() for z in recorded[1:] if z is not None]
    recorded.y.backward(mx.nd.array(host["dy"]))
    mx.nd.waitall()
    for name, before, wanted in zip(NAMES[3:], after_forward, alone[1:], strict=True):
        assert np.array_equal(getattr(recorded, name).asnumpy(), before)
        assert wanted is not None
        assert np.array_equal(before, wanted.asnumpy())
        assert not np.array_equal(before, host[name])
        assert np.array_equal(given[name].asnumpy(), host[name])


def test_what_is_written_later_does_not_reach_backward(form: str) -> None:
    """Writes to arguments after the call change no gradient, not even an update that waits for a later gradient."""
    host = arrays((32, 13, 17, 17))
    wanted, given = attached(host, "nd"), attached(host, "nd")
    for some in (wanted, given):
        with mx.autograd.record():
            y = polybn.batch_norm(some["x"], some["gamma"], some["beta"], training=True).y
        if some is given:
            for name in NAMES[:3]:
                some[name][:] = 7
        y.backward(mx.nd.array(host["dy"]))
        if some is given:
            for name in NAMES[:3]:
                some[name][:] = some[name] - 1000 * some[name].grad
    for name in NAMES[:3]:
        assert np.array_equal(given[name].grad.asnumpy(), wanted[name].grad.asnumpy()), name


def test_outside_of_record_nothing_is_recorded() -> None:
    given = attached(arrays((7, 3, 5)), "nd")
    y = polybn.batch_norm(*given.values(), training=True).y
    with pytest.raises(mx.MXNetError, match="not in a computational graph"):
        y.backward()
    with mx.autograd.record(), mx.autograd.pause():
        y = polybn.batch_norm(*given.values(), training=True).y
    with pytest.raises(mx.MXNetError, match="not in a computational graph"):
        y.backward()


def test_an_error_of_an_earlier_operator_surfaces_in_the_call() -> None:
    """MXNet reports errors late, and batch norm must not normalize the memory of a failed result."""
    bad = mx.nd.random.normal(0, -1, shape=(5, 3))  # a negative scale
    with pytest.raises(mx.MXNetError):
        polybn.batch_norm(bad, training=True)


def test_an_empty_batch_is_recorded() -> None:
    with mx.util.np_shape(True):
        x, gamma = mx.nd.zeros((0, 3)), mx.nd.ones(3)
        for array in (x, gamma):
            array.attach_grad()
        with mx.autograd.record():
            y = polybn.batch_norm(x, gamma, training=True).y
        y.backward()
        assert x.grad.shape == (0, 3)
        assert gamma.grad.asnumpy().tolist() == [0, 0, 0]
    assert not mx.util.is_np_shape()


def test_contexts_do_not_mix() -> None:
    x, gamma = mx.nd.ones((5, 3)), mx.nd.ones(3, ctx=mx.cpu(1))
    words = r"polybn.batch_norm: all arrays must be on one device; got x: cpu\(0\), gamma: cpu\(1\)"
    with pytest.raises(polybn.BackendError, match=words):
        polybn.batch_norm(x, gamma, training=True)
    y = polybn.batch_norm(x.as_in_context(mx.cpu(1)), gamma, training=True).y
    assert y.context == mx.cpu(1)


# Functions of vectors are differentiable, too.


def gradients_of(loss: Callable[..., Any], host: dict[str, Array], name: str) -> tuple[float, Array]:
    given = {key: mx.nd.array(value, dtype=value.dtype) for key, value in host.items()}
    given[name].attach_grad()
    with mx.autograd.record():
        value = loss(**given)
    value.backward()
    return float(value.asscalar()), given[name].grad.asnumpy()


def assert_differentiated(loss: Callable[..., Any], host: dict[str, Array], name: str) -> None:
    """Compare a derivative along a random direction with a central difference, in float64."""
    gradient = gradients_of(loss, host, name)[1]
    direction, step = np.random.default_rng(3).normal(size=gradient.shape), 1e-5
    above, below = (
        gradients_of(loss, host | {name: host[name] + sign * step * direction}, name)[0] for sign in (1, -1)
    )
    assert (gradient * direction).sum() == pytest.approx((above - below) / (2 * step), rel=1e-6)


@pytest.mark.clause("S15")
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("axis", [1, -1])
def test_moments_that_were_merged_are_differentiated(form: str, masked: bool, axis: int) -> None:
    host = arrays((11, 3, 7), "float64")
    rng, channels = np.random.default_rng(8), host["x"].shape[axis]
    kept = rng.random(host["x"].shape) < 0.7 if masked else np.full(host["x"].shape, True)
    weights = [mx.nd.array(rng.normal(size=channels), dtype="float64") for _ in range(2)]

    def loss(x: Any, **_: Any) -> Any:
        parts = ((x[:4], kept[:4]), (x[4:], kept[4:]))
        one, other = (polybn.moments(part, axis=axis, where=mx.nd.array(where, dtype="bool")) for part, where in parts)
        merged = polybn.merge_moments(one, other)
        return (merged.mean * weights[0]).sum() + (merged.m2 * weights[1]).sum()

    assert_differentiated(loss, {"x": host["x"]}, "x")


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_folded_norm_is_differentiated(form: str, name: str) -> None:
    host = {key: arrays((11, 3, 7), "float64")[key] for key in NAMES[1:]}
    weights = [mx.nd.array(w, dtype="float64") for w in np.random.default_rng(9).normal(size=(2, 3))]

    def loss(**given: Any) -> Any:
        folded = polybn.fold(*given.values(), eps=0.5)
        return (folded.scale * weights[0]).sum() + (folded.shift * weights[1] + given["gamma"] ** 2).sum()

    assert_differentiated(loss, host, name)


def test_a_pullback_travels(form: str) -> None:
    """Copies and pickles of a pullback give its results, whatever is written to the arguments of the call."""
    host = arrays((7, 3, 5))
    given, dy = attached(host, "nd"), mx.nd.array(host["dy"])
    _, pullback = polybn.batch_norm_vjp(*given.values(), training=True)
    right = [z.asnumpy().tobytes() for z in pullback(dy)[:3] if z is not None]
    others = [copy.deepcopy(pullback), pickle.loads(pickle.dumps(pullback))]
    given["x"][:] = 7
    for other in others:
        assert [z.asnumpy().tobytes() for z in other(dy)[:3] if z is not None] == right


def test_a_layer_travels() -> None:
    layer = polybn.BatchNorm(3, backend="mxnet")
    x = mx.nd.array(arrays((7, 3, 5))["x"])
    layer(x, training=True)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert np.array_equal(other(x, training=False).asnumpy(), layer(x, training=False).asnumpy())
