"""The Gluon block: the bits of the function in every mode of Gluon, and the behaviour that Gluon's users expect."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from polybn.spec import DomainError, DTypeError, ShapeError
from tests.conftest import REASONS

if REASONS["mxnet"] is not None:
    pytest.skip(f"mxnet: {REASONS['mxnet']}", allow_module_level=True)

import polybn
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.gluon import BatchNorm

nn, autograd = mx.gluon.nn, mx.autograd
NAMES = ("gamma", "beta", "running_mean", "running_var")
MODES: dict[str, dict[str, bool]] = {
    "imperative": {},
    "hybrid": {"active": True},
    "static": {"active": True, "static_alloc": True, "static_shape": True},
}
each_mode = pytest.mark.parametrize("mode", MODES)
each_kind = pytest.mark.parametrize("kind", ["nd", "np"])

SHAPES = {(5, 3, 7, 2): 1, (11, 3): 1, (2, 5, 3): -1, (13, 2, 1): 0}


@contextlib.contextmanager
def arrays_of(kind: str) -> Iterator[None]:
    """Let Gluon work with one of MXNet's two kinds of arrays."""
    with mx.util.np_shape(kind == "np"), mx.util.np_array(kind == "np"):
        yield


def array(host: NDArray[Any], kind: str = "nd") -> Any:
    return (mx.np if kind == "np" else mx.nd).array(host, dtype=host.dtype)


