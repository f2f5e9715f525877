"""Training on several devices, and in two processes: the losses of one device, and replicas that agree to the bit.

Sums in another order round differently. That decides which of two nearly equal values a max-pool takes, and training
amplifies the difference: over 40 seeds at learning rate 0.02, losses differed by at most 5e-7 in the first step, 7e-5
in the first epoch and 3e-4 in the second. The bounds are some three times that.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import polybn
from polybn.lenet import networks
from polybn.spec import BackendError, DomainError, DTypeError
from tests.conftest import REASONS
from tests.support.training_worker import slice_of_sample
from tests.support.xla import ROOT, environment

STEPS = 6
"""The number of steps of an epoch."""
FIRST, EARLY, LATER = 1e-6, 2e-4, 1e-3
"""Bounds on differences of losses: of the first step, of the first epoch, of the second."""
TINY = slice_of_sample(20, 10)
# The last 59 images of an epoch are no multiple of the devices: each then works on all of them. (With three images,
# batch norm would magnify each rounding: losses of Flax, too, then drift apart by 1e-3.)
OPTIONS: dict[str, Any] = {"norm": "spec", "images": 359, "epochs": 2, "batch_size": 60, "learning_rate": 0.02}

needs_jax = pytest.mark.skipif(REASONS["jax"] is not None, reason=f"jax: {REASONS['jax']}")


def start(devices_here: int, **options: Any) -> subprocess.Popen[str]:
    """Start a worker, which trains; nearly all of its time goes into compiling the network."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.jax_worker", json.dumps(options)],
        env=environment(devices_here, cheap=True), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(workers: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """Return what they printed; leave none running, whatever happens."""
    try:
        said = [worker.communicate(timeout=600) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for worker, (_, errors) in zip(workers, said, strict=True):
        assert worker.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def check(got: dict[str, Any], right: dict[str, Any]) -> None:
    differences = [abs(a - b) for a, b in zip(got["losses"], right["losses"], strict=True)]
    assert len(differences) == 2 * STEPS
    assert differences[0] <= FIRST
    assert max(differences[:STEPS]) <= EARLY
    assert max(differences) <= LATER


@needs_jax
@pytest.mark.parametrize("norm", ["spec", None])
def test_several_devices_have_the_losses_of_one(norm: str | None) -> None:
    (results,) = finish([start(4, **OPTIONS | {"norm": norm}, devices=[1, 2, 4])])
    for devices in ("2", "4"):
        check(results[devices], results["1"])
        assert results[devices]["metrics"][0] == results["1"]["metrics"][0]


@needs_jax
def test_several_devices_with_the_batch_norm_of_flax() -> None:
    pytest.importorskip("flax")
    (results,) = finish([start(2, **OPTIONS | {"norm": "native"}, devices=[1, 2])])
    check(results["2"], results["1"])


@needs_jax
def test_two_processes_have_the_losses_of_one_and_agree_to_the_bit() -> None:
    """Each has one device; they meet over loopback, through gloo."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    first, second = finish([start(1, **OPTIONS, devices=[2], process=process, port=port) for process in (0, 1)])
    assert first == second
    (alone,) = finish([start(1, **OPTIONS, devices=[1])])
    check(first["2"], alone["1"])


# Faults.


@needs_jax
def test_more_devices_than_there_are() -> None:
    import jax

    words = r"^polybn\.train: devices must be at most \d+, which JAX finds here; got {0} .*device_count={0}\)$"
    count = len(jax.devices()) + 1
    with pytest.raises(BackendError, match=words.format(count)):
        polybn.train(networks.lenet(), "jax", data=TINY, devices=count, batch_size=count)


@needs_jax
def test_devices_that_do_not_divide_the_batch() -> None:
    worker = start(2, **OPTIONS | {"batch_size": 61}, devices=[2])
    _, errors = worker.communicate(timeout=600)
    assert worker.returncode == 1
    assert "DomainError: polybn.train: devices must divide the batch size; got 2, and 61 images in a step" in errors


def test_other_backends_have_one_device() -> None:
    words = r"^polybn\.train: devices must be 1 on the numpy backend; got 2 \(it trains on one; "
    with pytest.raises(BackendError, match=words):
        polybn.train(networks.lenet(), data=TINY, devices=2)


def test_a_number_of_devices_that_is_none(backend: str) -> None:
    with pytest.raises(DomainError, match=r"^polybn\.train: devices must be 1 or more; got 0 "):
        polybn.train(networks.lenet(), backend, data=TINY, devices=0)
    with pytest.raises(DTypeError, match=r"^polybn\.train: devices must be an integer; got 1\.5 "):
        polybn.train(networks.lenet(), backend, data=TINY, devices=1.5)  # type: ignore[arg-type]


def test_a_run_on_two_devices_is_not_resumed_on_one(tmp_path: Path) -> None:
    """It would not go on to the same bits; here, NumPy has no second device to go on with."""
    run = polybn.train(networks.lenet(), data=TINY, epochs=1, out=tmp_path)
    meta = {"config": run.config | {"devices": 2}, "epochs": [run.epochs[0]._asdict()], "losses": run.losses}
    polybn.checkpoints.save(tmp_path / "checkpoints", run.state, meta, epoch=1)
    with pytest.raises(BackendError, match=r"devices must be 1 on the numpy backend; got 2 "):
        polybn.training.resume(tmp_path, data=TINY, epochs=2)
