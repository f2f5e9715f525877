"""The NumPy network in each form: compiled kernels for every instruction set, and plain NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

import polybn_host
from polybn import dispatch
from polybn.lenet import networks
from polybn.lenet.networks import BatchNorm, Convolution, Dense, MaxPool, Network, Sigmoid, State
from polybn.lenet.program import Program, compile
from tests import test_program as shared
from tests.test_program import Sample

needs_kernels = pytest.mark.skipif(polybn_host.missing is not None, reason=f"no kernels: {polybn_host.missing}")


@contextmanager
def using(form: str) -> Iterator[None]:
    """Compile networks in one form within the context."""
    missing = polybn_host.missing
    if form == "plain":
        polybn_host.missing = "a test does without"
    elif missing is not None or not polybn_host.use_instructions(form):
        pytest.skip(f"{form} does not run here")
    try:
        yield
    finally:
        polybn_host.missing = missing
        if missing is None:
            polybn_host.use_instructions("")


FORMS = ("plain", "baseline", "avx2", "avx512")


@pytest.mark.parametrize("form", FORMS)
@shared.each_sample
def test_one_step(form: str, network: Network, n: int) -> None:
    with using(form):
        shared.test_logits("numpy", network, n)
        shared.test_one_step("numpy", network, n)


SHARED: dict[str, Callable[[str], None]] = {
    "an epoch": shared.test_an_epoch_with_a_rest,
    "any chain": shared.test_any_chain_of_layers,
    "same bits": shared.test_the_same_steps_give_the_same_bits,
    "inference": shared.test_inference_changes_nothing,
    "copies": shared.test_the_state_is_a_copy,
    "allocations": shared.test_a_step_allocates_next_to_nothing,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("test", SHARED.values(), ids=SHARED.keys())
def test_what_holds_for_every_backend(form: str, test: Callable[[str], None]) -> None:
    with using(form):
        test("numpy")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("places", shared.TIES, ids=str)
def test_ties(form: str, places: tuple[int, ...]) -> None:
    with using(form):
        shared.test_ties_in_a_pool_go_to_the_first_in_row_order("numpy", places)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_pools_and_kernels_of_any_size(form: str, size: int) -> None:
    """Channels are no multiple of a register block, images fill more than two blocks, gamma has both signs."""
    side = 2 * size + 2
    network = Network(
        (2, side, side + size), (Convolution(11, 3), BatchNorm(), MaxPool(size), Sigmoid(), Dense(13), Dense(3))
    )
    with using(form):
        shared.test_one_step("numpy", network, 37)


def program(s: Sample) -> Program:
    return compile(s.network, dispatch.backend("numpy"), s.state, batch_size=len(s.labels))


def one_step(s: Sample, rate: float = 0.5) -> tuple[float, State]:
    made = program(s)
    (report,) = made.train_epoch(made.place(s.images, s.labels), np.arange(len(s.labels)), learning_rate=rate)
    return report.losses[0], made.state()


@needs_kernels
def test_the_number_of_threads_changes_no_bit() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (83, 1, 28, 28), np.uint8), rng.integers(0, 10, 83, np.uint8)
    s = Sample(networks.lenet(), networks.initial_state(networks.lenet(), 0), images, labels)
    results = set()
    try:
        for threads in (1, 2, 3, 7):
            polybn_host.use_threads(threads)
            loss, state = one_step(s)
            results.add((loss, *shared.bits(state).values()))
    finally:
        polybn_host.use_threads(polybn_host._processors())
    assert len(results) == 1


@needs_kernels
@pytest.mark.parametrize("form", FORMS[1:])
def test_sigmoid_to_a_few_units_in_the_last_place(form: str) -> None:
    """Black images give the sigmoid the bias of a dense layer."""
    x = np.linspace(-87, 87, 65_521).astype(np.float32)
    x[:9] = 0, -0.0, 1e-30, -1e-30, 1e30, -1e30, np.inf, -np.inf, np.nan
    network = Network((1, 1, 1), (Dense(len(x)), Sigmoid()))
    state = networks.initial_state(network, 0) | {"dense1.bias": x}
    black = np.zeros((1, 1, 1, 1), np.uint8)
    with using(form), np.errstate(over="ignore"):
        made = program(Sample(network, state, black, np.zeros(1, np.uint8)))
        got = made.logits(made.place(black, np.zeros(1, np.uint8)))[0]
        exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert np.isnan(got[8])
    finite = ~np.isnan(x)
    assert (abs(got - exact) <= 2.5 * np.spacing(exact.astype(np.float32)) + 1e-38)[finite].all()


# Batch norm inside the network, by the clauses.


def normed(pixels: NDArray[np.uint8], weight: list[float], eps: float) -> Sample:
    """Return a network with two channels, a weight for each, batch norm and scores."""
    network = Network((2, 1, pixels.shape[1] // 2), (Convolution(1, 1), BatchNorm(eps=eps), Dense(3)))
    state = networks.initial_state(network, 0)
    state["conv1.weight"] = np.array(weight, np.float32).reshape(1, 2, 1, 1)
    images = pixels.reshape(len(pixels), *network.input_shape)
    return Sample(network, state, images, np.arange(len(images), dtype=np.uint8) % 3)


@pytest.mark.clause("S8")
@pytest.mark.parametrize("form", FORMS)
def test_a_constant_channel(form: str) -> None:
    """The variance of a constant channel is exactly 0, and so is the gradient of gamma."""
    s = normed(np.full((37, 6), 77, np.uint8), [0.3, 1234.567], 1e-5)
    s.state["norm1.beta"] = np.array([0.75], np.float32)
    with using(form):
        _, after = one_step(s)
    assert after["norm1.running_var"] == np.float32(0.9)
    assert after["norm1.gamma"] == s.state["norm1.gamma"]
    assert np.isfinite(after["dense1.weight"]).all()


@pytest.mark.clause("S2", "S3")
@pytest.mark.parametrize("form", FORMS)
def test_values_far_from_zero(form: str) -> None:
    """The mean is 2^13 times the spread, so that its rounding error or its square would show."""
    pixels = np.full((37, 14), 255, np.uint8)
    pixels[:, :7] = np.random.default_rng(0).integers(0, 256, (37, 7))
    s = normed(pixels, [1.0, 8192.0], 1e-5)
    y = (pixels[:, :7].astype(np.float32) / np.float32(255) + np.float32(8192)).astype(np.float64)
    scores = (y - y.mean()) / np.sqrt(y.var() + 1e-5) @ s.state["dense1.weight"].astype(np.float64).T
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(37), s.labels]
    with using(form):
        loss, after = one_step(s)
    batch = (after["norm1.running_var"].astype(np.float64) - 0.9) / 0.1
    assert math.isclose(batch.item(), y.var(), rel_tol=1e-4)
    assert math.isclose(loss, losses.mean(), rel_tol=1e-6)


@pytest.mark.clause("S10")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("power", [127, 100, -100, -140])
def test_a_channel_out_of_range(form: str, power: int) -> None:
    """With eps = 0, weights times a power of two change neither batch norm's output nor the later layers."""
    pixels = np.full((37, 6), 255, np.uint8)
    pixels[:, 3:] = 0
    pixels[:5] = 255 - pixels[:5]  # to get values far from their mean, on both sides of 0
    weight = np.array([1.75, -1.875])
    usual, moved = (normed(pixels, list(np.ldexp(weight, k)), 0.0) for k in (0, power))
    with using(form), np.errstate(over="ignore"):
        loss, state = one_step(usual)
        loss_moved, state_moved = one_step(moved)
        usual_var = (state["norm1.running_var"].astype(np.float64) - 0.9) / 0.1
        expected = np.float32(0.9) + np.float32(0.1) * np.ldexp(usual_var, 2 * power).astype(np.float32)
    assert math.isclose(loss, loss_moved, rel_tol=1e-6)
    for name in ("norm1.gamma", "norm1.beta", "dense1.weight", "dense1.bias"):
        assert np.allclose(state_moved[name], state[name], rtol=1e-5, atol=1e-7), name
    assert np.allclose(state_moved["norm1.running_var"], expected, rtol=1e-5)


@pytest.mark.clause("S9")
@pytest.mark.parametrize("form", FORMS)
def test_nan_stays_in_its_channel(form: str) -> None:
    """NaN in a channel reaches only its own running statistics, and the loss, so that training stops."""
    network = Network((1, 3, 3), (Convolution(5, 2), BatchNorm(), Sigmoid(), Dense(3)))
    s = shared.sample(network, 19)
    s.state["conv1.weight"][2, 0, 1, 0] = np.nan
    with using(form):
        loss, state = one_step(s)
    assert math.isnan(loss)
    assert np.isnan(state["norm1.running_mean"]).tolist() == [False, False, True, False, False]


# Bad arguments that would let kernels read outside their arrays.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("order", "label"), [([0, 1, 4], 0), ([0, -1], 0), ([0, 1], 3)])
def test_images_and_labels_that_are_not_there(form: str, order: list[int], label: int) -> None:
    s = shared.sample(Network((1, 2, 2), (Dense(3),)), 4)._replace(labels=np.full(4, label, np.uint8))
    with using(form):
        made = program(s)
        with pytest.raises(IndexError):
            list(made.train_epoch(made.place(s.images, s.labels), np.array(order), learning_rate=1.0))