def draw(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> NDArray[Any]:
    """Draw values far from 0 whose scale is far from 1."""
    return (300 + 40 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def state_of(channels: int, dtype: str = "float32", seed: int = 1) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    values = (rng.normal(1, 0.5, channels), rng.normal(2, 3, channels), rng.normal(290, 9, channels),
              rng.uniform(900, 2000, channels))  # fmt: skip
    return {name: value.astype(dtype) for name, value in zip(NAMES, values, strict=True)}


def block_with(state: dict[str, NDArray[Any]], mode: str = "imperative", kind: str = "nd", **options: Any) -> Any:
    block = BatchNorm(in_channels=len(state["gamma"]), **options)
    block.initialize()
    block.cast(state["gamma"].dtype)
    put(block, state, kind)
    block.hybridize(**MODES[mode]) if MODES[mode] else None
    return block


def put(block: Any, state: dict[str, NDArray[Any]], kind: str = "nd") -> None:
    for name, value in state.items():
        getattr(block, name).set_data(array(value, kind))


def contents(block: Any) -> dict[str, bytes]:
    return {name: getattr(block, name).data().asnumpy().tobytes() for name in NAMES}


def bits(*arrays: Any) -> list[bytes]:
    return [value.asnumpy().tobytes() for value in arrays]


def backward(block: Any, x: Any, dy: Any, **recording: bool) -> Any:
    x.attach_grad()
    with autograd.record(**recording):
        y = block(x)
    y.backward(dy)
    return y


# The results: those of the function.


@each_mode
@each_kind
@pytest.mark.parametrize(("shape", "axis"), SHAPES.items(), ids=str)
@pytest.mark.parametrize("train_mode", [True, False])
@pytest.mark.clause("S3", "S4", "S5", "S13")
def test_the_bits_of_the_function(mode: str, kind: str, shape: tuple[int, ...], axis: int, train_mode: bool) -> None:
    """Output, gradients and running statistics are right in both modes of ``record``, twice in a row."""
    state = state_of(shape[axis])
    with arrays_of(kind):
        block = block_with(state, mode, kind, axis=axis, momentum=0.75, epsilon=1e-3)
        given = [array(value, kind) for value in state.values()]
        for seed in (5, 6):
            x, dy = (array(draw(shape, seed=seed + i), kind) for i in (0, 10))
            result, pullback = polybn.batch_norm_vjp(x, *given, training=train_mode, momentum=0.75, eps=1e-3, axis=axis)
            y = backward(block, x, dy, train_mode=train_mode)
            gradients = pullback(dy)
            assert type(y) is type(x)
            assert bits(y) == bits(result.y)
            assert bits(x.grad, block.gamma.grad(), block.beta.grad()) == bits(*gradients[:3])
            assert bits(block.running_mean.data(), block.running_var.data()) == bits(*result[1:])
            given[2:] = result[1:]


@each_mode
@pytest.mark.parametrize(("dtype", "inner"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")])
@pytest.mark.clause("S6")
def test_cast(mode: str, dtype: str, inner: str) -> None:
    """Parameters and statistics keep float32 for float16 input, as in Gluon's own block."""
    block = BatchNorm()
    block.initialize()
    block.cast(dtype)
    if MODES[mode]:
        block.hybridize(**MODES[mode])
    host = draw((7, 3, 5), dtype)
    x, dy = array(host), array((draw(host.shape, dtype, 3) / 300 - 1).astype(dtype))
    y = backward(block, x, dy)
    fresh = (np.full(3, value, inner) for value in (1, 0, 0, 1))
    result, pullback = polybn.batch_norm_vjp(x, *map(array, fresh), training=True)
    assert {np.dtype(getattr(block, name).data().dtype).name for name in NAMES} == {inner}
    assert np.dtype(y.dtype).name == dtype
    assert bits(y, x.grad, block.gamma.grad()) == bits(result.y, *pullback(dy)[:2])


@each_mode
@pytest.mark.parametrize(("scale", "center"), [(False, True), (True, False), (False, False)])
def test_without_gamma_or_beta(mode: str, scale: bool, center: bool) -> None:
    """An omitted parameter is not used, trained or overwritten, although Gluon's own block sets gamma to 1."""
    state = state_of(3)
    block = block_with(state, mode, scale=scale, center=center)
    x, dy = array(draw((5, 3, 7))), array(draw((5, 3, 7), seed=8))
    given = {name: array(value) for name, value in state.items()}
    given |= {name: None for name, kept in (("gamma", scale), ("beta", center)) if not kept}
    result, pullback = polybn.batch_norm_vjp(x, **given, training=True)
    trainer = mx.gluon.Trainer(block.collect_params(), "sgd", {"learning_rate": 0.5, "wd": 0.1})
    y = backward(block, x, dy)
    trainer.step(1)
    assert bits(y, x.grad) == bits(result.y, pullback(dy).x)
    after = contents(block)
    assert (after["gamma"] == state["gamma"].tobytes()) is not scale
    assert (after["beta"] == state["beta"].tobytes()) is not center


@each_mode
def test_unbiased_running_variance(mode: str) -> None:
    state = state_of(3)
    block = block_with(state, mode, running_variance="unbiased")
    x = array(draw((2, 3)))
    result = polybn.batch_norm(x, *map(array, state.values()), training=True, running_variance="unbiased")
    backward(block, x, x)
    assert bits(block.running_var.data()) == bits(result.running_var)


# When running statistics change.


@each_mode
@pytest.mark.clause("S4", "S7")
def test_statistics_change_once_in_each_forward_of_training_and_never_in_backward(mode: str) -> None:
    block = block_with(state_of(3), mode)
    x = array(draw((5, 3, 2)))
    x.attach_grad()
    seen = [contents(block)]

    def look() -> None:
        mx.nd.waitall()
        seen.append(contents(block))

    for _ in range(2):
        with autograd.record():
            y = block(x)
        look()
        y.backward(x, retain_graph=True)
        look()
        y.backward(x)
        look()
    assert len({tuple(state.items()) for state in seen}) == 3
    assert seen[1] == seen[2] == seen[3] != seen[0]
    assert seen[4] == seen[5] == seen[6] != seen[3]


@each_mode
@pytest.mark.clause("S5", "S7")
def test_prediction_changes_nothing(mode: str) -> None:
    state = state_of(3)
    block, frozen = block_with(state, mode), block_with(state, mode, use_global_stats=True)
    x = array(draw((5, 3, 2)))
    right = bits(polybn.batch_norm(x, *map(array, state.values()), training=False).y)
    assert bits(block(x)) == right
    with autograd.record(train_mode=False):
        recorded = block(x)
    recorded.backward()
    with autograd.record():
        in_training = frozen(x)
    in_training.backward()
    assert bits(recorded) == bits(in_training) == right
    assert contents(block) == contents(frozen) == {name: value.tobytes() for name, value in state.items()}


@each_mode
def test_training_without_a_record_counts_as_training(mode: str) -> None:
    state = state_of(3)
    block = block_with(state, mode)
    x = array(draw((5, 3, 2)))
    with autograd.train_mode():
        y = block(x)
    assert bits(y) == bits(polybn.batch_norm(x, *map(array, state.values()), training=True).y)
    assert contents(block)["running_mean"] != state["running_mean"].tobytes()


@each_mode
def test_two_forwards_before_their_backwards(mode: str) -> None:
    """Each backward pass uses its own forward pass."""
    state = state_of(3)
    block = block_with(state, mode)
    xs = [array(draw((5, 3, 2), seed=seed)) for seed in (1, 2)]
    dy = array(draw((5, 3, 2), seed=3))
    for x in xs:
        x.attach_grad()
    with autograd.record():
        ys = [block(x) for x in xs]
    autograd.backward(ys, [dy, dy])
    gamma, beta = array(state["gamma"]), array(state["beta"])
    right = [polybn.batch_norm_vjp(x, gamma, beta, training=True)[1](dy).x for x in xs]
    assert bits(*(x.grad for x in xs)) == bits(*right)


# grad_req.


@each_mode
def test_gradients_are_added_where_asked(mode: str) -> None:
    block = block_with(state_of(3), mode)
    x, dy = (array(draw((5, 3, 2), seed=seed)) for seed in (0, 4))
    backward(block, x, dy)
    once = {name: getattr(block, name).grad().asnumpy() for name in ("gamma", "beta")}
    block.collect_params(".*(gamma|beta)").setattr("grad_req", "add")
    for name in once:
        getattr(block, name).zero_grad()
    for _ in range(3):
        backward(block, x, dy)
    for name, value in once.items():
        assert (getattr(block, name).grad().asnumpy() == (value + value) + value).all()


@each_mode
@pytest.mark.parametrize("frozen", ["gamma", "beta"])
def test_a_frozen_parameter_leaves_the_other_gradients_alone(mode: str, frozen: str) -> None:
    state = state_of(3)
    block = block_with(state, mode)
    getattr(block, frozen).grad_req = "null"
    x, dy = (array(draw((5, 3, 2), seed=seed)) for seed in (0, 4))
    backward(block, x, dy)
    right = polybn.batch_norm_vjp(x, *map(array, state.values()), training=True)[1](dy)
    other = "beta" if frozen == "gamma" else "gamma"
    assert bits(x.grad, getattr(block, other).grad()) == bits(right.x, getattr(right, other))


# Within networks.


def network(norm: Callable[[], Any], container: Any) -> Any:
    net = container()
    net.add(nn.Conv2D(5, 3), norm(), nn.Activation("relu"), nn.MaxPool2D(2, 2), nn.Dense(7), norm(), nn.Dense(3))
    mx.random.seed(11)
    net.initialize(mx.init.Xavier())
    return net


@pytest.mark.parametrize("container", [nn.Sequential, nn.HybridSequential])
def test_deferred_initialization(container: Any) -> None:
    net = network(BatchNorm, container)
    net(array(draw((2, 3, 8, 8))))
    assert [net[place].gamma.shape for place in (1, 5)] == [(5,), (7,)]
    assert [net[place].running_var.shape for place in (1, 5)] == [(5,), (7,)]
    last = BatchNorm(axis=-1)
    last.initialize()
    last(array(draw((2, 3, 8))))
    assert last.gamma.shape == (8,)


def test_hybridized_training_has_the_bits_of_imperative_training() -> None:
    """Four steps, the last on fewer images, give equal statistics and an equal prediction."""
    results = []
    for mode in MODES:
        net = network(BatchNorm, nn.HybridSequential)
        if MODES[mode]:
            net.hybridize(**MODES[mode])
        trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
        for step, n in enumerate((4, 4, 4, 3)):
            x = array(draw((n, 3, 8, 8), seed=step) / 300)
            with autograd.record():
                loss = net(x).square()
            loss.backward()
            trainer.step(n)
        prediction = net(array(draw((4, 3, 8, 8)) / 300)).asnumpy().tobytes()
        results.append([*bits(*(parameter.data() for parameter in net.collect_params().values())), prediction])
    assert results[0] == results[1] == results[2]


@pytest.mark.filterwarnings("ignore:Cannot decide type")  # for every network, until its first call
def test_an_exported_network_runs_where_the_module_is_imported(tmp_path: Path) -> None:
    net = network(lambda: BatchNorm(momentum=0.5, epsilon=1e-2), nn.HybridSequential)
    net.hybridize()
    x = array(draw((4, 3, 8, 8)) / 300)
    with autograd.record():
        net(x)
    right = bits(net(x))
    net.export(str(tmp_path / "net"))
    loaded = mx.gluon.SymbolBlock.imports(
        str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params")
    )
    assert bits(loaded(x)) == right


# Files.


@each_kind
@pytest.mark.parametrize("ours_first", [True, False], ids=["from ours", "to ours"])
def test_parameters_travel_between_this_block_and_that_of_gluon(kind: str, ours_first: bool, tmp_path: Path) -> None:
    with arrays_of(kind):
        source, target = (
            network(norm, nn.HybridSequential) for norm in ((BatchNorm, nn.BatchNorm)[:: 1 if ours_first else -1])
        )
        x = array(draw((4, 3, 8, 8)) / 300, kind)
        with autograd.record():
            y = source(x)
        y.backward()  # Gluon's own block updates its statistics only now
        source.save_parameters(str(tmp_path / "net.params"))
        target.load_parameters(str(tmp_path / "net.params"))
        for place in (1, 5):
            assert contents(source[place]) == contents(target[place])
            assert len(set(source[place].running_mean.data().asnumpy().tolist())) > 4
        assert list(source._collect_params_with_prefix()) == list(target._collect_params_with_prefix())


def test_parameters_have_the_full_names_that_gluon_gives() -> None:
    """The full names matter, because exported files and optimizers use them."""
    ours, own = (list(make(in_channels=2, prefix="norm_").collect_params()) for make in (BatchNorm, nn.BatchNorm))
    assert ours == own == [f"norm_{name}" for name in NAMES]


# Faults.


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"momentum": 1.5}, DomainError, r"momentum must lie in \[0, 1\]; got 1\.5 "),
        ({"momentum": "0.9"}, DTypeError, "momentum must be a Python number; got '0.9' "),
        ({"epsilon": -1e-5}, DomainError, "eps must be 0 or lie in "),
        ({"running_variance": "sample"}, DomainError, "running_variance must be 'biased' or 'unbiased'; got 'sample' "),
    ],
)
def test_options_are_checked_when_the_block_is_made(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=rf"^polybn\.gluon\.BatchNorm: {words}"):
        BatchNorm(**options)


