"""Tests for the MXNet program only; :mod:`tests.test_program` tests all programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polybn import dispatch
from polybn.lenet import networks
from polybn.lenet.networks import BatchNorm, Convolution, Dense, MaxPool, Network, Sigmoid, State
from polybn.lenet.program import Program, compile
from tests.conftest import REASONS
from tests.support import reference_lenet as reference
from tests.support.training_worker import slice_of_sample
from tests.test_program import Sample, bits, check, compiled, exact_step, program_step, sample

if REASONS["mxnet"] is not None:
    pytest.skip(f"mxnet: {REASONS['mxnet']}", allow_module_level=True)

from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.program import CHUNK

nn = mx.gluon.nn
SPEC, NATIVE = networks.lenet("spec"), networks.lenet("native")


def losses_of(program: Program, data: Any, order: Any, learning_rate: float = 0.5) -> list[float]:
    return [loss for steps in program.train_epoch(data, order, learning_rate=learning_rate) for loss in steps.losses]


@pytest.mark.parametrize("norm", ["spec", None])
def test_fifty_steps_stay_beside_those_of_numpy(norm: Any) -> None:
    """The rate is 0.02, because at rate 1 a change of weights by 2^-22 changes even NumPy's losses by 0.03."""
    network, data, losses = networks.lenet(norm), slice_of_sample(50 * 32, 1), []
    order = networks.epoch_order(0, 1, len(data.train_labels))
    for name in ("numpy", "mxnet"):
        program = compile(network, dispatch.backend(name), networks.initial_state(network, 0), batch_size=32)
        placed = program.place(data.train_images, data.train_labels)
        losses.append(np.array(losses_of(program, placed, order, 0.02)))
    difference = abs(losses[0] - losses[1])
    assert len(difference) == 50
    assert difference.max() < 1e-3
    assert difference[0] < 1e-6


def test_reports_come_every_few_steps_and_are_those_of_single_steps() -> None:
    """MXNet must not reuse the memory of a result that has not been fetched yet."""
    n = 4 * (2 * CHUNK + 1) + 3
    s, order = sample(SPEC, n), np.random.default_rng(5).permutation(n)
    together, apart = (compiled("mxnet", s, batch_size=4) for _ in range(2))
    placed = together.place(s.images, s.labels)
    reports = list(together.train_epoch(placed, order, learning_rate=0.5))
    assert [len(steps.losses) for steps in reports] == [CHUNK, CHUNK, 2]
    assert np.concatenate([steps.images for steps in reports]).tolist() == [4] * (2 * CHUNK + 1) + [3]
    one_by_one = [
        (loss, int(steps.correct[0]))
        for start in range(0, n, 4)
        for steps in apart.train_epoch(placed, order[start : start + 4], learning_rate=0.5)
        for loss in steps.losses
    ]
    assert [pair for r in reports for pair in zip(r.losses, r.correct.tolist(), strict=True)] == one_by_one
    assert bits(together.state()) == bits(apart.state())


def by_hand(state: State) -> Any:
    """Write the notebook's second network in Gluon, layer by layer."""
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(6, 5), nn.BatchNorm(), nn.Activation("sigmoid"), nn.MaxPool2D(2, 2),
        nn.Conv2D(16, 5), nn.BatchNorm(), nn.Activation("sigmoid"), nn.MaxPool2D(2, 2),
        nn.Dense(120), nn.BatchNorm(), nn.Activation("sigmoid"),
        nn.Dense(84), nn.BatchNorm(), nn.Activation("sigmoid"), nn.Dense(10),
    )  # fmt: skip
    net.initialize()
    net(mx.nd.zeros((1, 1, 28, 28)))
    blocks = [net[place] for place in (0, 1, 4, 5, 8, 9, 11, 12, 14)]
    names = ["conv1", "norm1", "conv2", "norm2", "dense1", "norm3", "dense2", "norm4", "dense3"]
    for name, value in state.items():
        layer, _, short = name.partition(".")
        getattr(blocks[names.index(layer)], short).set_data(mx.nd.array(value))
    return net


