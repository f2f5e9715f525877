"""The device that trains: chosen by name, refused with a list of those that are there, kept in the run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polybn
from polybn import dispatch
from polybn.lenet import networks
from polybn.lenet.fashion_mnist import Dataset
from polybn.spec import BackendError, DomainError, DTypeError
from tests.support.command import Polybn
from tests.support.xla import environment

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, size=(6, 1, 28, 28), dtype=np.uint8)
DATA = Dataset(IMAGES, np.arange(6, dtype=np.uint8), IMAGES, np.arange(6, dtype=np.uint8), "six images", None)
NETWORK = networks.lenet()


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give NumPy two more devices, and return the names of those that a run enters and leaves."""
    module: Any = dispatch.backend("numpy")
    seen: list[str] = []

    @contextmanager
    def enter(name: str) -> Iterator[None]:
        seen.append(name)
        yield
        seen.append(f"left {name}")

    devices = {"cpu": nullcontext} | {name: lambda name=name: enter(name) for name in ("gpu:0", "gpu:1")}
    monkeypatch.setattr(module, "traits", replace(module.traits, devices=lambda: devices))
    compiled = module.compile

    def compile(*arguments: Any, **options: Any) -> Any:
        seen.append("compiled")
        return compiled(*arguments, **options)

    monkeypatch.setattr(module, "compile", compile)
    return seen


@pytest.mark.parametrize(("device", "name"), [("gpu", "gpu:0"), ("gpu:1", "gpu:1")])
def test_a_run_compiles_and_trains_on_its_device(device: str, name: str, entered: list[str]) -> None:
    run = polybn.train(
        NETWORK, data=DATA, epochs=1, batch_size=3, device=device, on_epoch=lambda _: entered.append("epoch")
    )
    assert entered == [name, "compiled", "epoch", f"left {name}"]
    assert run.config["device"] == device


def test_a_resumed_run_goes_on_on_its_device(entered: list[str], tmp_path: Path) -> None:
    polybn.train(NETWORK, data=DATA, epochs=1, batch_size=3, device="gpu:1", out=tmp_path)
    entered.clear()
    run = polybn.training.resume(tmp_path, epochs=2, data=DATA)
    assert entered == ["gpu:1", "compiled", "left gpu:1"]
    assert run.config["device"] == "gpu:1"


def test_without_a_device_the_library_chooses(entered: list[str]) -> None:
    run = polybn.train(NETWORK, data=DATA, epochs=1, batch_size=3)
    assert entered == ["compiled"]
    assert run.config["device"] is None


def test_each_backend_trains_on_each_device_that_it_sees(backend: str) -> None:
    """Naming the device that the library would choose anyway changes no bit; a device that is absent is refused."""
    traits = dispatch.backend(backend).traits
    assert traits.devices is not None
    names = list(traits.devices())
    usual = polybn.train(NETWORK, backend, data=DATA, epochs=1, batch_size=3)
    named = polybn.train(NETWORK, backend, data=DATA, epochs=1, batch_size=3, device=names[0])
    assert named.losses == usual.losses
    assert all(named.state[name].tobytes() == value.tobytes() for name, value in usual.state.items())
    with pytest.raises(BackendError) as caught:
        polybn.train(NETWORK, backend, data=DATA, epochs=1, batch_size=3, device="npu:7")
    assert str(caught.value).startswith(
        f"polybn.train: device must be one that {traits.library} sees here: {', '.join(names)}; got 'npu:7' ("
    )


def test_a_wrong_device_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"device must be one that NumPy sees here: cpu; got 'gpu' \("):
        polybn.train(NETWORK, data=DATA, device="gpu", out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DTypeError, match=r"device must be a name or None; got 0 \("):
        polybn.train(NETWORK, data=DATA, device=0)  # type: ignore[arg-type]
    with pytest.raises(DomainError, match=r"device must be left out with several devices; got 'cpu' and 2 devices \("):
        polybn.train(NETWORK, data=DATA, device="cpu", devices=2)


def test_a_backend_without_a_choice_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = dispatch.backend("numpy")
    monkeypatch.setattr(module, "traits", replace(module.traits, devices=None))
    with pytest.raises(BackendError, match=r"device must be left out on the numpy backend; got 'cpu' \(NumPy chooses"):
        polybn.train(NETWORK, data=DATA, device="cpu")


def test_the_command_takes_a_device_and_keeps_it(polybn_: Polybn, entered: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin = ("train", "--data", "sample", "--epochs", 0, "--device", "gpu:1", "--out", out)
    assert polybn_(*begin).code == 0
    assert json.loads((out / "config.json").read_text())["device"] == "gpu:1"
    said = polybn_("train", "--resume", out, "--epochs", 1, "--device", "cpu")
    assert said.code == 2
    assert "--device cpu where it has gpu:1" in " ".join(said.err.split())
    said = polybn_("train", "--device", "npu")
    assert said.code == 2
    assert "device must be one that NumPy sees here: cpu, gpu:0, gpu:1; got 'npu'" in " ".join(said.err.split())


PLACES = """
import jax, numpy as np, polybn
from polybn.lenet import networks, program
from polybn.lenet.device import on_device

backend = polybn.backend("jax")
print(*backend.traits.devices())
network = networks.lenet()
for name in ("cpu", "cpu:1"):
    with on_device(backend, name):
        compiled = program.compile(network, backend, networks.initial_state(network, 0), batch_size=2)
        data = compiled.place(np.zeros((4, 1, 28, 28), np.uint8), np.zeros(4, np.uint8))
        list(compiled.train_epoch(data, np.arange(4), learning_rate=1.0))
    print({place.id for array in (*data, *compiled._state.values()) for place in array.devices()})
"""


@pytest.mark.skipif(dispatch.backends().get("jax", "no such backend") is not None, reason="JAX cannot run here")
def test_jax_computes_on_the_device_that_is_named() -> None:
    """Of two devices, data and trained weights are on the one that was named."""
    command = [sys.executable, "-c", PLACES]
    done = subprocess.run(command, env=environment(2, cheap=True), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["cpu:0 cpu:1", "{0}", "{1}"]), done.stderr
