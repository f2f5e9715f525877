"""The layer has the bits of the functions, and never changes by half."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import polybn
from polybn import dispatch
from polybn.spec import BackendError, DomainError, DTypeError, ShapeError

NAMES = ("gamma", "beta", "running_mean", "running_var")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.25, "eps": 0.5},
    {"axis": -1},
    {"running_variance": "unbiased"},
    {"dtype": "float64", "eps": 0, "momentum": 1},
]


def draws(
    seed: int, options: Mapping[str, Any], channels: int = 3
) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    """Draw x, where and a state that fit a layer with the given options."""
    rng = np.random.default_rng(seed)
    shape = (7, 5, channels) if options.get("axis") == -1 else (7, channels, 5)
    dtype = options.get("dtype", "float32")
    x = (rng.standard_normal(shape) * 3 + 10).astype(dtype)
    return x, rng.random(shape) < 0.8, {name: (rng.random(channels) + 0.5).astype(dtype) for name in NAMES}


def bits(state: Mapping[str, NDArray[Any]]) -> dict[str, tuple[str, bytes]]:
    return {name: (str(value.dtype), value.tobytes()) for name, value in state.items()}


@pytest.mark.clause("S3", "S4", "S5", "S7")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_does_what_the_functions_do(backend: str, options: dict[str, Any], masked: bool) -> None:
    module = polybn.backend(backend)
    layer = polybn.BatchNorm(3, backend=backend, **options)
    _, _, state = draws(0, options)
    layer.load_state_dict(state)
    functional = {name: value for name, value in options.items() if name != "dtype"}
    for step, training in enumerate((True, True, False, True, False)):
        host, where, _ = draws(step + 1, options)
        x, mask = module.asarray(host), module.asarray(where) if masked else None
        own = {name: module.asarray(value) for name, value in state.items()}
        expected, pullback = polybn.batch_norm_vjp(x, **own, training=training, where=mask, **functional)
        if step % 2:
            y, pull = layer.vjp(x, training=training, where=mask)
            for left, right in zip(pull(x), pullback(x), strict=True):
                assert (left is None) == (right is None)
                assert left is None or module.to_numpy(left).tobytes() == module.to_numpy(right).tobytes()
        else:
            y = layer(x, training=training, where=mask)
        assert module.to_numpy(y).tobytes() == module.to_numpy(expected.y).tobytes()
        state |= {name: module.to_numpy(getattr(expected, name)) for name in ("running_mean", "running_var")}
        assert bits(layer.state_dict()) == bits(state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_new_layer_is_the_identity_of_inference(backend: str, dtype: str) -> None:
    state = polybn.BatchNorm(3, backend=backend, dtype=dtype).state_dict()
    assert list(state) == list(NAMES)
    assert {name: value.tolist() for name, value in state.items()} == {
        "gamma": [1, 1, 1], "beta": [0, 0, 0], "running_mean": [0, 0, 0], "running_var": [1, 1, 1],
    }  # fmt: skip
    assert {str(value.dtype) for value in state.values()} == {dtype}
    module = polybn.backend(backend)
    x = np.random.default_rng(0).standard_normal((7, 3)).astype(dtype)
    layer = polybn.BatchNorm(3, backend=backend, dtype=dtype, eps=0)
    assert np.array_equal(module.to_numpy(layer(module.asarray(x), training=False)), x)


@pytest.mark.clause("S5")
def test_inference_leaves_the_statistics_alone(backend: str) -> None:
    module = polybn.backend(backend)
    layer = polybn.BatchNorm(3, backend=backend)
    before = bits(layer.state_dict())
    x = module.asarray(draws(0, {})[0])
    layer(x, training=False)
    layer.vjp(x, training=False)[1](x)
    assert bits(layer.state_dict()) == before
    layer(x, training=True)
    assert bits(layer.state_dict()) != before


@pytest.mark.clause("S7")
def test_a_layer_replaces_its_statistics_and_writes_into_none() -> None:
    layer = polybn.BatchNorm(3)
    mine = {name: getattr(layer, name) for name in NAMES}
    before = bits(mine)
    layer(draws(0, {})[0], training=True)
    assert bits(mine) == before
    assert layer.gamma is mine["gamma"]
    assert layer.running_mean is not mine["running_mean"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_state_goes_round(backend: str, dtype: str) -> None:
    _, _, state = draws(0, {"dtype": dtype})
    state["running_mean"][0], state["running_var"][1] = -0.0, np.finfo(dtype).smallest_subnormal
    first, second = (polybn.BatchNorm(3, backend=backend, dtype=dtype) for _ in range(2))
    first.load_state_dict(state)
    assert bits(first.state_dict()) == bits(state)
    second.load_state_dict(first.state_dict())
    assert bits(second.state_dict()) == bits(state)


def test_a_state_shares_no_memory_with_the_layer() -> None:
    _, _, state = draws(0, {})
    layer = polybn.BatchNorm(3)
    layer.load_state_dict(state)
    loaded, out = bits(layer.state_dict()), layer.state_dict()
    for values in (state, out):
        for value in values.values():
            value[...] = 99
    assert bits(layer.state_dict()) == loaded


def spoilt(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (draws(1, {})[2] | changes).items() if value is not None}


RULE = "state must have the names gamma, beta, running_mean, running_var"
BAD_STATES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "missing": (spoilt(gamma=None), DomainError, f"{RULE}; got beta, running_mean, running_var (nothing was loaded)"),
    "unknown": (spoilt(weight=np.ones(3)), DomainError,
                f"{RULE}; got beta, gamma, running_mean, running_var, weight "
                "(weight is gamma here; nothing was loaded)"),
    "empty": ({}, DomainError, f"{RULE}; got none (nothing was loaded)"),
    "shape": (spoilt(running_var=np.ones(4, "f4")), ShapeError,
              "running_var must have shape (3,); got (4,) (num_features fixes it; nothing was loaded)"),
    "rank": (spoilt(running_mean=np.ones((3, 1), "f4")), ShapeError,
             "running_mean must have shape (3,); got (3, 1) (num_features fixes it; nothing was loaded)"),
    "dtype": (spoilt(running_var=np.ones(3)), DTypeError,
              "running_var must have dtype float32; got float64 (the layer's dtype; nothing was loaded)"),
    "list": (spoilt(running_var=[1.0, 1.0, 1.0]), DTypeError,
             "running_var must be a NumPy array; got list (as state_dict returns; nothing was loaded)"),
}  # fmt: skip


@pytest.mark.clause("S7", "S14")
@pytest.mark.parametrize("bad", BAD_STATES)
def test_a_bad_state_is_refused_whole(backend: str, bad: str) -> None:
    state, error, words = BAD_STATES[bad]
    layer = polybn.BatchNorm(3, backend=backend)
    held = {name: getattr(layer, name) for name in NAMES}
    with pytest.raises(error) as info:
        layer.load_state_dict(state)
    assert type(info.value) is error
    assert str(info.value) == f"polybn.BatchNorm.load_state_dict: {words}"
    assert all(getattr(layer, name) is value for name, value in held.items())


def test_a_device_that_fails_half_way_leaves_the_layer_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = polybn.BatchNorm(3)
    before = bits(layer.state_dict())
    real, calls = polybn.backend("numpy").asarray, 0

    def failing(array: NDArray[Any], /) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MemoryError("device memory is full")
        return real(array)

    monkeypatch.setattr(polybn.backend("numpy"), "asarray", failing)
    with pytest.raises(MemoryError, match="device memory is full"):
        layer.load_state_dict(draws(0, {})[2])
    assert bits(layer.state_dict()) == before


BAD_LAYERS: list[tuple[dict[str, Any], type[Exception], str]] = [
    *(({"num_features": number}, ShapeError,
       f"polybn.BatchNorm: num_features must be an int of 0 or more; got {number!r} (the number of channels)")
      for number in (-1, 1.5, True, "3", None, (3,))),
    *(({"dtype": dtype}, DTypeError, f"polybn.BatchNorm: dtype must be 'float32' or 'float64'; got {dtype!r} "
       "(of the statistics: half types only store values)")
      for dtype in ("float16", "f4", None, np.float16, ["float32"])),
    ({"backend": "tensorflow"}, BackendError, f"polybn.backend: name must be one of {', '.join(dispatch._names())}; "
     "got 'tensorflow' "
     "(a package adds one by an entry point in the group 'polybn.backends')"),
]  # fmt: skip


@pytest.mark.clause("S14")
@pytest.mark.parametrize(("arguments", "error", "words"), BAD_LAYERS, ids=lambda value: str(value)[:40])
def test_a_layer_that_cannot_be_is_refused(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as info:
        polybn.BatchNorm(**{"num_features": 3} | arguments)
    assert type(info.value) is error
    assert str(info.value) == words


def test_a_layer_without_channels_works(backend: str) -> None:
    module = polybn.backend(backend)
    layer = polybn.BatchNorm(0, backend=backend)
    assert tuple(layer(module.asarray(np.zeros((7, 0, 5), "f4")), training=True).shape) == (7, 0, 5)
    assert layer.running_var is not None
    assert math.prod(layer.running_var.shape) == 0


def test_a_layer_shows_how_it_was_made() -> None:
    layer = polybn.BatchNorm(3, momentum=0.5, eps=0.25, axis=-1, running_variance="unbiased")
    shown = "BatchNorm(3, momentum=0.5, eps=0.25, axis=-1, running_variance='unbiased', backend='numpy')"
    assert repr(layer) == shown
    assert repr(eval(shown, {"BatchNorm": polybn.BatchNorm})) == shown