def test_native_is_gluons_own_batch_norm() -> None:
    """The scores, and the statistics after one step, have the bits of Gluon's batch norm."""
    s = sample(NATIVE, 6)
    net, program = by_hand(s.state), compiled("mxnet", s)
    images = mx.nd.array(s.images / np.float32(255))
    placed = program.place(s.images, s.labels)
    assert program.logits(placed).tobytes() == net(images).asnumpy().tobytes()
    with mx.autograd.record():
        scores = net(images)
    scores.backward()
    losses_of(program, placed, np.arange(6))
    after = program.state()
    for place, name in zip((1, 5, 9, 12), ("norm1", "norm2", "norm3", "norm4"), strict=True):
        for short in ("running_mean", "running_var"):
            assert getattr(net[place], short).data().asnumpy().tobytes() == after[f"{name}.{short}"].tobytes()


def test_spec_and_native_take_different_batch_norms() -> None:
    s, data = sample(SPEC, 6), {}
    for network in (SPEC, NATIVE):
        program = compiled("mxnet", s._replace(network=network))
        placed = program.place(s.images, s.labels)
        data[network] = losses_of(program, placed, np.arange(6))[0], program.logits(placed).tobytes()
    assert abs(data[SPEC][0] - data[NATIVE][0]) < 1e-4
    assert data[SPEC][1] != data[NATIVE][1]


def test_a_pool_of_any_size() -> None:
    network = Network((2, 8, 8), (Convolution(3, 3), BatchNorm(), Sigmoid(), MaxPool(3), Dense(4)))
    s = sample(network, 5)
    got = program_step(compiled("mxnet", s), s)
    check(got, exact_step(s), reference.allowed(lambda rounded: exact_step(s, rounded)))


def test_more_arrays_than_one_update_takes() -> None:
    """Sixty layers of one feature have 120 arrays to update."""
    network = Network((1, 2, 2), (*(Dense(2) for _ in range(59)), Dense(3)))
    state = networks.initial_state(network, 0)
    images = np.full((3, 1, 2, 2), 200, np.uint8)
    s = Sample(network, state, images, np.array([0, 1, 1], np.uint8))
    got, right = program_step(compiled("mxnet", s), s), exact_step(s)
    check(got, right, reference.allowed(lambda rounded: exact_step(s, rounded)))
    assert all(np.any(right[f"dense{place}.bias"]) for place in range(1, 61))


def test_everything_lies_in_the_current_context() -> None:
    s = sample(SPEC, 9)
    with mx.cpu(1):
        elsewhere = compiled("mxnet", s, batch_size=4)
        placed = elsewhere.place(s.images, s.labels)
    here = compiled("mxnet", s, batch_size=4)
    assert {array.ctx for array in placed} == {mx.cpu(1)}
    assert losses_of(elsewhere, placed, np.arange(9)) == losses_of(here, here.place(s.images, s.labels), np.arange(9))
    assert bits(elsewhere.state()) == bits(here.state())


def test_compiling_draws_no_random_numbers_of_mxnet() -> None:
    def draw() -> list[float]:
        mx.random.seed(3)
        compiled("mxnet", s)
        values: list[float] = mx.nd.random.uniform(shape=3).asnumpy().tolist()
        return values

    s = sample(SPEC, 2)
    first = draw()
    mx.random.seed(3)
    assert mx.nd.random.uniform(shape=3).asnumpy().tolist() == first


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_diverged_has_scores(value: float) -> None:
    """Training fetches the scores before it looks at the state, and only then reports the divergence."""
    s = sample(SPEC, 3)
    s.state["norm2.running_var"][1] = value
    program = compiled("mxnet", s)
    scores = program.logits(program.place(s.images, s.labels))
    assert scores.shape == (3, 10)
    assert np.isnan(scores).all()


def test_programs_give_their_memory_back() -> None:
    """Memory is freed at once, because the garbage collector does not see how much MXNet holds."""
    s = sample(SPEC, 64)
    sizes = []
    for _ in range(40):
        program = compiled("mxnet", s)
        losses_of(program, program.place(s.images, s.labels), np.arange(64))
        del program
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20)
    assert sizes[-1] - sizes[9] < 8
