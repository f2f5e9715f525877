"""What computes a network: compiled kernels or plain NumPy, on the same data and in place on the same arrays."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Data(NamedTuple):
    """Images ``(N, C, H, W)`` and labels ``(N,)``, as contiguous bytes."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


class Arithmetic(Protocol):
    """Steps and scores of a network; it works on the arrays of the program's state in place."""

    def step(self, data: Data, chosen: NDArray[np.int64], rate: np.float32) -> tuple[float, int]:
        """Move the parameters along the gradient of a batch; return its mean loss and how many labels were right."""

    def score(self, data: Data, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return class scores ``(n, classes)`` in inference mode, in memory of their own."""
