"""Compiled networks, compared with an independent one: values, gradients, running statistics, unchanged arguments.

:mod:`tests.support.reference_lenet` bounds each value by itself, by the errors of float32.
"""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from polybn import dispatch
from polybn.lenet import networks
from polybn.lenet.networks import BatchNorm, Convolution, Dense, Layer, MaxPool, Network, Sigmoid, State
from polybn.lenet.program import Program, compile
from polybn.spec import BackendError, DomainError, ShapeError
from tests.support import reference_lenet as reference
from tests.support.drawing import narrowed
from tests.support.reference_lenet import Named, Rounded

Bytes = NDArray[np.uint8]

# After one step of this length the change of the weights, divided by it, is the gradient, except for two last bits.
GIANT = 2.0**40

SPEC, NONE = networks.lenet(), networks.lenet(None)
OTHER = Network(
    (3, 13, 11),
    (Convolution(4, 3), Sigmoid(), Convolution(5, 2), BatchNorm(momentum=0.5, eps=1e-3), Sigmoid(),
     Dense(7), BatchNorm(), Sigmoid(), Dense(4)),
)  # fmt: skip
DENSE_FIRST = Network((2, 5, 3), (Dense(9), BatchNorm(), Sigmoid(), Dense(3)))


class Sample(NamedTuple):
    """A network somewhere in the middle of its training, and images for it."""

    network: Network
    state: State
    images: Bytes
    labels: Bytes


def sample(network: Network, n: int, seed: int = 0) -> Sample:
    """Draw a state in which nothing is 0 or 1 by chance, and images without near ties in a max-pool."""
    rng = np.random.default_rng([n, seed])
    draw: dict[str, Callable[[tuple[int, ...]], NDArray[np.float64]]] = {
        "bias": lambda shape: rng.normal(0, 0.1, shape),
        "beta": lambda shape: rng.normal(0, 0.5, shape),
        "gamma": lambda shape: rng.choice([-1, 1], shape) * rng.uniform(0.5, 2, shape),
        "running_mean": lambda shape: rng.normal(0, 0.5, shape),
        "running_var": lambda shape: rng.uniform(0.001, 2, shape),
    }
    state = networks.initial_state(network, seed)
    for name, values in state.items():
        kind = name.rpartition(".")[2]
        if kind != "weight":
            state[name] = draw[kind](values.shape).astype(np.float32)
    classes = networks.rows(network)[-1].output_shape[0]
    for _ in range(100):
        images = rng.integers(0, 256, (n, *network.input_shape), dtype=np.uint8)
        if reference.forward(network, state, images, training=True).gap > 2e-6:
            return Sample(network, state, images, rng.integers(0, classes, n, dtype=np.uint8))
    raise AssertionError("too many images to be without near ties: take fewer")


def compiled(backend: str, s: Sample, batch_size: int | None = None) -> Program:
    return compile(s.network, dispatch.backend(backend), s.state, batch_size=batch_size or len(s.labels))


def bits(state: State) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in state.items()}


def exact_step(s: Sample, rounded: Rounded = reference.exact) -> Named:
    taken = reference.step(s.network, s.state, s.images, s.labels, rounded)
    return {"loss": np.asarray(taken.loss), **taken.gradients, **taken.running}


def program_step(program: Program, s: Sample) -> Named:
    """Take one giant step, and return what :func:`exact_step` does."""
    data = program.place(s.images, s.labels)
    (report,) = program.train_epoch(data, np.arange(len(s.labels)), learning_rate=GIANT)
    after = program.state()
    moved = {name: (s.state[name].astype(np.float64) - value) / GIANT for name, value in after.items()}
    kept = {name: value for name, value in after.items() if ".running_" in name}
    return {"loss": report.losses[0], **moved, **kept}


def check(got: Named, right: Named, allowed: Named) -> None:
    assert got.keys() == right.keys()
    for name, value in right.items():
        assert np.shape(got[name]) == np.shape(value)
        error = abs(got[name] - value)
        assert (error <= allowed[name]).all(), f"{name} is off by {np.max(error / allowed[name])} of what is allowed"