@each_mode
@pytest.mark.parametrize(
    ("x", "options", "error", "words"),
    [
        (np.ones(3, np.float32), {}, ShapeError, r"x must have rank 2 or more, \(N, C, \.\.\.\); got rank 1, "),
        (np.ones((2, 3), np.int32), {}, DTypeError, "x must have one of the dtypes .*; got int32 "),
        (np.ones((2, 3), np.float32), {"axis": 2}, ShapeError, r"axis must lie in \[-2, 2\); got 2 "),
    ],
)
def test_inputs_are_checked_before_channels_are_counted(
    mode: str, x: NDArray[Any], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    block = BatchNorm(**options)
    block.initialize()
    if MODES[mode]:
        block.hybridize(**MODES[mode])
    with pytest.raises(error, match=rf"^polybn\.gluon\.BatchNorm: {words}"):
        block(array(x))


def test_a_hybridized_block_prints_the_words_of_an_error_that_only_values_show(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The message is printed, because MXNet runs the operator in another thread and reports only that it failed."""
    state = state_of(3)
    state["running_var"][1] = -4
    words = "running_var must be finite and not negative in inference; got -4.0 in channel 1 (1 bad channel"
    x = array(draw((5, 3)))
    with pytest.raises(DomainError) as caught:
        block_with(state)(x)
    assert words in str(caught.value)
    with pytest.raises(mx.base.MXNetError):
        block_with(state, "hybrid")(x).asnumpy()
    assert words in "".join(capfd.readouterr())


def test_a_block_says_what_it_is() -> None:
    text = (
        "BatchNorm(scale=True, center=True, use_global_stats=False, axis=1, momentum=0.9, eps=1e-05, running_variance="
    )
    assert repr(BatchNorm()) == f"{text}'biased', in_channels=None)"
    assert repr(BatchNorm(in_channels=4)) == f"{text}'biased', in_channels=4)"
