"""Symmetries that hold to the bit: powers of two, signs, the order of channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import polybn
from polybn.conformance.cases import Array, Case, equal, same
from polybn.conformance.lattice import lattice
from polybn.conformance.properties.compare import take, take_outcome
from tests.conftest import COMPILING
from tests.support.cases import run
from tests.support.drawing import cases, forms


def scaled(array: Array | None, power: int) -> Array | None:
    """Multiply by a power of two; NumPy keeps the dtype."""
    return None if array is None else (array * array.dtype.type(2.0**power)).astype(array.dtype)


def assert_scaled(got: Array | None, base: Array | None, power: int) -> None:
    """Assert ``got == base * 2^power``, except for values whose storage underflowed."""
    if got is None or base is None:
        assert got is base
        return
    a, b = got.astype(np.float64), base.astype(np.float64)
    floor = 2.0**-13 if got.dtype == np.float16 else 2.0**-1021 if got.dtype == np.float64 else 2.0**-125
    normal = (np.abs(a) > floor) & (np.abs(b) > floor)
    assert np.array_equal(a[normal], b[normal] * 2.0**power)


def powers(case: Case) -> st.SearchStrategy[int]:
    largest = {"float16": 2, "bfloat16": 30, "float32": 30, "float64": 300}[case.x.dtype.name]
    # Negative powers could make small float16 numbers subnormal, which loses bits.
    return st.integers(0 if case.x.dtype == np.float16 else -largest, largest)


@pytest.mark.clause("S2", "S3", "S10", "S13")
@given(case=cases(), data=st.data())
def test_scaling_x(backend: str, case: Case, data: st.DataObject) -> None:
    """Scaling x by 2^k and eps by 4^k keeps y, dgamma and dbeta, and divides dx by 2^k, also in inference."""
    b, k = polybn.backend(backend), data.draw(powers(case))
    x, mean, var = scaled(case.x, k), scaled(case.running_mean, k), scaled(case.running_var, 2 * k)
    assert x is not None
    other = case._replace(x=x, running_mean=mean, running_var=var, eps=case.eps * 4.0**k)
    base, got = run(b, case), run(b, other)
    assert equal(got.y, base.y)
    assert equal(got.dgamma, base.dgamma)
    assert equal(got.dbeta, base.dbeta)
    factors = {"running_mean": k, "running_var": 2 * k, "dx": -k, "drunning_mean": -k, "drunning_var": -2 * k}
    for name, power in factors.items():
        assert_scaled(getattr(got, name), getattr(base, name), power)


@pytest.mark.clause("S3", "S5", "S13")
@given(case=cases())
def test_negating_x(backend: str, case: Case) -> None:
    """Negating x, running_mean and beta negates y and dgamma, and keeps dx."""
    b = polybn.backend(backend)
    negated: dict[str, Any] = {
        name: None if (a := getattr(case, name)) is None else -a for name in ("x", "beta", "running_mean")
    }
    base, got = run(b, case), run(b, case._replace(**negated))
    odd = {"y", "running_mean", "dgamma", "drunning_var"}
    for name, whole in base._asdict().items():
        assert equal(getattr(got, name), -whole if whole is not None and name in odd else whole), name


@pytest.mark.clause("S3", "S5", "S13")
@given(case=cases(), power=st.integers(-2, 2), sign=st.sampled_from((-1, 1)))
def test_scaling_gamma_and_beta(backend: str, case: Case, power: int, sign: int) -> None:
    """Scaling gamma and beta scales y and dx exactly, and keeps running statistics, dgamma and dbeta."""
    assume(case.gamma is not None)
    b, factor = polybn.backend(backend), sign * 2.0**power
    vectors: dict[str, Any] = {
        n: None if (v := getattr(case, n)) is None else (v * factor).astype(v.dtype) for n in ("gamma", "beta")
    }
    base, got = run(b, case), run(b, case._replace(**vectors))
    for name in ("running_mean", "running_var", "dgamma", "dbeta"):
        assert equal(getattr(got, name), getattr(base, name)), name
    for name in ("y", "dx", "drunning_mean", "drunning_var"):
        whole = getattr(base, name)
        assert_scaled(getattr(got, name), whole if whole is None else whole * whole.dtype.type(sign), power)


@pytest.mark.clause("S13")
@given(case=cases(), power=st.integers(-2, 2), sign=st.sampled_from((-1, 1)))
def test_scaling_dy(backend: str, case: Case, power: int, sign: int) -> None:
    """Scaling dy by a power of two or a sign scales every gradient exactly."""
    b, power = polybn.backend(backend), abs(power) if case.dy.dtype == np.float16 else power  # no subnormal dy
    dy = scaled(case.dy, power)
    assert dy is not None
    base, got = run(b, case), run(b, case._replace(dy=dy * dy.dtype.type(sign)))
    for name in ("dx", "dgamma", "dbeta", "drunning_mean", "drunning_var"):
        whole = getattr(base, name)
        assert_scaled(getattr(got, name), whole if whole is None else whole * whole.dtype.type(sign), power)


@pytest.mark.clause("S1")
@given(
    seed=st.integers(0, 2**32),
    form=forms(("float16", "bfloat16", "float32", "float64"), (2, 3, 7, 17, 65, 130), (0, 1, 2, 3), (1, 2, 3, 5, 41)),
    training=st.booleans(),
)
def test_channels_are_independent(backend: str, seed: int, form: tuple[str, int, int, int], training: bool) -> None:
    """Choosing, dropping and reordering channels does just that to every result.

    On lattices, derivatives in inference are rounded, and XLA may round in another way for another number of channels.
    """
    b, (dtype, channels, axis, left) = polybn.backend(backend), form
    case = lattice(seed, dtype, channels, (4, 2, 4), axis, offset=17).case
    case = case._replace(training=backend in COMPILING or training)
    index = np.random.default_rng(seed).permutation(channels)[:left]
    assert same(run(b, take(case, index)), take_outcome(run(b, case), case.axis, index))
