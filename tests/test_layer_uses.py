"""Uses of layers beyond a call: copies, threads, processes, recalibration, averages, frozen fine-tuning."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import polybn
from polybn.spec import DomainError, DTypeError, ShapeError

SHAPE = (7, 3, 5)
COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Draw values with another mean and scale in each channel."""
    rng = np.random.default_rng([seed, *shape])
    per_channel = (1, shape[1], *[1] * (len(shape) - 2))
    mean, scale = rng.normal(40, 30, per_channel), rng.uniform(0.01, 20, per_channel)
    return (mean + scale * rng.standard_normal(shape)).astype(np.float32)


def trained(backend: str, **options: Any) -> polybn.BatchNorm:
    layer = polybn.BatchNorm(3, backend=backend, **options)
    layer(polybn.backend(backend).asarray(draw(0)), training=True)
    return layer


def same(a: polybn.BatchNorm, b: polybn.BatchNorm) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


# Copies.


@pytest.mark.parametrize("how", COPIES)
def test_a_layer_copies_with_its_state_and_goes_its_own_way(backend: str, how: str) -> None:
    layer = trained(backend, momentum=None)
    other = COPIES[how](layer)
    assert same(layer, other)
    assert repr(layer) == repr(other)
    before, x = layer.state_dict(), polybn.backend(backend).asarray(draw(1))
    other(x, training=True)
    assert not same(layer, other)
    assert all(np.array_equal(layer.state_dict()[name], before[name]) for name in before)
    layer(x, training=True)
    assert same(layer, other)  # the counter of a cumulative average was copied, too


@pytest.mark.parametrize("how", COPIES)
def test_a_pullback_copies_and_pickles(backend: str, how: str) -> None:
    module = polybn.backend(backend)
    x, dy, gamma = (module.asarray(a) for a in (draw(0), draw(1), np.array([2, -3, 0.5], np.float32)))
    result, pullback = polybn.batch_norm_vjp(x, gamma, training=True)
    again = COPIES[how](pullback)
    for mine, other in zip(pullback(dy), again(dy), strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or np.array_equal(module.to_numpy(mine), module.to_numpy(other))
    assert np.array_equal(module.to_numpy(COPIES[how](result).y), module.to_numpy(result.y))


@pytest.mark.parametrize("error", [polybn.ShapeError, polybn.DomainError, polybn.BackendError, polybn.DTypeError])
def test_errors_pickle(error: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(error("polybn.x: must")))
    assert type(again) is error
    assert str(again) == "polybn.x: must"


# Threads and processes.


def test_eight_threads_lose_no_update() -> None:
    """Calls in threads on equal batches give the statistics of as many calls in a row, so none was lost."""
    layer, x = polybn.BatchNorm(3, momentum=0.5, track=True), draw(0, (67, 3, 5))
    layer.running_mean = np.full(3, 2.0**20, np.float32)
    barrier, calls = threading.Barrier(8), 4

    def train() -> None:
        barrier.wait()
        for _ in range(calls):
            layer(x, training=True)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(train) for _ in range(8)]:
            future.result()
    alone = polybn.BatchNorm(3, momentum=0.5)
    alone.running_mean = np.full(3, 2.0**20, np.float32)
    for _ in range(8 * calls):
        alone(x, training=True)
    assert layer.updates == 8 * calls
    assert same(layer, alone)


def _train_in_a_child(layer: polybn.BatchNorm, x: np.ndarray, results: Any) -> None:
    layer(x, training=True)
    results.put(layer.state_dict())


# An imported JAX warns at every fork, but the child does not use it.
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_forked_child_uses_a_layer_that_another_thread_holds() -> None:
    """A lock that a thread holds during a fork would never be released in the child."""
    layer, x = trained("numpy"), draw(1)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with layer._guard():
        child = context.Process(target=_train_in_a_child, args=(layer, x, results))
        child.start()
    child.join(60)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert child.exitcode == 0
    state = results.get()
    layer(x, training=True)
    assert all(np.array_equal(value, state[name]) for name, value in layer.state_dict().items())


# Statistics of many batches.


def test_recalibration_is_exact_whatever_the_parts(backend: str) -> None:
    """Uneven parts give the statistics of the whole."""
    module = polybn.backend(backend)
    whole = np.random.default_rng(3).integers(-50, 50, (64, 3, 2)).astype(np.float32)
    for cuts in ([64], [1, 63], [17, 30, 17], [5, 3, 56]):
        layer = polybn.BatchNorm(3, backend=backend)
        parts = np.split(whole, np.cumsum(cuts)[:-1])
        layer.recalibrate(module.asarray(part) for part in parts)
        state = layer.state_dict()
        mean = whole.astype(np.float64).mean(axis=(0, 2))
        variance = whole.astype(np.float64).var(axis=(0, 2))
        # A merge rounds the mean once per part, and the square of its error enters the variance.
        assert np.abs(state["running_mean"] - mean).max() <= 2.0**-22 * np.abs(whole).max()
        assert np.abs(state["running_var"] / variance - 1).max() <= 2.0**-20


def test_recalibration_takes_the_unbiased_variance_where_the_layer_does() -> None:
    layer = polybn.BatchNorm(1, running_variance="unbiased", dtype="float64")
    layer.recalibrate(np.array(part)[:, None] for part in ([1.0, 2.0], [6.0]))
    assert layer.state_dict()["running_var"].tolist() == [7.0]


def test_recalibration_without_batches_or_with_other_channels_changes_nothing() -> None:
    layer = trained("numpy")
    before = layer.state_dict()
    for batches, words in (
        ([], "one array or more; got none"),
        ([draw(0), draw(0, (7, 2, 5))], "3 channels; got shape"),
    ):
        with pytest.raises(ShapeError, match=words):
            layer.recalibrate(batches)
        assert all(np.array_equal(layer.state_dict()[name], before[name]) for name in before)