# The reference itself.


@pytest.mark.parametrize("network", [SPEC, NONE, OTHER, DENSE_FIRST], ids=["spec", "none", "other", "dense first"])
def test_the_reference_agrees_with_its_own_complex_steps(network: Network) -> None:
    """Along a random direction in each array; the bound is that for float64."""
    s, rng = sample(network, 4), np.random.default_rng(7)
    directions = {name: rng.standard_normal(value.shape) for name, value in s.state.items() if ".running_" not in name}

    def slopes(rounded: Rounded) -> Named:
        gradients = reference.step(network, s.state, s.images, s.labels, rounded).gradients
        return {name: (gradients[name] * direction).sum() for name, direction in directions.items()}

    allowed = reference.allowed(slopes, reference.FLOAT64)
    for name, direction in directions.items():
        turned = s.state | {name: s.state[name] + 1e-30j * direction}
        slope = reference.loss_of(network, turned, s.images, s.labels).imag / 1e-30
        assert abs(slope - slopes(reference.exact)[name]) <= allowed[name] < 1e-8


# Values and gradients.

SAMPLES = {
    "LeNet": (SPEC, 8),
    "LeNet on two images": (SPEC, 2),
    "LeNet without batch norm": (NONE, 8),
    "LeNet without batch norm on one image": (NONE, 1),
    "odd sizes, no pool": (OTHER, 7),
    "dense first": (DENSE_FIRST, 6),
}
each_sample = pytest.mark.parametrize(("network", "n"), SAMPLES.values(), ids=SAMPLES.keys())


@each_sample
@pytest.mark.clause("S5")
def test_logits(backend: str, network: Network, n: int) -> None:
    s = sample(network, n)

    def measure(rounded: Rounded) -> Named:
        return {"logits": reference.forward(s.network, s.state, s.images, training=False, rounded=rounded).logits}

    program = compiled(backend, s)
    got = program.logits(program.place(s.images, s.labels))
    assert got.dtype == np.float32
    check({"logits": got}, measure(reference.exact), reference.allowed(measure))


@each_sample
@pytest.mark.clause("S3", "S4", "S13")
def test_one_step(backend: str, network: Network, n: int) -> None:
    """Loss, the gradients of all parameters and the new running statistics are within their bounds."""
    s = sample(network, n)
    got = program_step(compiled(backend, s), s)
    check(got, exact_step(s), reference.allowed(lambda rounded: exact_step(s, rounded)))


@pytest.mark.parametrize("network", [SPEC, NONE], ids=["spec", "none"])
def test_the_bounds_say_something(network: Network) -> None:
    """Bounds are far below the gradients; otherwise anything would pass."""
    s = sample(network, 8)
    right, allowed = exact_step(s), reference.allowed(lambda rounded: exact_step(s, rounded))
    for name, value in right.items():
        if network is NONE or not name.endswith(".bias") or name == "dense3.bias":  # others are before batch norm
            assert np.max(allowed[name]) < 5e-3 * np.max(abs(value)), name


def test_an_epoch_with_a_rest(backend: str) -> None:
    """Three steps on 8, 8 and 3 images in a shuffled order lead to the right state."""
    s = sample(SPEC, 19)
    order = np.random.default_rng(3).permutation(19)
    batches = [order[:8], order[8:16], order[16:]]

    def measure(rounded: Rounded) -> Named:
        losses, _, state = reference.sgd(SPEC, s.state, s.images, s.labels, batches, 0.25, rounded)
        return {"losses": losses, **state}

    program = compiled(backend, s, batch_size=8)
    reports = list(program.train_epoch(program.place(s.images, s.labels), order, learning_rate=0.25))
    losses, correct, images = (np.concatenate(parts) for parts in zip(*reports, strict=True))
    assert images.tolist() == [8, 8, 3]
    assert correct.tolist() == reference.sgd(SPEC, s.state, s.images, s.labels, batches, 0.25)[1]
    check({"losses": losses, **program.state()}, measure(reference.exact), reference.allowed(measure))


