"""What is timed: plain data that travels to the contenders as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

SHAPES = ((256, 6, 24, 24), (256, 16, 8, 8), (256, 120), (32, 64, 56, 56), (32, 256, 14, 14), (32, 64, 112, 112))
KINDS = ("forward", "derivative", "inference")
DTYPES = ("float32", "float16", "bfloat16", "float64")
DECADES = (1, 3, 10, 32, 100, 316, 1000, 3162, 10000)
BATCH = 256
STEPS = 10
"""Steps of LeNet in one call."""

PASSES = {"forward": 2, "derivative": 5, "inference": 2}
"""How often memory must be read or written for each value: x and y; with a derivative x, dy and dx once more."""
OPERATIONS = {"forward": 5, "derivative": 14, "inference": 2}
"""Additions and multiplications for each value, as the formulas have them."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to time."""

    kind: str
    """``"forward"``, ``"derivative"`` (forward and derivative), ``"inference"``, ``"lenet"`` or ``"multiply"``."""
    shape: tuple[int, ...] = ()
    """Shape with channels second, whatever the layout."""
    dtype: str = "float32"
    layout: str = "second"
    """Where the channels lie in memory: ``"second"`` or ``"last"``."""
    memory: str = "fresh"
    """``"fresh"``, or ``"out"`` for results in arrays that are handed in."""
    part: str = "shapes"
    """The part of the record that it belongs to: ``"shapes"``, ``"growth"`` or ``"busy"``."""

    @property
    def bytes(self) -> int:
        """Return the least number of bytes that must move; 0 where it is not known."""
        size = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[self.dtype]
        return math.prod(self.shape) * size * PASSES.get(self.kind, 0)

    @property
    def operations(self) -> int:
        """Return the number of additions and multiplications; 0 where it is not known."""
        return math.prod(self.shape) * OPERATIONS.get(self.kind, 0)

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
        return " ".join([*filter(None, words), *["out="] * (self.memory == "out")])


LENET = Task(kind="lenet")
MULTIPLY = Task(kind="multiply", shape=(1024, 1024))


def tasks(quick: bool) -> Iterator[Task]:
    """List what is timed; quickly, three shapes with a derivative and LeNet."""
    if quick:
        yield from (Task(kind="derivative", shape=shape) for shape in SHAPES[:3])
        yield LENET
        return
    reference = [Task(kind=kind, shape=shape) for kind in KINDS for shape in SHAPES]
    yield from reference
    yield LENET
    yield MULTIPLY
    yield from (replace(task, memory="out") for task in reference)
    yield from (replace(task, layout="last") for task in reference if len(task.shape) > 2)
    yield from (replace(task, dtype=dtype) for dtype in DTYPES[1:] for task in reference)
    yield from growth()


def growth() -> Iterator[Task]:
    """List sizes over four decades, in N, C and H * W, one at a time."""
    for place, shape in enumerate(((0, 16, 8), (8, 0, 16), (8, 16, 0))):
        for size in DECADES:
            yield Task(
                kind="derivative", part="growth", shape=tuple(size if i == place else n for i, n in enumerate(shape))
            )
