"""Plans keep the limits of a launch: memory per block, blocks that are resident together, vectors that fit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_kernels.py runs this emulated")

DEVICES = ((48, 20), (64, 40), (96, 80), (99, 128), (163, 108), (227, 132), (227, 148))
"""Devices from Pascal to Blackwell: kilobytes of shared memory that a block may use, and multiprocessors."""
ITEMS = {2: 8, 4: 4, 8: 2}
"""For the bytes of a value, how many values are moved at once."""


@given(
    device=st.sampled_from(DEVICES), name=st.sampled_from(("forward", "backward", "second")),
    itemsize=st.sampled_from(sorted(ITEMS)), channels=st.integers(1, 5000), count=st.integers(1, 1 << 36),
    inner=st.booleans(), masked=st.booleans(),
)  # fmt: skip
def test_every_plan_can_be_launched(
    device: tuple[int, int], name: str, itemsize: int, channels: int, count: int, inner: bool, masked: bool
) -> None:
    from polybn_cupy import calls, plan
    from polybn_cupy.layout import Layout

    kilobytes, multiprocessors = device
    limit = kilobytes << 10

    def resident(shared: int) -> int:
        return min(3, (limit + 1024) // (shared + 1024))

    strides: Any = (1, channels) if inner else (count, 1)
    layout = Layout(channels, count, (1, count), (strides[0],), ((0, strides[1]),))
    about = plan.Device(multiprocessors, limit)
    tiling = plan.divide(layout, itemsize, getattr(calls, name.upper()), about, resident, masked=masked)
    assert tiling.shared_bytes <= limit
    assert tiling.members * tiling.rounds * tiling.chunks * plan.CHUNK >= count
    assert tiling.blocks % tiling.members == 0
    assert tiling.blocks >= tiling.members
    if tiling.members > 1:
        assert tiling.blocks <= resident(tiling.shared_bytes) * multiprocessors
    for cut in (tiling, plan.cut(layout, itemsize, calls.INFERENCE, about, resident, masked=masked)):
        assert cut.shared_bytes <= limit
        if layout.channels_inner and channels % ITEMS[itemsize] == 0:
            assert cut.channels % ITEMS[itemsize] == 0, "a vector leaves the tile"


@given(row=st.integers(2, (1 << 30) - 1), number=st.integers(0, (1 << 31) - 1))
def test_a_row_is_found_without_a_division(row: int, number: int) -> None:
    """The multiplier fits 32 bits, and its product's upper half, shifted, is the quotient."""
    from polybn_cupy.layout import Layout

    _, magic, shift = Layout(1, row, (1, row), (1,), ((0, 1),)).divisor
    assert 0 <= shift < 32
    assert magic < 1 << 32
    for n in (number, number // row * row, max(number // row * row - 1, 0)):
        assert (n * magic >> 32) >> shift == n // row
