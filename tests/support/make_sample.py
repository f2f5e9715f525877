"""Make polybn/lenet/samples/ from the full data: python tests/support/make_sample.py DIRECTORY polybn/lenet/samples.

The recipe, which tests/test_fashion_mnist.py repeats and compares: of each class, the first 600 training
images and the first 100 test images, ordered by their rank within their class and then by their place in
the full set. So every ten consecutive images are one of each class, and no generator of random numbers
is part of the recipe.
"""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polybn.lenet import fashion_mnist
from polybn.lenet.editions import SAMPLE
from polybn.lenet.fashion_mnist import Dataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

PER_CLASS = {"train": 600, "test": 100}


def choose(labels: NDArray[np.uint8], per_class: int) -> NDArray[np.int64]:
    """Return the indices of the chosen images, in their new order."""
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        rank[places] = np.arange(len(places))
    chosen = np.flatnonzero(rank < per_class)
    return chosen[np.lexsort((chosen, rank[chosen]))]


def sample(full: Dataset) -> Dataset:
    """Return the subset."""
    train = choose(full.train_labels, PER_CLASS["train"])
    test = choose(full.test_labels, PER_CLASS["test"])
    return Dataset(
        full.train_images[train], full.train_labels[train], full.test_images[test], full.test_labels[test], "recipe"
    )


def idx_gzip(values: NDArray[np.uint8]) -> bytes:
    """Return a gzip-compressed IDX file without a time or a name in its header."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 0x08, values.ndim, *values.shape)
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(header + values.tobytes()) + packer.flush()


def main(source: str, target: str) -> None:
    """Write the four files."""
    subset = sample(fashion_mnist.load(source))
    arrays = (subset.train_images[:, 0], subset.train_labels, subset.test_images[:, 0], subset.test_labels)
    for content, values in zip(SAMPLE.contents, arrays, strict=True):
        Path(target, f"{content.name}.gz").write_bytes(idx_gzip(values))


if __name__ == "__main__":
    main(*sys.argv[1:])
