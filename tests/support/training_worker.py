"""Small training data, and a process that trains on them until it has finished or is killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import polybn
from polybn.lenet import fashion_mnist, networks, training
from polybn.lenet.errors import RunInUseError
from polybn.lenet.fashion_mnist import Dataset

if TYPE_CHECKING:
    from polybn.lenet.program import Steps
    from polybn.lenet.runs import Epoch

BATCH = 128
OPTIONS: dict[str, Any] = {"batch_size": BATCH, "learning_rate": 0.5, "seed": 3}


def slice_of_sample(train: int = 300, test: int = 60) -> Dataset:
    """Take the first images of the sample, so many that the last batch of an epoch is smaller."""
    data = fashion_mnist.load("sample")
    return Dataset(
        data.train_images[:train], data.train_labels[:train], data.test_images[:test], data.test_labels[:test], "slice"
    )


def store(data: Dataset, path: Path) -> None:
    np.savez(path, **{name: value for name, value in data._asdict().items() if name not in ("source", "where")})


def main(data: str, directory: str, epochs: str, deadly_sync: str) -> None:
    """Begin or resume a run, and report its progress; a ``deadly_sync`` above 0 kills the process in that sync.

    While another process has the run, wait.
    """
    with np.load(data) as arrays:
        dataset = Dataset(**arrays, source="slice")
    _die_in_sync(int(deadly_sync))
    images = 0

    def on_steps(epoch: int, steps: Steps) -> None:
        nonlocal images
        images += int(steps.images.sum())
        if images % len(dataset.train_labels) == 0:
            print(f"trained {epoch}", flush=True)  # noqa: T201

    def on_epoch(epoch: Epoch) -> None:
        print(f"saved {epoch.epoch}", flush=True)  # noqa: T201

    def read() -> Dataset:
        print("begins", flush=True)  # noqa: T201
        return dataset

    options: dict[str, Any] = {"data": read, "epochs": int(epochs), "on_steps": on_steps, "on_epoch": on_epoch}
    while True:
        try:
            if Path(directory, "config.json").exists():
                training.resume(directory, **options)
            else:
                polybn.train(networks.lenet(), out=directory, **options, **OPTIONS)
        except RunInUseError as error:
            print(f"waits: {error}", flush=True)  # noqa: T201
            time.sleep(0.01)
        except polybn.DomainError as error:  # another process began the run between the question and the call
            if "must be a new or empty directory" not in str(error):
                raise
        else:
            return


def _die_in_sync(number: int) -> None:
    real, calls = os.fsync, 0

    def deadly(descriptor: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    setattr(os, "fsync", deadly)  # noqa: B010


if __name__ == "__main__":
    main(*sys.argv[1:])
