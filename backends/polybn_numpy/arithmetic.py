"""The protocol of the two implementations of a network: compiled kernels, and plain NumPy."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Data(NamedTuple):
    """Images ``(N, C, H, W)`` and labels ``(N,)``, as contiguous bytes."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


class Arithmetic(Protocol):
    """An implementation of a network; it updates the arrays of the program's state in place."""

    def step(self, data: Data, chosen: NDArray[np.int64], rate: np.float32) -> tuple[float, int]:
        """Take a step of SGD on a batch; return its mean loss and the number of right labels."""

    def score(self, data: Data, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return class scores ``(n, classes)`` in inference mode, in a new array."""
