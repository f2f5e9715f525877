"""A process that writes checkpoints until it is killed, kills itself, or reaches a limit on file sizes.

Every value of the checkpoint of epoch ``e`` is ``e``, so that a mixture of two would show.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polybn.lenet import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable


def save(directory: Path, epoch: int, size: int = 1 << 18) -> None:
    arrays = {name: np.full(size, epoch, np.float32) for name in ("weight", "bias")}
    checkpoints.save(directory, arrays, {"epoch": epoch}, epoch=epoch)


def run(directory: Path, first: str, last: str) -> None:
    """Save one epoch after another, and report each as soon as its save has returned."""
    for epoch in range(int(first), int(last)):
        save(directory, epoch)
        print(epoch, flush=True)  # noqa: T201


def die(directory: Path, function: str, call: str, moment: str) -> None:
    """Save epoch 3 and be killed just before or after the given call of ``os.<function>``."""
    real: Callable[..., Any] = getattr(os, function)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(call) and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if calls == int(call):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, function, deadly)
    save(directory, 3)


def limited(directory: Path, limit: str) -> None:
    """Save epoch 3 while no file may grow beyond ``limit`` bytes, and exit with the name of the error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        save(directory, 3)
    except OSError as error:
        print(errno.errorcode[error.errno or 0], flush=True)  # noqa: T201


if __name__ == "__main__":
    modes: dict[str, Callable[..., None]] = {"run": run, "die": die, "limited": limited}
    modes[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
