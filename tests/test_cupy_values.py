"""CuPy answers errors that depend on values with NaN, because no call may wait for the device. Emulated or on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polybn
from polybn.conformance.strategies import sample
from tests.support.cases import run

cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_emulated.py runs this emulated")
IMPOSSIBLE = (-1.5, -1e-45, float("nan"), float("inf"), float("-inf"))


@pytest.mark.clause("S5", "S9")
@pytest.mark.parametrize("value", IMPOSSIBLE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_impossible_variance_spoils_its_channel(dtype: str, value: float) -> None:
    """y and dx of the channel are NaN, and no other channel changes; the same holds for fold."""
    case = sample(3, dtype, (7, 5, 3), training=False)
    assert case.running_var is not None
    spoiled = case.running_var.copy()
    spoiled[2] = value
    b = polybn.backend("cupy")
    got, base = run(b, case._replace(running_var=spoiled)), run(b, case)
    for name in ("y", "dx"):
        array, other = getattr(got, name), getattr(base, name)
        assert np.isnan(array[:, 2]).all(), name
        assert np.array_equal(np.delete(array, 2, 1), np.delete(other, 2, 1)), name
    vectors = [b.asarray(v) for v in (case.gamma, case.beta, case.running_mean, spoiled) if v is not None]
    for part in polybn.fold(*vectors):
        assert np.flatnonzero(np.isnan(b.to_numpy(part))).tolist() == [2]


@pytest.mark.clause("S4", "S12")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_unbiased_variance_of_one_value_is_nan(dtype: str) -> None:
    """A channel with one kept value has y = beta there, dx 0, and an unbiased running variance of NaN."""
    case = sample(6, dtype, (7, 5, 3), momentum=0.5)
    where = np.ones(case.x.shape, bool)
    where[:, 2] = False
    where[4, 2, 1] = True
    b = polybn.backend("cupy")
    biased = run(b, case._replace(where=where))
    got = run(b, case._replace(where=where, running_variance="unbiased"))
    assert got.running_var is not None
    assert biased.running_var is not None
    assert case.running_var is not None
    assert case.beta is not None
    assert np.flatnonzero(np.isnan(got.running_var)).tolist() == [2]
    assert biased.running_var[2] == case.running_var[2] / 2
    assert np.array_equal(got.y, biased.y)
    assert got.y[4, 2, 1] == case.beta[2].astype(case.x.dtype)
    assert np.count_nonzero(got.y[:, 2]) == 1
    assert not got.dx[:, 2].any()


def test_no_values_come_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, inference and derivatives neither copy to the host nor wait for the device."""
    case = sample(1, "float32", (7, 3, 5))
    b = polybn.backend("cupy")
    arrays = [b.asarray(a) for a in case.arrays().values() if a is not None]
    dy, mask = b.asarray(case.dy), b.asarray(case.x > 0)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the host waited for the device")

    if isinstance(cupy.ndarray, type) and "emulated" in cupy.__version__:
        monkeypatch.setattr(cupy.ndarray, "get", refuse)
    for name in ("Stream", "Device"):
        if "emulated" in cupy.__version__:
            monkeypatch.setattr(getattr(cupy.cuda, name), "synchronize", refuse)
    for training in (True, False):
        for where in (None, mask):
            _, pullback = polybn.batch_norm_vjp(*arrays, training=training, where=where, running_variance="unbiased")
            pullback(dy)
    polybn.merge_moments(polybn.moments(arrays[0]), polybn.moments(arrays[0]))
    polybn.fold(*arrays[1:])
