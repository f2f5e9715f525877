"""Clause S9: NaN and infinity stay in their channel."""

from __future__ import annotations

import math

import numpy as np
import pytest

import polybn
from polybn.conformance.cases import Array, equal
from polybn.conformance.strategies import sample
from tests.support.cases import assert_others_equal, run

POISON = [
    pytest.param(values, id="-".join(map(str, values)))
    for values in ((math.nan,), (math.inf,), (-math.inf,), (math.inf, -math.inf), (math.inf, math.nan))
]


def poison(array: Array, channel: int, values: tuple[float, ...]) -> Array:
    """Put values into a channel of an array with channel axis 1, at irregular places."""
    spoiled = array.copy()
    for i, value in enumerate(values):
        spoiled[(2 * i + 1) % len(array), channel, i] = value
    return spoiled


@pytest.mark.clause("S9")
@pytest.mark.parametrize("values", POISON)
@pytest.mark.parametrize("training", [True, False])
def test_nan_and_infinity_in_dy(backend: str, values: tuple[float, ...], training: bool) -> None:
    """The channel's dgamma, dbeta and, in training, dx are not finite; no other channel changes."""
    b, case = polybn.backend(backend), sample(4, "float32", (5, 7, 3), training=training)
    got, base = run(b, case._replace(dy=poison(case.dy, 2, values))), run(b, case)
    assert_others_equal(got, base, 2)
    assert equal(got.y, base.y)
    assert equal(got.running_mean, base.running_mean)
    assert equal(got.running_var, base.running_var)
    assert got.dgamma is not None
    assert got.dbeta is not None
    assert not np.isfinite([got.dgamma[2], got.dbeta[2]]).any()
    if training:
        assert not np.isfinite(got.dx[:, 2]).any()


@pytest.mark.clause("S5", "S9")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_in_inference(backend: str, value: float) -> None:
    """In inference a NaN or an infinity in x spoils its own value of y, and no other channel."""
    b, case = polybn.backend(backend), sample(5, "float32", (5, 7, 3), training=False)
    got = run(b, case._replace(x=poison(case.x, 2, (value,))))
    assert_others_equal(got, run(b, case), 2)
    assert not np.isfinite(got.y[1, 2, 0])
    assert got.dgamma is not None
    assert not np.isfinite(got.dgamma[2])


@pytest.mark.clause("S9")
@pytest.mark.parametrize("name", ["gamma", "beta", "running_mean", "running_var"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_in_vectors(backend: str, name: str, value: float) -> None:
    """A NaN or an infinity in a parameter or an old statistic stays in its channel."""
    b, case = polybn.backend(backend), sample(6, "float32", (5, 7, 3))
    vector = getattr(case, name).copy()
    vector[2] = value
    got, base = run(b, case._replace(**{name: vector})), run(b, case)
    assert_others_equal(got, base, 2)
    if name in ("gamma", "beta"):
        assert not np.isfinite(got.y[:, 2]).any()
        assert equal(got.running_mean, base.running_mean)
    else:
        assert equal(got.y, base.y)
        assert np.array_equal(getattr(got, name)[2], value, equal_nan=True)
