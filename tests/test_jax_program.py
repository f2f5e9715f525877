"""What only the JAX program can get wrong: stretches of steps, pools inside batch norm, its range, and Flax's own."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from polybn import dispatch
from polybn.lenet import networks
from polybn.lenet.networks import BatchNorm, Convolution, Dense, MaxPool, Network, Sigmoid
from polybn.lenet.program import compile
from polybn.spec import BackendError, traits_of
from tests.support import reference_lenet as reference
from tests.support.reference_lenet import Named
from tests.support.training_worker import slice_of_sample
from tests.test_program import SPEC, Sample, bits, check, compiled, exact_step, program_step, sample

jax = pytest.importorskip("jax")

BN_POOL = Network((1, 6, 6), (Convolution(3, 3), BatchNorm(), MaxPool(2), Sigmoid(), Dense(3)))


def losses_of(backend: str, network: Network, steps: int, learning_rate: float) -> Any:
    data = slice_of_sample(50 * 32, 1)
    program = compile(network, dispatch.backend(backend), networks.initial_state(network, 0), batch_size=32)
    placed = program.place(data.train_images, data.train_labels)
    order = networks.epoch_order(0, 1, len(data.train_labels))[: steps * 32]
    return np.concatenate([report.losses for report in program.train_epoch(placed, order, learning_rate=learning_rate)])


@pytest.mark.parametrize("norm", ["spec", None])
def test_the_first_fifty_losses_are_those_of_numpy(norm: Any) -> None:
    """At a rate at which training does not amplify rounding: at 1, NumPy itself, nudged by 2 units, is 0.05 off."""
    network = networks.lenet(norm)
    difference = abs(losses_of("jax", network, 50, 0.02) - losses_of("numpy", network, 50, 0.02))
    assert len(difference) == 50
    assert max(difference) <= 1e-3
    assert difference[0] <= 1e-6


# Stretches.


@pytest.mark.parametrize(("images", "stretches"), [(8 * 4, [4]), (8 * 23 + 3, [1] * 24), (8 * 26, [13, 13]), (5, [1])])
def test_stretches_cover_the_epoch(images: int, stretches: list[int]) -> None:
    network = Network((1, 2, 2), (Dense(3),))
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (images, 1, 2, 2), np.uint8), rng.integers(0, 3, images, np.uint8)
    program = compile(network, dispatch.backend("jax"), networks.initial_state(network, 0), batch_size=8)
    reports = list(program.train_epoch(program.place(*data), np.arange(images), learning_rate=0.1))
    assert [len(report.losses) for report in reports] == stretches
    assert sum(int(report.images.sum()) for report in reports) == images


def test_a_program_survives_an_interrupt_between_stretches() -> None:
    """What was done stays done, and training goes on from there as if nothing had been."""
    s = sample(SPEC, 19)
    order = np.arange(19)
    programs = [compiled("jax", s, batch_size=2) for _ in range(2)]
    placed = [program.place(s.images, s.labels) for program in programs]

    def interrupted() -> None:
        for _ in programs[0].train_epoch(placed[0], order, learning_rate=0.5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    next(iter(programs[1].train_epoch(placed[1], order, learning_rate=0.5)))
    for program, data in zip(programs, placed, strict=True):
        assert bits(program.state()) != bits(s.state)
        list(program.train_epoch(data, order, learning_rate=0.25))
    assert bits(programs[0].state()) == bits(programs[1].state())


def test_nothing_is_compiled_twice() -> None:
    from polybn_jax import program as module

    for seed in (0, 1):
        s = sample(SPEC, 19, seed)
        program = compiled("jax", s, batch_size=8)
        data = program.place(s.images, s.labels)
        for rate in (0.5 + seed, 0.25 + seed):
            list(program.train_epoch(data, np.arange(19), learning_rate=rate))
            program.logits(data)
        if seed == 0:
            sizes = module._train._cache_size(), module._infer._cache_size()
    assert (module._train._cache_size(), module._infer._cache_size()) == sizes


# A max-pool inside of batch norm.


@pytest.mark.parametrize("gamma", [[1.5, -0.75, 0.0], [0.0, 0.0, 0.0], [-1.0, -1.0, 2.0]], ids=str)
def test_a_pool_after_batch_norm_for_every_sign_of_gamma(gamma: list[float]) -> None:
    """With gamma 0 all values of a square are equal, and the first counts."""
    s = sample(BN_POOL, 4)
    s = s._replace(state=s.state | {"norm1.gamma": np.array(gamma, np.float32)})
    got, right = program_step(compiled("jax", s), s), exact_step(s)
    check(got, right, reference.allowed(lambda rounded: exact_step(s, rounded)))
    level = np.array(gamma) == 0  # the bound above allows for any place in a level square; the first is right
    assert (abs(got["norm1.gamma"] - right["norm1.gamma"])[level] <= 1e-5).all()


def test_of_equals_the_first_in_row_order_wins_in_an_input_in_rows() -> None:
    from polybn_jax import layers

    x = np.array([[0, 1, 3, 3], [1, 0, 3, 3], [0, 0, 5, 4], [2, 2, 4, 5]], np.float32)
    right = [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]

    def pooled(rows: Any) -> Any:
        return layers.max_pool(layers.to_squares(rows, 2, 1), np.ones(1, np.float32)).sum()

    gradient = jax.grad(pooled)(x.reshape(1, 4, 1, 4))
    assert np.asarray(gradient).reshape(4, 4).tolist() == right


@pytest.mark.parametrize(
    "layers",
    [
        (MaxPool(3), Dense(2)),
        (Convolution(2, 4), MaxPool(3), Sigmoid(), Dense(2)),
        (Convolution(2, 4), BatchNorm(), Sigmoid(), MaxPool(3), Dense(2)),
        (Convolution(2, 2), BatchNorm(), MaxPool(2), MaxPool(2), Dense(2)),
        (MaxPool(1), Convolution(2, 2), MaxPool(4), Dense(2)),
        (BatchNorm(), MaxPool(3), Convolution(2, 2), Dense(2)),
    ],
    ids=str,
)
def test_pools_of_any_size_and_place(layers: Any) -> None:
    s = sample(Network((2, 9, 9), layers), 3)
    got = program_step(compiled("jax", s), s)
    check(got, exact_step(s), reference.allowed(lambda rounded: exact_step(s, rounded)))


# Range.


@pytest.mark.clause("S10")
@pytest.mark.parametrize("exponent", [90, -90])
def test_with_eps_0_a_power_of_two_changes_no_bit(exponent: int) -> None:
    """Where the square of an activation has left the range of float32."""
    network = Network((1, 4, 4), (Convolution(2, 3), BatchNorm(eps=0), Sigmoid(), Dense(3)))
    s = sample(network, 5)
    factor = np.float32(2.0**exponent)
    scaled = s.state | {name: s.state[name] * factor for name in ("conv1.weight", "conv1.bias")}
    steps = []
    for state in (s.state, scaled):
        program = compiled("jax", s._replace(state=state))
        data = program.place(s.images, s.labels)
        (report,) = program.train_epoch(data, np.arange(5), learning_rate=0.5)
        after = program.state()
        dense = [after[name].tobytes() for name in ("dense1.weight", "dense1.bias", "norm1.gamma", "norm1.beta")]
        steps.append((report.losses.tobytes(), dense))
    assert steps[0] == steps[1]


# Flax's own batch norm.


def flax_step(s: Sample) -> Named:
    """Take a step through Flax's module in NHWC, and plain jax.numpy around it."""
    from flax import nnx
    from jax import numpy as jnp

    x = jnp.asarray(s.images.transpose(0, 2, 3, 1), jnp.float32) / 255
    module = nnx.BatchNorm(x.shape[-1], momentum=0.75, epsilon=1e-3, rngs=nnx.Rngs(0))
    module.mean[...] = jnp.asarray(s.state["norm1.running_mean"])
    module.var[...] = jnp.asarray(s.state["norm1.running_var"])
    xhat = module(x, use_running_average=False)
    y = xhat * s.state["norm1.gamma"] + s.state["norm1.beta"]
    rows = y.transpose(0, 3, 1, 2).reshape(len(x), -1)
    logits = rows @ s.state["dense1.weight"].T + s.state["dense1.bias"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), s.labels[:, None].astype(int), axis=1)
    return {
        "loss": np.asarray(-chosen.mean()),
        "norm1.running_mean": np.asarray(module.mean[...]),
        "norm1.running_var": np.asarray(module.var[...]),
    }


