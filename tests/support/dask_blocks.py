"""What the workers of a Dask cluster run: they import this module, and with it nothing else of the tests."""

from __future__ import annotations

from typing import Any

import numpy as np


def generated(block_info: Any = None) -> Any:
    """Make a block from its place alone, so that it can be made again."""
    place, shape = block_info[None]["chunk-location"], block_info[None]["chunk-shape"]
    rng = np.random.default_rng(list(place))
    block = rng.standard_normal(shape, np.float32)
    block *= 3
    block += np.float32(1000) * (1 + np.arange(shape[1], dtype=np.float32))[:, None] + np.float32(place[0])
    return block
