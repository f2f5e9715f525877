"""The arrays that contenders are timed on, drawn from one seed so that all contenders have the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from polybn.bench.tasks import BATCH, STEPS, Task

DRAWN = 1_000_003
"""The largest number of different values in an array: drawing more would take longer than the timing."""


def arrays(task: Task) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Make x, gamma, beta, running mean and variance in one list, and dy."""
    random = np.random.default_rng(0)
    x, dy = (np.resize(5 + 3 * random.standard_normal(DRAWN, np.float32), task.shape) for _ in range(2))
    if task.layout == "last":
        x, dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
    if task.dtype == "bfloat16":
        import ml_dtypes

        kind = np.dtype(ml_dtypes.bfloat16)
    else:
        kind = np.dtype(task.dtype)
    wide = np.float64 if task.dtype == "float64" else np.float32
    return [x.astype(kind), *(np.full(task.shape[1], v, wide) for v in (1, 0, 5, 9))], dy.astype(kind)


def images() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Make images and labels, a batch for each step."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (BATCH * STEPS, 1, 28, 28), dtype=np.uint8)
    return pixels, random.integers(0, 10, BATCH * STEPS, dtype=np.uint8)
