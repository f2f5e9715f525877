"""Clause S4: momentum is the weight of the old value, the variance is of the chosen kind, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polybn
from polybn.conformance.cases import DTYPES, Array, Case, equal, same, statistics_dtype
from polybn.conformance.forms import FORMATS
from polybn.spec import RunningVariance
from tests.support.cases import run
from tests.support.drawing import cases, forms

BESSEL = {5: ((-2, -1, 0, 1, 2), 2, 2.0, 2.5), 9: ((-3, -3, -3, 0, 0, 0, 3, 3, 3), 10, 6.0, 6.75)}
"""For each m: a pattern, eps / s^2, and the biased and the unbiased variance / s^2."""

KINDS: tuple[RunningVariance, ...] = ("unbiased", "biased", "biased", "unbiased")
"""Twice each, so that few forms have every pair with ``m``."""


@pytest.mark.clause("S4")
@given(
    form=forms(tuple(DTYPES), tuple(BESSEL), KINDS),
    power=st.integers(-3, 3),
    rho=st.sampled_from((0.0, 0.25, 0.5, 0.75, 1.0)),
    seed=st.integers(0, 2**32),
)
def test_bessel(backend: str, form: tuple[str, int, RunningVariance], power: int, rho: float, seed: int) -> None:
    """With m = 5 and 9, Bessel's 5/4 and 9/8 are exact: running_mean is ``==``, running_var within 2 roundings."""
    dtype, m, kind = form
    rng, s = np.random.default_rng(seed), 2.0**power
    pattern, eps, biased, unbiased = BESSEL[m]
    k = np.stack([rng.permutation(pattern) for _ in range(3)], axis=1)
    offset, old_mean, old_var = rng.integers(-40, 41, 3), rng.integers(-9, 10, 3), rng.integers(2, 30, 3)
    x = ((offset + k) * s).astype(DTYPES[dtype])
    wide = statistics_dtype(x)
    case = Case(
        x, None, None, (old_mean * s).astype(wide), (old_var * s**2).astype(wide), x, momentum=rho, eps=eps * s**2,
        running_variance=kind,
    )  # fmt: skip
    outcome = run(polybn.backend(backend), case)
    assert outcome.running_mean is not None
    assert outcome.running_var is not None
    assert np.array_equal(outcome.running_mean, s * (rho * old_mean + (1 - rho) * offset))
    exact = s**2 * (rho * old_var + (1 - rho) * (biased if kind == "biased" else unbiased))
    unit = FORMATS[dtype].unit
    assert (np.abs(outcome.running_var - exact) <= 2 * unit * exact).all()
    # The output always uses the biased variance.
    assert np.array_equal(outcome.y.astype(float), (k / (2 if m == 5 else 4)).astype(x.dtype).astype(float))


@pytest.mark.clause("S4")
@given(case=cases(training=True))
def test_the_ends_of_momentum(backend: str, case: Case) -> None:
    """rho = 1 keeps the bits of the old value; rho = 0 takes the batch's, even if the old value is NaN."""
    b, wide, channels = polybn.backend(backend), statistics_dtype(case.x), case.x.shape[case.axis]
    old = [(np.arange(channels) + z).astype(wide) for z in (1e3 + 1 / 3, 7 + 1 / 7)]
    kept = run(b, case._replace(momentum=1.0, running_mean=old[0], running_var=old[1]))
    assert equal(kept.running_mean, old[0])
    assert equal(kept.running_var, old[1])
    fresh = [
        run(
            b,
            case._replace(
                momentum=0.0, running_mean=np.full(channels, z, wide), running_var=np.full(channels, z, wide)
            ),
        )
        for z in (1e30, np.nan, np.inf)
    ]
    for outcome in fresh:
        assert outcome.running_mean is not None
        assert np.isfinite(outcome.running_mean).all()
        assert same(outcome, fresh[0])


@pytest.mark.clause("S4", "S13")
@given(case=cases(training=True), rho=st.sampled_from((0.0, 0.3, 1.0)), kind=st.sampled_from(KINDS))
def test_output_does_not_know_the_running_statistics(
    backend: str, case: Case, rho: float, kind: RunningVariance
) -> None:
    """In training, y and all gradients have the same bits for all running statistics, momentum and kinds."""
    b, wide, channels = polybn.backend(backend), statistics_dtype(case.x), case.x.shape[case.axis]
    numbers = [np.full(channels, z, wide) for z in (1e3, 7.0)]
    base = run(b, case._replace(running_mean=None, running_var=None))
    got = run(b, case._replace(running_mean=numbers[0], running_var=numbers[1], momentum=rho, running_variance=kind))
    assert same(got._replace(running_mean=None, running_var=None), base)


@pytest.mark.clause("S4", "S5", "S7")
@given(case=cases(training=False), rho=st.sampled_from((0.0, 0.3, 1.0)))
def test_inference_changes_nothing(backend: str, case: Case, rho: float) -> None:
    """Inference returns the bits of the running statistics, for any momentum and kind of variance."""
    b = polybn.backend(backend)
    base = run(b, case)
    assert equal(base.running_mean, case.running_mean)
    assert equal(base.running_var, case.running_var)
    assert same(run(b, case._replace(momentum=rho, running_variance="unbiased")), base)
    assert same(run(b, case._replace(momentum=rho, running_variance="biased")), base)


@pytest.mark.clause("S5")
@given(case=cases(training=False))
def test_inference_is_by_value(backend: str, case: Case) -> None:
    """In inference a value's output is independent of the rest of the batch: parts have the bits of the whole."""
    b = polybn.backend(backend)
    cut = 0 if case.axis % case.x.ndim else 1
    whole = run(b, case)
    for i in range(case.x.shape[cut]):
        part = case._replace(x=np.take(case.x, [i], cut), dy=np.take(case.dy, [i], cut))
        outcome = run(b, part)
        assert equal(outcome.y, np.take(whole.y, [i], cut))
        assert equal(outcome.dx, np.take(whole.dx, [i], cut))


@pytest.mark.clause("S4", "S7")
@given(case=cases(training=True), seed=st.integers(0, 2**32))
def test_backward_changes_nothing(backend: str, case: Case, seed: int) -> None:
    """The running statistics change once, in the forward pass, and not in a pullback."""
    b = polybn.backend(backend)
    arrays = [None if a is None else b.asarray(a) for a in case.arrays().values()]

    def host(result: polybn.BatchNormResult) -> list[Array | None]:
        return [None if a is None else b.to_numpy(a) for a in result]

    result, pullback = polybn.batch_norm_vjp(*arrays, **case.options())
    before = host(result)
    for _ in range(2):
        pullback(b.asarray(case.dy))
    for a, c, d in zip(before, host(result), host(polybn.batch_norm(*arrays, **case.options())), strict=True):
        assert equal(a, c)
        assert equal(a, d)