def test_momentum_none_averages_all_batches(backend: str) -> None:
    module, layer = polybn.backend(backend), polybn.BatchNorm(3, momentum=None, backend=backend)
    means = []
    for seed in range(5):
        x = draw(seed, (16, 3, 4))
        layer(module.asarray(x), training=True)
        means.append(x.astype(np.float64).mean(axis=(0, 2)))
    mean = np.mean(means, axis=0)
    # Each of five updates rounds twice, and a batch's mean once.
    assert np.abs(layer.state_dict()["running_mean"] - mean).max() <= 12 * 2.0**-24 * np.abs(means).max()
    other = polybn.BatchNorm(3, momentum=None, backend=backend)
    other.load_state_dict(layer.state_dict())
    assert other.updates == 5


def test_reset_forgets_the_data_and_keeps_the_parameters(backend: str) -> None:
    layer = trained(backend)
    layer.gamma = polybn.backend(backend).asarray(np.array([2, 3, 4], np.float32))
    layer.reset()
    state = layer.state_dict()
    assert (state["running_mean"].tolist(), state["running_var"].tolist()) == ([0, 0, 0], [1, 1, 1])
    assert state["gamma"].tolist() == [2, 3, 4]
    assert layer.updates == 0


# Layers without some of their parts.


@pytest.mark.parametrize("absent", ["scale", "shift", "track"])
def test_a_layer_without_one_of_its_parts(backend: str, absent: str) -> None:
    options: dict[str, Any] = {absent: False}
    layer, x = polybn.BatchNorm(3, backend=backend, **options), polybn.backend(backend).asarray(draw(0))
    names = {"scale": {"gamma"}, "shift": {"beta"}, "track": {"running_mean", "running_var"}}[absent]
    assert set(layer.state_dict()) == {"gamma", "beta", "running_mean", "running_var"} - names
    y, pullback = layer.vjp(x, training=True)
    assert tuple(y.shape) == SHAPE
    assert {name for name, value in pullback(x)._asdict().items() if value is None} >= names
    layer.load_state_dict(layer.state_dict())
    assert f"{absent}=False" in repr(layer)
    if absent == "track":
        with pytest.raises(DomainError, match="must be given when training=False"):
            layer(x, training=False)


def test_a_frozen_layer_learns_and_keeps_its_statistics() -> None:
    """Fine-tuning with frozen statistics differentiates inference, and updates parameters in their dtype."""
    layer, x = trained("numpy"), draw(1)
    before = layer.state_dict()
    y, pullback = layer.vjp(x, training=False)
    gradients = pullback(draw(2))
    assert layer.gamma is not None
    assert gradients.gamma is not None
    layer.gamma = layer.gamma - np.float32(0.01) * gradients.gamma
    after = layer.state_dict()
    assert np.array_equal(after["running_mean"], before["running_mean"])
    assert np.array_equal(after["running_var"], before["running_var"])
    assert not np.array_equal(layer(x, training=False), y)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"momentum": 1.5}, DomainError, "momentum must lie in"),
        ({"momentum": True}, DTypeError, "momentum must be a Python number; got True"),
        ({"eps": -1}, DomainError, "eps must be 0 or lie in"),
        ({"eps": 1e-40}, DomainError, "eps must be 0 or lie in"),
        ({"axis": "x"}, DTypeError, "axis must be one int; got 'x'"),
        ({"scale": "no"}, DTypeError, "scale must be True or False; got 'no'"),
        ({"shift": None}, DTypeError, "shift must be True or False; got None"),
        ({"track": 0}, DTypeError, "track must be True or False; got 0"),
        ({"running_variance": "pytorch"}, DomainError, "running_variance must be 'biased' or 'unbiased'"),
    ],
)
def test_options_are_checked_when_the_layer_is_made(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^polybn.BatchNorm: {words}"):
        polybn.BatchNorm(3, **options)


def test_numbers_and_dtypes_of_numpy_make_a_layer() -> None:
    layer = polybn.BatchNorm(np.int64(3), dtype=np.float32, momentum=np.float32(0.5), axis=np.int8(1))  # type: ignore[arg-type]
    assert type(layer.num_features) is int
    assert layer(draw(0), training=np.bool_(True)).dtype == np.float32  # type: ignore[arg-type]
    assert repr(polybn.BatchNorm(3, dtype=np.dtype("f8"))) == repr(polybn.BatchNorm(3, dtype="float64"))  # type: ignore[arg-type]


def test_a_state_in_another_byte_order_is_loaded() -> None:
    layer = trained("numpy")
    other = polybn.BatchNorm(3)
    other.load_state_dict(
        {name: value.astype(value.dtype.newbyteorder(">")) for name, value in layer.state_dict().items()}
    )
    assert same(layer, other)
    other(draw(0), training=False)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_a_state_with_an_impossible_variance_is_refused(value: float) -> None:
    layer = trained("numpy")
    state = layer.state_dict()
    state["running_var"][1] = value
    with pytest.raises(DomainError, match=rf"running_var must be finite and not negative; got {value} in channel 1"):
        polybn.BatchNorm(3).load_state_dict(state)


# One value per channel.


def test_training_on_one_value_warns_once_a_place_and_can_be_made_an_error() -> None:
    x = draw(0, (1, 3))
    with pytest.warns(polybn.SingleValueWarning, match="each channel has one value, so y is beta"):
        polybn.batch_norm(x, training=True)
    with pytest.warns(polybn.SingleValueWarning) as record:
        polybn.batch_norm_vjp(x, training=True)
    assert record[0].filename == __file__
