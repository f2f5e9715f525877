"""Clause S12: with ``where``, everything is as if the other values had been deleted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import polybn
from polybn.conformance.cases import DTYPES, Array, Case, equal, rows, same, statistics_dtype
from polybn.conformance.certify import certify
from polybn.conformance.lattice import lattice
from polybn.conformance.strategies import sample
from polybn.spec import RunningVariance
from tests.support.cases import run
from tests.support.drawing import cases, forms, narrowed


def random_mask(case: Case, seed: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(case.x.shape) < share


def channel_masks(case: Case) -> Array:
    return rows(np.broadcast_to(case.where if case.where is not None else True, case.x.shape), case.axis) > 0


def spoiled(case: Case, value: float) -> Case:
    """Put a value into all deleted places of x and dy."""
    assert case.where is not None
    x, dy = (np.where(case.where, a, a.dtype.type(value)).astype(a.dtype) for a in (case.x, case.dy))
    return case._replace(x=x, dy=dy)


@pytest.mark.clause("S12", "S13")
@given(case=cases(), seed=st.integers(0, 2**32), share=st.sampled_from((0.3, 0.6, 0.9)))
def test_as_if_deleted(backend: str, case: Case, seed: int, share: float) -> None:
    """y, statistics and gradients are within the bounds for the remaining values, and 0 in deleted places."""
    case = case._replace(where=random_mask(case, seed, share))
    kept, x = channel_masks(case), rows(case.x, case.axis)
    # The bounds are for channels that vary; single values and constants have their own tests.
    assume(all(not keep.any() or np.ptp(values[keep]) > 0 for values, keep in zip(x, kept, strict=True)))
    outcome = run(polybn.backend(backend), spoiled(case, math.nan))
    certify(case, outcome)
    for c in np.flatnonzero(~kept.any(axis=1)):
        assert_untouched(case, outcome._asdict(), int(c))


def assert_untouched(case: Case, outcome: dict[str, Array | None], c: int) -> None:
    """Assert that a channel without kept values has its old running statistics and zero gradients."""
    for name in ("running_mean", "running_var"):
        old, new = getattr(case, name), outcome[name]
        if old is not None:
            assert new is not None
            assert equal(new[c : c + 1], old[c : c + 1]), name
    for name in ("dgamma", "dbeta", "drunning_mean", "drunning_var"):
        vector = outcome[name]
        assert vector is None or vector[c] == 0, name


@pytest.mark.clause("S12", "S13")
@given(
    seed=st.integers(0, 2**32),
    form=forms(tuple(DTYPES), (0, 1, 2), (True, False, False, True, True)),
    value=st.sampled_from((math.nan, math.inf, -math.inf, 6e4)),
)
def test_exactly_as_if_deleted(backend: str, seed: int, form: tuple[str, int, bool], value: float) -> None:
    """On the lattice the result is the short one's to the bit: half of the values are left, with NaN between them."""
    dtype, axis, training = form
    b, rng = polybn.backend(backend), np.random.default_rng(seed)
    short = lattice(seed, dtype, 5, (4, 8), 0, offset=17).case
    # In inference, too, the root is a power of two: 5 + 11 = 16.
    short = short._replace(training=training, running_var=np.full(5, 5, statistics_dtype(short.x)))
    places = np.sort(np.stack([rng.permutation(64)[:32] for _ in range(5)]), axis=1)
    where = np.zeros((5, 64), bool)
    np.put_along_axis(where, places, True, axis=1)
    x, dy = (np.full((5, 64), value).astype(short.x.dtype) for _ in range(2))
    x[where], dy[where] = short.x.ravel(), short.dy.ravel()
    shape = (5, 4, 16)
    long = short._replace(x=x.reshape(shape), dy=dy.reshape(shape), where=where.reshape(shape)).moved(axis)
    got, base = run(b, long), run(b, short)
    for name, whole in base._asdict().items():
        if name not in ("y", "dx"):
            assert equal(getattr(got, name), whole), name
    for name in ("y", "dx"):
        array, exact = rows(getattr(got, name), axis), rows(getattr(base, name), 0)
        assert np.array_equal(array[where].reshape(5, 32), exact), name
        assert not array[~where].any(), name


@pytest.mark.clause("S12")
@given(case=cases(), seed=st.integers(0, 2**32))
def test_deleted_values_are_not_read(backend: str, case: Case, seed: int) -> None:
    """No value in a deleted place of x or dy changes a bit of the result."""
    b = polybn.backend(backend)
    case = case._replace(where=random_mask(case, seed, 0.7), running_variance="biased")
    base = run(b, spoiled(case, 0.0))
    for value in (math.nan, math.inf, -math.inf, 3e38, -1.0):
        with np.errstate(over="ignore"):
            other = spoiled(case, value)
        assert same(run(b, other), base), value


@pytest.mark.clause("S12")
@given(case=cases())
def test_all_true(backend: str, case: Case) -> None:
    """A mask that deletes nothing gives the bits of a call without a mask."""
    b = polybn.backend(backend)
    base = run(b, case)
    short = () if case.x.ndim % 2 else (1,) * case.x.ndim
    for shape in (case.x.shape, short):
        assert same(run(b, case._replace(where=np.ones(shape, bool))), base)


