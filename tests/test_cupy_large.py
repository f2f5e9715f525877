"""More than 2^31 values, and channels too large for any group of blocks. On a GPU, or emulated with fewer values.

The batch repeats one member, so it has the statistics and the results of that member, up to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polybn

cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_kernels.py runs this emulated")
EMULATED = "emulated" in cupy.__version__
CHANNELS, POSITIONS = 3, 4099 if EMULATED else 8209
MEMBERS = 40 if EMULATED else 90_000
BYTES = 12 * MEMBERS * CHANNELS * POSITIONS

if not EMULATED:
    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < BYTES:
        pytest.skip(f"it takes {BYTES >> 30} GB of a GPU's memory; {free >> 30} are free", allow_module_level=True)


def many(member: Any, *, channels_last: bool) -> Any:
    """Repeat one member of a batch, as ``(N, C, L)`` or ``(N, L, C)`` in memory."""
    order = (1, 0) if channels_last else (0, 1)
    whole = cupy.empty((MEMBERS, *(member.shape[i] for i in order)), np.float16)
    whole[...] = cupy.array(np.ascontiguousarray(member.transpose(order)))
    return whole.transpose(0, 2, 1) if channels_last else whole


def first_of(whole: Any) -> Any:
    """Assert that all members are equal bit by bit; return the first."""
    first = whole[0].get()
    for start in range(0, MEMBERS, 10_000):
        part = whole[start : start + 10_000]
        if EMULATED:
            assert (part.get() == first).all()
        else:
            assert bool((part == whole[0]).all())
    return first


@pytest.mark.clause("S2", "S13")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_one_member_over_and_over(training: bool, channels_last: bool) -> None:
    """y and dx are equal for all members, and agree with float64 arithmetic on one of them."""
    random = np.random.default_rng(5)
    x, dy = ((random.normal(size=(CHANNELS, POSITIONS)) * 2 + 3).astype(np.float16) for _ in range(2))
    state = [
        np.array([0.5, 1.5, -2.0]),
        np.array([1.0, 0.0, 3.0]),
        np.array([3.0, 2.5, 3.5]),
        np.array([4.0, 3.0, 5.0]),
    ]
    expected, pull = polybn.batch_norm_vjp(x[None].astype(float), *state, training=training)
    of_one = pull(dy[None].astype(float))
    vectors = [cupy.array(value.astype(np.float32)) for value in state]
    result, pullback = polybn.batch_norm_vjp(many(x, channels_last=channels_last), *vectors, training=training)
    y = first_of(result.y)
    assert np.abs(y - expected.y[0]).max() <= 2.0**-10 * np.abs(expected.y).max()
    assert result.running_var is not None
    assert expected.running_var is not None
    assert np.abs(result.running_var.get() - expected.running_var).max() <= 1e-5
    gradients = pullback(many(dy, channels_last=channels_last))
    dx = first_of(gradients.x)
    assert np.abs(dx - of_one.x[0]).max() <= 2.0**-10 * np.abs(of_one.x).max()
    assert gradients.gamma is not None
    assert of_one.gamma is not None
    assert (np.abs(gradients.gamma.get() / MEMBERS - of_one.gamma) <= 1e-5 * np.abs(of_one.gamma).max()).all()
