"""What the workers of a Dask cluster run: they import this module, and with it nothing else of the tests."""

from __future__ import annotations

from typing import Any

import numpy as np


def generated(block_info: Any = None) -> Any:
    """Make a block from its place alone, so that it can be made again, and quickly."""
    (place, *_), shape = block_info[None]["chunk-location"], block_info[None]["chunk-shape"]
    table = np.random.default_rng(place).standard_normal(1021, np.float32) * 3 + np.float32(place)
    mean = np.float32(1000) * (1 + np.arange(shape[1], dtype=np.float32))
    return np.resize(table, shape) + mean[:, None]