@st.composite
def any_network(draw: st.DrawFn) -> Network:
    """Draw a chain of layers that fit, first for images, and after a dense layer for vectors."""
    norms = st.builds(BatchNorm, momentum=st.sampled_from([0.9, 0.0, 1.0, 0.25]), eps=st.sampled_from([1e-5, 1e-2]))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(2, 7)))
    network = Network(shape, ())
    for _ in range(draw(st.integers(0, 5))):
        _, *sides = networks.rows(network)[-1].output_shape if network.layers else shape
        choices: list[st.SearchStrategy[Layer]] = [norms, st.just(Sigmoid())]
        choices.append(st.builds(Convolution, st.integers(1, 4), st.integers(1, min(sides))))
        choices += [st.just(MaxPool(2))] if not any(side % 2 for side in sides) else []
        network = Network(shape, (*network.layers, draw(st.one_of(choices))))
    vectors = draw(st.lists(st.one_of(st.builds(Dense, st.integers(1, 6)), norms, st.just(Sigmoid())), max_size=4))
    first = [Dense(draw(st.integers(1, 6)))] if vectors else []
    return Network(shape, (*network.layers, *first, *vectors, Dense(draw(st.integers(2, 5)))))


CHAINS = [
    Network(shape, layers)
    for shape, layers in (
        ((1, 4, 4), (Dense(3), Sigmoid())),
        ((1, 4, 4), (BatchNorm(), Convolution(2, 2), Dense(3))),
        ((1, 4, 4), (Sigmoid(), Convolution(2, 2), Dense(3))),
        ((1, 4, 4), (Convolution(2, 2), BatchNorm(), Dense(3))),
        ((1, 4, 4), (Convolution(2, 2), Sigmoid(), BatchNorm(), Dense(3))),
        ((1, 4, 4), (Convolution(2, 3), Sigmoid(), MaxPool(2), Sigmoid(), BatchNorm(), Dense(3))),
        ((1, 4, 4), (Dense(2), Sigmoid(), Sigmoid(), Dense(3))),
        (
            (3, 6, 4),
            (
                MaxPool(2),
                BatchNorm(momentum=0.0),
                BatchNorm(momentum=1.0),
                MaxPool(1),
                Convolution(2, 1),
                Sigmoid(),
                Dense(5),
            ),
        ),
        ((2, 7, 5), (Convolution(3, 2), Convolution(4, 3), MaxPool(2), MaxPool(1), Dense(4), BatchNorm(), Dense(2))),
        (
            (1, 6, 7),
            (BatchNorm(), Sigmoid(), Convolution(1, 3), BatchNorm(), MaxPool(1), Sigmoid(), MaxPool(1), Dense(3)),
        ),
        (
            (3, 2, 2),
            (Convolution(2, 1), MaxPool(2), Convolution(3, 1), Dense(5), Dense(4), Sigmoid(), BatchNorm(), Dense(2)),
        ),
    )
]
"""Chains in which each kind of layer comes before and after each other kind that it fits."""


