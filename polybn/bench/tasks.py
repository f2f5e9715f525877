"""The tasks that are timed, as plain data that is sent to the contenders as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

SHAPES = ((256, 6, 24, 24), (256, 16, 8, 8), (256, 120), (32, 64, 56, 56), (32, 256, 14, 14), (32, 64, 112, 112))
KINDS = ("forward", "derivative", "inference")
DECADES = (1, 3, 10, 32, 100, 316, 1000, 3162, 10000)
BATCH = 256
STEPS = 10
"""Steps of LeNet in one call."""

PASSES = {"forward": 2, "derivative": 5, "inference": 2}
"""Memory accesses per value: reading x and writing y; for the derivative also x, dy and dx."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to time."""

    kind: str
    """``"forward"``, ``"derivative"`` (forward and derivative), ``"inference"`` or ``"lenet"``."""
    shape: tuple[int, ...] = ()
    """The shape with channels second, also if the layout has them last."""
    dtype: str = "float32"
    layout: str = "second"
    """The place of the channel axis in memory: ``"second"`` or ``"last"``."""
    part: str = "shapes"
    """The part of the record that the task belongs to: ``"shapes"``, ``"growth"`` or ``"busy"``."""

    @property
    def size(self) -> int:
        """The number of bytes of x."""
        return math.prod(self.shape) * {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[self.dtype]

    @property
    def bytes(self) -> int:
        """The smallest number of bytes that must be read and written; 0 if it is not known."""
        return self.size * PASSES.get(self.kind, 0)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """Make the task from what :meth:`to_json` returned."""
        return cls(**{**data, "shape": tuple(data["shape"])})

    def __str__(self) -> str:
        words = [self.kind, "x".join(map(str, self.shape))]
        words += [self.dtype] * (self.dtype != "float32") + ["channels last"] * (self.layout == "last")
        return " ".join(filter(None, words))


LENET = Task(kind="lenet")
BUSY = Task(kind="lenet", part="busy")
OTHERS = tuple(
    Task(kind="derivative", shape=shape, layout=layout, dtype=dtype)
    for layout, dtype in (("last", "float32"), ("second", "float16"), ("second", "bfloat16"), ("second", "float64"))
    for shape in (SHAPES[0], SHAPES[3])
)
"""The other layout and the other dtypes, at a small and a large shape."""


def shapes(kind: str) -> list[Task]:
    """List the tasks of a kind, one for each shape."""
    return [Task(kind=kind, shape=shape) for shape in SHAPES]


def tasks(quick: bool, grow: bool = False) -> list[Task]:
    """List the tasks to time; ``quick`` leaves only the derivative and LeNet."""
    if quick:
        return [*shapes("derivative"), LENET]
    every = [task for kind in KINDS for task in shapes(kind)]
    return [*every, LENET, *OTHERS, *(growth() if grow else ())]


def growth() -> Iterator[Task]:
    """Yield tasks that vary N, C or H * W over four decades."""
    for place, shape in enumerate(((0, 16, 8), (8, 0, 16), (8, 16, 0))):
        for size in DECADES:
            yield Task(
                kind="derivative", part="growth", shape=tuple(size if i == place else n for i, n in enumerate(shape))
            )
