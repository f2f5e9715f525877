"""Channel statistics that people have reported as wrong elsewhere, each with the exact right value.

Where a report needs hundreds of megabytes, a small block is repeated without copies, by strides of 0: the values, their
number and their order are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polybn
from polybn import Statistics

Array = np.ndarray[Any, Any]


@pytest.fixture
def rng() -> np.random.Generator:
    """Draw the same numbers for a test whatever ran before it."""
    return np.random.default_rng(5)


def repeated(block: Array, times: int) -> Array:
    """Stand for ``times`` copies of a block, one after another."""
    return np.broadcast_to(block, (times, *block.shape))


def right(block: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of the channels, which come last, in long double."""
    rows = block.reshape(-1, block.shape[-1]).astype(np.longdouble)
    mean = rows.mean(axis=0)
    return mean, np.sqrt(((rows - mean) ** 2).mean(axis=0))


def assert_right(x: Array, block: Array, unit: float) -> None:
    """Compare with what one block of many equal ones has, to a few roundings."""
    mean, std = right(block)
    found = polybn.moments(x, axis=-1)
    assert np.all(np.abs(found.mean - mean) <= 4 * unit * np.abs(mean))
    assert np.all(np.abs(np.sqrt(found.variance()) - std) <= 8 * unit * std)


def test_images_of_bytes_in_float32(rng: np.random.Generator) -> None:
    """numpy/numpy#11331: 1,024 images of 256 by 256 in float32 had a mean of 64 in each channel, not 127.5."""
    block = (rng.random((256, 256, 3)) * 255).astype(np.float32)
    x = repeated(block, 1024)
    assert np.allclose(right(block)[0], 127.5, atol=0.5)
    assert_right(x, block, 2.0**-24)


def test_ones_are_ones() -> None:
    """numpy/numpy#22956: the mean of 20 million pairs of ones was 0.8388608."""
    x = np.broadcast_to(np.float32(1), (20_000_000, 2))
    found = polybn.moments(x)
    assert found.mean.tolist() == [1, 1]
    assert found.m2.tolist() == [0, 0]
    assert found.count.tolist() == [20_000_000] * 2


@pytest.mark.parametrize("n", [2**25, 3 * 2**24, 2**26])
def test_two_columns_of_float32(rng: np.random.Generator, n: int) -> None:
    """scikit-learn/scikit-learn#12333: means of uniform numbers were 0.5, 0.33 and 0.25, the longer the smaller."""
    block = rng.random((2**12, 2)).astype(np.float32)
    assert np.allclose(right(block)[0], 0.5, atol=0.05)
    assert_right(repeated(block, n // 2**12), block, 2.0**-24)


def test_float64_images_need_no_conversion(rng: np.random.Generator) -> None:
    """keras-team/keras#7340: float64 images were brought to float32, and all channels had the mean 0.166."""
    block = rng.random((280, 280, 3)) * (0.9, 1.0, 1.1) + (0.1, 0.1, 0.2)
    x = repeated(block, 1288)
    assert_right(x, block, 2.0**-53)
    assert_right(repeated(block.astype(np.float32), 1288), block.astype(np.float32), 2.0**-24)


def test_bytes_are_squared_without_overflow(rng: np.random.Generator) -> None:
    """huggingface/lerobot#3697: squares of bytes wrapped around, and the standard deviation of images was 0."""
    images = rng.integers(0, 256, (10, 64, 64, 3), np.uint8)
    streamed = Statistics(axis=-1)
    for image in images:
        streamed.update(image)
    mean, std = right(images)
    assert np.all(std > 70)
    for found in (polybn.moments(images, axis=-1), streamed.moments):
        assert np.allclose(found.mean.astype(float), mean.astype(float), rtol=1e-15, atol=0)
        assert np.allclose(np.sqrt(found.variance()), std.astype(float), rtol=1e-15, atol=0)


def test_vectorized_and_channel_by_channel_agree(rng: np.random.Generator) -> None:
    """CAREamics/careamics#453: statistics over all axes at once differed from those of each channel alone."""
    block = (1000 + rng.normal(0, 3, (4, 512, 128))).astype(np.float32)
    x = repeated(block, 64)
    together = polybn.moments(np.moveaxis(x, 1, -1), axis=-1)
    streamed = Statistics(axis=1)
    for part in x:
        streamed.update(part[None])
    for c in range(4):
        alone = polybn.moments(np.ascontiguousarray(x[:, c])[..., None], axis=-1)
        assert together.mean[c] == alone.mean[0]
        assert together.m2[c] == alone.m2[0]
        assert abs(streamed.mean[c] - alone.mean[0]) <= 2.0**-24 * 1001
        assert abs(streamed.variance()[c] / alone.variance()[0] - 1) <= 2.0**-22


def test_variance_of_float32_far_from_zero(rng: np.random.Generator) -> None:
    """scverse/fast-array-utils#128: the mean of squares less the square of the mean, in float32, loses the variance."""
    x = (4096 + rng.normal(0, 0.5, (100_003, 3))).astype(np.float32)
    textbook = (x**2).mean(axis=0, dtype=np.float64) - x.mean(axis=0, dtype=np.float64) ** 2
    _, std = right(x)
    assert np.all(np.abs(textbook / (std**2).astype(float) - 1) > 1e-4)  # what has been reported
    assert_right(x, x, 2.0**-24)
