"""What people see while a run goes on: a progress bar with loss and speed, and a line per epoch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from polybn.lenet.program import Steps
    from polybn.lenet.training import Epoch


class EpochDisplay:
    """A context in which ``on_steps`` and ``on_epoch`` of :func:`polybn.train` draw on a console.

    Parameters
    ----------
    console : rich.console.Console
        Where it is not a terminal, only the lines of the epochs are written.
    epochs : int
        Number of epochs in all.
    images : int
        Number of training images in an epoch.
    """

    def __init__(self, console: Console, epochs: int, images: int) -> None:
        self._console, self._epochs, self._images = console, epochs, images
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f}%  loss {task.fields[loss]:.4f}  {task.fields[speed]:>7,.0f} images/s"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._epoch = 0

    def __enter__(self) -> EpochDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_steps(self, epoch: int, steps: Steps) -> None:
        """Move the bar; loss and speed are means over the epoch so far."""
        if epoch != self._epoch or self._task is None:
            self._begin(epoch)
        assert self._task is not None
        images = int(steps.images.sum())
        self._seen += images
        self._loss += float(steps.losses @ steps.images)
        speed = self._seen / max(time.perf_counter() - self._start, 1e-9)
        self._progress.update(self._task, advance=images, loss=self._loss / self._seen, speed=speed)

    def on_epoch(self, epoch: Epoch) -> None:
        """Write the line of a finished epoch."""
        self._console.print(
            f"epoch {epoch.epoch:>{len(str(self._epochs))}}, loss {epoch.loss:.4f}, "
            f"train acc {epoch.train_accuracy:.3f}, test acc {epoch.test_accuracy:.3f}, time {epoch.seconds:.1f} s",
            highlight=False,
        )

    def _begin(self, epoch: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._epoch, self._seen, self._loss, self._start = epoch, 0, 0.0, time.perf_counter()
        self._task = self._progress.add_task(
            "", total=self._images, epoch=epoch, epochs=self._epochs, loss=float("nan"), speed=0.0
        )