def test_native_is_the_batch_norm_of_flax() -> None:
    """To the bit in its running statistics, where the specification's differ; the loss goes through other sums."""
    pytest.importorskip("flax")
    layers = (BatchNorm("native", momentum=0.75, eps=1e-3), Dense(3))
    s = sample(Network((2, 5, 3), layers), 6)
    s = s._replace(images=s.images // 64 + 192)  # far from 0: Flax's variance is then off by many units
    right = flax_step(s)
    gaps = {}
    for implementation in ("native", "spec"):
        network = Network((2, 5, 3), (BatchNorm(implementation, momentum=0.75, eps=1e-3), Dense(3)))
        got = program_step(compiled("jax", s._replace(network=network)), s)
        gaps[implementation] = {name: float(np.max(abs(got[name] - value))) for name, value in right.items()}
    assert gaps["native"]["norm1.running_mean"] == gaps["native"]["norm1.running_var"] == 0
    assert gaps["native"]["loss"] <= 2.0**-20
    assert min(gaps["spec"].values()) > 0


def test_lenet_trains_with_the_batch_norm_of_flax() -> None:
    pytest.importorskip("flax")
    difference = losses_of("jax", networks.lenet("native"), 30, 0.02) - losses_of("jax", SPEC, 30, 0.02)
    assert 0 < max(abs(difference)) <= 1e-3


def test_native_without_flax(monkeypatch: pytest.MonkeyPatch) -> None:
    module = dispatch.backend("jax")
    assert traits_of(module).native_norm == (find_spec("flax") is not None)
    monkeypatch.setattr(module, "traits", replace(traits_of(module), native_norm=False))
    with pytest.raises(BackendError, match=r"^polybn\.train: norm must be 'spec' or None on the jax backend; got "):
        compile(networks.lenet("native"), module, networks.initial_state(SPEC, 0), batch_size=4)
