"""What users see during training: a progress bar with loss and speed, and a line per epoch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from polybn.lenet.program import Steps
    from polybn.lenet.runs import Epoch


class EpochDisplay:
    """A context whose methods are callbacks of :func:`polybn.train`; a console that is no terminal gets no bar."""

    def __init__(self, console: Console, epochs: int) -> None:
        self._console, self._epochs = console, epochs
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._epoch = 0

    def __enter__(self) -> EpochDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, images: int) -> None:
        """Show activity before the first step: a backend may compile for minutes."""
        self._images = images
        self._task = self._progress.add_task("preparing the first step", total=None, status="")
        self._progress.start()

    def on_steps(self, epoch: int, steps: Steps) -> None:
        """Move the bar; loss and speed are means over the epoch so far."""
        if epoch != self._epoch or self._task is None:
            self._begin(epoch)
        assert self._task is not None
        images = int(steps.images.sum())
        self._seen += images
        self._loss += float(steps.losses @ steps.images)
        speed = self._seen / max(time.perf_counter() - self._begun, 1e-9)
        status = f"{self._seen / self._images:>4.0%}  loss {self._loss / self._seen:.4f}  {speed:>7,.0f} images/s"
        self._progress.update(self._task, advance=images, status=status)

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
        self._epoch, self._seen, self._loss, self._begun = epoch, 0, 0.0, time.perf_counter()
        self._task = self._progress.add_task(f"epoch {epoch}/{self._epochs}", total=self._images, status="")