def examples(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test on each of these chains, whatever else is drawn."""
    for network in CHAINS:
        test = example(network, 3, 0)(test)
    return test


@examples
@given(network=narrowed(any_network(), CHAINS), n=narrowed(st.integers(2, 5), [3]), seed=st.integers(0, 99))
def test_any_chain_of_layers(backend: str, network: Network, n: int, seed: int) -> None:
    """Every chain of layers is right, with any layer first, last, or next to any other."""
    s = any_sample(network, n, seed)
    got = program_step(compiled(backend, s), s)
    check(got, exact_step(s), reference.allowed(lambda rounded: exact_step(s, rounded)))


def any_sample(network: Network, n: int, seed: int) -> Sample:
    rng = np.random.default_rng([n, seed])
    state = {
        name: (value + rng.normal(0, 0.25, value.shape) ** 2).astype(np.float32)
        for name, value in networks.initial_state(network, seed).items()
    }
    images = rng.integers(0, 256, (n, *network.input_shape), dtype=np.uint8)
    classes = networks.rows(network)[-1].output_shape[0]
    assume(reference.forward(network, state, images, training=True).gap > 1e-4)
    return Sample(network, state, images, rng.integers(0, classes, n, dtype=np.uint8))


TIES = [places for k in (2, 3, 4) for places in itertools.combinations(range(4), k)]


@pytest.mark.parametrize("places", TIES, ids=str)
def test_ties_in_a_pool_go_to_the_first_in_row_order(backend: str, places: tuple[int, ...]) -> None:
    """The sum of two channels is largest in several places of a square, where the channels differ."""
    network = Network((2, 2, 2), (Convolution(1, 1), MaxPool(2), Dense(2)))
    weights: dict[str, Any] = {
        "conv1.weight": [[[[1]], [[1]]]], "conv1.bias": [0], "dense1.weight": [[1], [-1]], "dense1.bias": [0, 0],
    }  # fmt: skip
    state = {name: np.array(value, np.float32) for name, value in weights.items()}
    image = np.zeros((1, 2, 2, 2), np.uint8)
    for value, place in enumerate(places, start=10):
        image[0, :, place // 2, place % 2] = value, 100 - value
    s = Sample(network, state, image, np.zeros(1, np.uint8))
    got, right = program_step(compiled(backend, s), s), exact_step(s)
    chosen = 100 * got["conv1.weight"][0, 0] / got["conv1.weight"].sum()
    assert round(chosen.item()) == 10, "an image that came later was chosen"
    check(got, right, reference.allowed(lambda rounded: exact_step(s, rounded)))


# Changes of state.


def test_a_program_starts_from_the_bits_of_the_host(backend: str) -> None:
    for seed, network in enumerate((SPEC, NONE, OTHER)):
        state = networks.initial_state(network, seed)
        program = compile(network, dispatch.backend(backend), state, batch_size=4)
        assert bits(program.state()) == bits(state)
        assert list(program.state()) == list(state)


@pytest.mark.clause("S7")
def test_the_same_steps_give_the_same_bits(backend: str) -> None:
    s, order = sample(SPEC, 19), np.arange(19)[::-1].copy()
    results = []
    for _ in range(2):
        program = compiled(backend, s, batch_size=8)
        reports = list(program.train_epoch(program.place(s.images, s.labels), order, learning_rate=1.0))
        results.append((bits(program.state()), [report.losses.tobytes() for report in reports]))
    assert results[0] == results[1]


@pytest.mark.clause("S5", "S7")
def test_inference_changes_nothing(backend: str) -> None:
    """Inference changes neither the state nor later training, even between two steps of an epoch."""
    s = sample(SPEC, 19)
    programs = [compiled(backend, s, batch_size=8) for _ in range(2)]
    placed = [program.place(s.images, s.labels) for program in programs]
    for _ in programs[0].train_epoch(placed[0], np.arange(19), learning_rate=0.5):
        pass
    for _ in programs[1].train_epoch(placed[1], np.arange(19), learning_rate=0.5):
        before = bits(programs[1].state())
        scores = [programs[1].logits(placed[1]).tobytes() for _ in range(2)]
        assert scores[0] == scores[1]
        assert bits(programs[1].state()) == before
    assert bits(programs[0].state()) == bits(programs[1].state())


def test_the_state_is_a_copy(backend: str) -> None:
    """The program copies the given state, and returns copies of its own."""
    s = sample(SPEC, 4)
    given_in = {name: value.copy() for name, value in s.state.items()}
    program = compiled(backend, s._replace(state=given_in))
    for value in given_in.values():
        value.fill(np.nan)
    handed_out = program.state()
    assert bits(handed_out) == bits(s.state)
    for value in handed_out.values():
        value.fill(np.nan)
    assert bits(program.state()) == bits(s.state)


@pytest.mark.clause("S7")
def test_training_writes_neither_images_nor_the_state_it_was_given(backend: str) -> None:
    s = sample(SPEC, 4)
    before = bits(s.state), s.images.tobytes(), s.labels.tobytes()
    arrays: list[NDArray[Any]] = [*s.state.values(), s.images, s.labels]
    for array in arrays:
        array.setflags(write=False)
    program_step(compiled(backend, s), s)
    assert (bits(s.state), s.images.tobytes(), s.labels.tobytes()) == before


@pytest.mark.parametrize("n", [1, 3, 4, 5, 9])
def test_logits_of_any_number_of_images(backend: str, n: int) -> None:
    """In batches of 4 and a smaller last one, each image has the scores that it has alone."""
    s = sample(SPEC, 9)

    def measure(rounded: Rounded) -> Named:
        return {"logits": reference.forward(SPEC, s.state, s.images[:n], training=False, rounded=rounded).logits}

    program = compiled(backend, s, batch_size=4)
    got = program.logits(program.place(s.images[:n], s.labels[:n]))
    check({"logits": got}, measure(reference.exact), reference.allowed(measure))


def test_several_data_sets_live_side_by_side(backend: str) -> None:
    s = sample(SPEC, 8)
    program = compiled(backend, s)
    apart = [program.logits(program.place(part, s.labels[:4])).tobytes() for part in (s.images[:4], s.images[4:])]
    first, second = (program.place(part, s.labels[:4]) for part in (s.images[:4], s.images[4:]))
    assert [program.logits(first).tobytes(), program.logits(second).tobytes()] == apart
    assert apart[0] != apart[1]


def test_a_step_allocates_next_to_nothing(backend: str) -> None:
    """A step allocates less host memory than a twentieth of its activations, with its images, and frees all of it."""
    n, rng = 64, np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5 * n, 1, 28, 28), np.uint8), rng.integers(0, 10, 5 * n, np.uint8)
    program = compiled(backend, sample(SPEC, 1), batch_size=n)
    data = program.place(images, labels)
    activations = 4 * n * sum(math.prod(row.output_shape) for row in networks.rows(SPEC))
    for _ in program.train_epoch(data, np.arange(5 * n), learning_rate=0.5):  # allocates the buffers
        pass
    tracemalloc.start()
    try:
        kept, rises = list[int](), list[int]()
        for _ in program.train_epoch(data, np.arange(5 * n), learning_rate=0.5):
            now, peak = tracemalloc.get_traced_memory()
            rises.append(peak - (kept[-1] if kept else 0))
            kept.append(now)
            tracemalloc.reset_peak()
    finally:
        # This waits for background threads: one that allocates while tracing stops crashes
        # Python 3.11 (https://github.com/python/cpython/issues/128679).
        program.state()
        tracemalloc.stop()
    assert max(rises) < activations / 20
    assert kept[-1] - kept[0] < activations / 1000


# Faults.


def test_numpy_has_no_batch_norm_of_its_own() -> None:
    words = r"^polybn\.train: norm must be 'spec' or None on the numpy backend; got 'native' \(NumPy has no batch norm"
    with pytest.raises(BackendError, match=words):
        compile(networks.lenet("native"), dispatch.backend("numpy"), networks.initial_state(SPEC, 0), batch_size=4)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one(backend: str, batch_size: int) -> None:
    with pytest.raises(DomainError, match=f"^polybn.train: batch_size must be 1 or more; got {batch_size} "):
        compile(SPEC, dispatch.backend(backend), networks.initial_state(SPEC, 0), batch_size=batch_size)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((Convolution(2, 5), Dense(2)), r"Convolution\(channels=2, kernel=5\) must have an input .* got \(1, 4, 6\)"),
        ((Convolution(2, 2), MaxPool(2), Dense(2)), r"MaxPool\(size=2\) must have an input .* got \(2, 3, 5\)"),
        ((Dense(4), MaxPool(2)), r"MaxPool\(size=2\) must have an input .* got \(4,\)"),
        ((Dense(4), Convolution(2, 1)), r"Convolution\(channels=2, kernel=1\) must have an input .* got \(4,\)"),
    ],
)
def test_layers_that_do_not_fit(backend: str, layers: tuple[Layer, ...], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        compile(Network((1, 4, 6), layers), dispatch.backend(backend), {}, batch_size=4)