@pytest.mark.clause("S12")
@given(case=cases(), data=st.data())
def test_masks_broadcast(backend: str, case: Case, data: st.DataObject) -> None:
    """A mask with fewer or shorter axes gives the bits of its broadcast."""
    b, rank = polybn.backend(backend), case.x.ndim
    long = data.draw(
        narrowed(st.lists(st.booleans(), min_size=rank, max_size=rank), [[True, False, True, False, True]])
    )
    first = data.draw(narrowed(st.integers(0, rank), [0, rank - 2]))
    shape = [n if whole else 1 for n, whole in zip(case.x.shape, long, strict=False)][first:]
    mask = np.random.default_rng(data.draw(st.integers(0, 2**32))).random(tuple(shape)) < 0.7
    case = case._replace(running_variance="biased")
    whole = np.ascontiguousarray(np.broadcast_to(mask, case.x.shape))
    assert same(run(b, case._replace(where=mask)), run(b, case._replace(where=whole)))


@pytest.mark.clause("S12", "S13")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["biased", "unbiased"])
def test_channels_with_nothing_left(backend: str, dtype: str, training: bool, kind: RunningVariance) -> None:
    """A channel without kept values keeps the bits of its running statistics, and has y, dx and gradients of 0."""
    b, case = polybn.backend(backend), sample(5, dtype, (7, 5, 3), training=training, eps=0.0)
    where = np.ones(case.x.shape, bool)
    where[:, [1, 4]] = False
    case = case._replace(where=where, running_variance=kind)
    outcome = run(b, spoiled(case, math.nan))
    certify(case, outcome)
    for c in (1, 4):
        assert_untouched(case, outcome._asdict(), c)
        assert not outcome.y[:, c].any()
        assert not outcome.dx[:, c].any()
    nothing = run(b, case._replace(where=np.zeros((), bool)))
    assert not nothing.y.any()
    for c in range(5):
        assert_untouched(case, nothing._asdict(), c)


@pytest.mark.clause("S11", "S12")
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_with_one_value_left(backend: str, dtype: str) -> None:
    """A single kept value has y = beta, dx = 0 and variance 0; ``unbiased`` is an error in training."""
    b, case = polybn.backend(backend), sample(6, dtype, (7, 5, 3), momentum=0.5)
    where = np.ones(case.x.shape, bool)
    where[:, 2] = False
    where[4, 2, 1] = True
    case = case._replace(where=where)
    outcome, half = run(b, spoiled(case, math.nan)), statistics_dtype(case.x).type(0.5)
    assert case.beta is not None
    assert case.running_var is not None
    assert outcome.running_var is not None
    assert outcome.y[4, 2, 1] == case.beta[2].astype(case.x.dtype)
    assert np.count_nonzero(outcome.y[:, 2]) == 1
    assert not outcome.dx[:, 2].any()
    assert outcome.running_var[2] == half * case.running_var[2]
    with pytest.raises(polybn.DomainError, match="channel 2"):
        run(b, case._replace(running_variance="unbiased"))
    run(b, case._replace(running_variance="unbiased", training=False))


@pytest.mark.clause("S8", "S12")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [7, 513, 4099])
def test_constant_where_it_counts(backend: str, dtype: str, m: int) -> None:
    """A channel whose kept values are equal is constant, with exactly y = beta there, and v = 0."""
    b, case = polybn.backend(backend), sample(7, dtype, (m, 3), momentum=0.0)
    where = random_mask(case, 7, 0.7)
    x = np.where(where, 1234.567, case.x.astype(float)).astype(case.x.dtype)
    outcome = run(b, case._replace(x=x, where=where))
    assert case.beta is not None
    assert np.array_equal(outcome.y, np.where(where, case.beta, 0).astype(x.dtype))
    assert outcome.running_var is not None
    assert not outcome.running_var.any()


@pytest.mark.clause("S9", "S12")
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_nan_that_is_left(backend: str, beta: bool, training: bool) -> None:
    """A NaN that takes part spoils its channel, but y and dx are 0 in deleted places, there as elsewhere."""
    b, case = polybn.backend(backend), sample(8, "float32", (7, 5, 3), training=training)
    where = random_mask(case, 8, 0.6)
    where[0, 2] = True
    x, dy = case.x.copy(), case.dy.copy()
    x[0, 2, 1] = dy[0, 2, 0] = math.nan
    outcome = run(b, case._replace(x=x, dy=dy, where=where, beta=case.beta if beta else None))
    assert np.isnan(outcome.y[0, 2, 1])
    assert not outcome.y[~where].any()
    assert not outcome.dx[~where].any()


@pytest.mark.clause("S9", "S12")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_in_deleted_places(backend: str, value: float) -> None:
    """y and dx are 0 in deleted places whatever gamma and beta hold."""
    b, case = polybn.backend(backend), sample(9, "float32", (7, 3, 5))
    where = random_mask(case, 9, 0.6)
    for name in ("gamma", "beta"):
        spoil: dict[str, Any] = {name: np.full(3, value, np.float32)}
        outcome = run(b, case._replace(where=where, **spoil))
        assert not outcome.y[~where].any(), name
        assert not outcome.dx[~where].any(), name


@pytest.mark.clause("S10", "S12")
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rescue_with_deleted_values(backend: str, scale: float) -> None:
    """A channel that leaves the range is scaled by what is left of it: y is that of the unscaled one, to the bit."""
    b, case = polybn.backend(backend), sample(10, "float32", (7, 3, 5), eps=0.0)
    power = math.frexp(scale)[1]
    case = case._replace(where=random_mask(case, 10, 0.6))
    far = spoiled(case._replace(x=np.ldexp(case.x, power)), 3e38 if scale < 1 else 1e-38)
    got, base = run(b, far), run(b, case)
    assert equal(got.y, base.y)
    assert equal(got.dgamma, base.dgamma)
