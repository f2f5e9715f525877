"""What is timed: plain data that travels to the contenders as JSON."""

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
"""How often memory must be read or written for each value: x and y; with a derivative x, dy and dx once more."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to time."""

    kind: str
    """``"forward"``, ``"derivative"`` (forward and derivative), ``"inference"`` or ``"lenet"``."""
    shape: tuple[int, ...] = ()
    """Shape with channels second, whatever the layout."""
    dtype: str = "float32"
    layout: str = "second"
    """Where the channels lie in memory: ``"second"`` or ``"last"``."""
    part: str = "shapes"
    """The part of the record that it belongs to: ``"shapes"``, ``"growth"`` or ``"busy"``."""

    @property
    def size(self) -> int:
        """Return the bytes of x."""
        return math.prod(self.shape) * {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[self.dtype]

    @property
    def bytes(self) -> int:
        """Return the least number of bytes that must move; 0 where it is not known."""
        return self.size * PASSES.get(self.kind, 0)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """Return the task that plain data describes."""
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
    """List a kind at all shapes."""
    return [Task(kind=kind, shape=shape) for shape in SHAPES]


def tasks(quick: bool, grow: bool = False) -> list[Task]:
    """List what is timed; quickly, the derivative and LeNet."""
    if quick:
        return [*shapes("derivative"), LENET]
    every = [task for kind in KINDS for task in shapes(kind)]
    return [*every, LENET, *OTHERS, *(growth() if grow else ())]


def growth() -> Iterator[Task]:
    """List sizes over four decades, in N, C and H * W, one at a time."""
    for place, shape in enumerate(((0, 16, 8), (8, 0, 16), (8, 16, 0))):
        for size in DECADES:
            yield Task(
                kind="derivative", part="growth", shape=tuple(size if i == place else n for i, n in enumerate(shape))
            )
