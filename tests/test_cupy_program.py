"""The CuPy program: one graph a step, and the losses of NumPy's program. Emulated, or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polybn
from polybn.lenet import fashion_mnist, networks
from polybn.lenet.program import compile
from polybn.spec import BackendError, DomainError
from tests import test_program
from tests.support import reference_lenet as reference

cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_kernels.py runs this emulated")
EMULATED = "emulated" in cupy.__version__
STEPS, BATCH = 50, 16
RATE = 0.05


def losses(backend: str, norm: networks.Norm, steps: int = STEPS) -> np.ndarray:
    data, network = fashion_mnist.load("sample"), networks.lenet(norm)
    module = polybn.backend(backend)
    program = compile(network, module, networks.initial_state(network, 3), batch_size=BATCH)
    placed = program.place(data.train_images, data.train_labels)
    order = networks.epoch_order(3, 1, len(data.train_labels))[: steps * BATCH]
    reports = list(program.train_epoch(placed, order, learning_rate=RATE))
    assert sum(len(report.losses) for report in reports) == steps
    return np.concatenate([report.losses for report in reports])


@pytest.mark.parametrize("norm", ["spec", None])
def test_fifty_steps_on_real_images_are_those_of_numpy(norm: networks.Norm) -> None:
    """Losses agree within 1e-3: rounding differs, and each step of training multiplies the difference.

    The rate is 0.05, because at 0.5 and batches of 16 eight steps multiply a difference of 1e-6 by 100 on any backend.
    """
    ours, reference = losses("cupy", norm), losses("numpy", norm)
    assert np.abs(ours - reference).max() <= 1e-3
    assert reference[-5:].mean() < reference[:5].mean() + (0.5 if norm is None else 0)


def test_cupy_has_no_batch_norm_of_its_own() -> None:
    network = networks.lenet("native")
    with pytest.raises(
        BackendError, match=r"^polybn\.train: norm must be 'spec' or None on the cupy backend; got 'nat"
    ):
        compile(network, polybn.backend("cupy"), networks.initial_state(network, 0), batch_size=4)


def test_layers_that_do_not_fit_into_shared_memory_at_once_are_right() -> None:
    """Planes and weights come in stages, and several blocks share the gradient of one channel's weights."""
    layers = (networks.Convolution(20, 3), networks.Convolution(28, 5), networks.MaxPool(2), networks.Dense(3))
    network = networks.Network((3, 12, 12), layers)
    s = test_program.sample(network, 3)
    program = test_program.compiled("cupy", s)
    got = test_program.program_step(program, s)
    bound = reference.allowed(lambda rounded: test_program.exact_step(s, rounded))
    test_program.check(got, test_program.exact_step(s), bound)
    from polybn_cupy.tasks import cut, patch

    forward = cut(20, 10, 28, 6, 6, 5)
    spread = cut(28, 6, 20, 10, 10, 5)
    assert forward.stage < 20
    assert spread.stage < 28
    assert patch(3, (20, 10, 10), 28, 5).channels < 20


def test_an_image_that_does_not_fit_into_shared_memory_is_refused() -> None:
    network = networks.Network((1, 300, 300), (networks.Convolution(1, 1), networks.MaxPool(300), networks.Dense(2)))
    words = r"an image of a Convolution must fit into the \d+ bytes of shared memory on the cupy backend; got 1 x 300 x"
    with pytest.raises(DomainError, match=words):
        compile(network, polybn.backend("cupy"), networks.initial_state(network, 0), batch_size=2)


@pytest.mark.skipif(not EMULATED, reason="it reads what the emulation recorded")
def test_a_step_is_one_graph() -> None:
    """Each of two batch sizes is captured once and replayed in every epoch; a batch norm is one launch in each pass."""
    rng, network = np.random.default_rng(0), networks.lenet()
    images, labels = rng.integers(0, 256, (10, 1, 28, 28), np.uint8), rng.integers(0, 10, 10, np.uint8)
    program: Any = compile(network, polybn.backend("cupy"), networks.initial_state(network, 0), batch_size=4)
    data = program.place(images, labels)
    list(program.train_epoch(data, np.arange(10), learning_rate=0.1))
    assert set(data.graphs) == {(program, 4, True), (program, 2, True)}
    cupy.cuda.LAUNCHES.clear()
    graphs = dict(data.graphs)
    list(program.train_epoch(data, np.arange(10), learning_rate=0.1))
    assert data.graphs == graphs
    names = [name.partition("<")[0] for name, *_ in cupy.cuda.LAUNCHES]
    assert names == 3 * NODES


LAYERS = ("convolve", "convolve", "multiply", "multiply")
NODES = [
    *(name for layer in LAYERS for name in (layer, "forward")), "conclude",
    *(name for layer in ("multiply_back", "multiply_back", "pull", "pull") for name in ("backward", layer)),
    "descend",
]  # fmt: skip
"""The kernels of a step of LeNet: pools and sigmoids belong to the layers that read them, and all updates are one."""


@pytest.mark.skipif(not EMULATED, reason="it reads what the emulation recorded")
def test_tests_compile_all_kernels_of_lenet() -> None:
    from polybn_cupy import sources

    listed = {name for _, name in sources.instances()}
    cupy.cuda.LAUNCHES.clear()
    for norm in ("spec", None):
        losses("cupy", norm, steps=1)
    assert {name for name, *_ in cupy.cuda.LAUNCHES} <= listed


@pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="there is one GPU")
def test_the_device_that_is_named_trains() -> None:
    """The second GPU is the current one while a run with ``device="gpu:1"`` goes on, and no longer."""
    small = fashion_mnist.load("sample")
    data = small._replace(train_images=small.train_images[:32], train_labels=small.train_labels[:32])
    current: list[int] = []
    for device in ("gpu", "gpu:1"):
        run = polybn.train(
            networks.lenet(), "cupy", data=data, epochs=1, batch_size=BATCH, learning_rate=RATE, device=device,
            on_epoch=lambda _: current.append(cupy.cuda.runtime.getDevice()),
        )  # fmt: skip
        assert np.isfinite(run.losses).all()
    assert current == [0, 1]
    assert cupy.cuda.runtime.getDevice() == 0
