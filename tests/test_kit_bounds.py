"""The bounds: honest algorithms of each form stay inside, wrong results and small losses do not."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import polybn
from polybn.conformance import bounds, certify
from polybn.conformance.cases import DTYPES, Array, Case, Outcome, rows
from polybn.conformance.channels import measure
from polybn.conformance.forms import (
    FORMATS,
    FORMS,
    Channel,
    Form,
    VacuousBoundError,
    additions,
    format_of,
    measured,
    roundings,
)
from polybn.conformance.oracle import ExactRow
from polybn.conformance.strategies import LARGEST_KAPPA, sample
from tests.support.cases import run as run_backend
from tests.support.kit_variants import VARIANTS, Plain, in_order, run, two_pass
from tests.support.within import within, within_one

HONEST: dict[str, Form] = {
    "wide": "K", "kappa-free": "K", "tree": "T", "in order": "N", "Welford": "F", "Chan": "F", "one-pass": "O",
}  # fmt: skip


def outcome_of(name: str, case: Case) -> Outcome:
    return run(VARIANTS[name], VARIANTS[name].info(), case)


def numpy_outcome(case: Case) -> Outcome:
    return run_backend(polybn.backend("numpy"), case)


# Honest variants are inside.


@pytest.mark.clause("S2", "S3", "S4", "S13")
@pytest.mark.parametrize("name", HONEST)
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(tuple(DTYPES)),
    kappa=st.sampled_from((0.0, 1.0, 10.0, 1e2, 1e3, 1e6, 1e13)),
    scale=st.sampled_from((0.01, 1.7, 100.0)),
    m=st.sampled_from((2, 3, 5, 31, 64, 255, 257)),
    eps=st.sampled_from((1e-5, 0.3)),
)
def test_an_honest_variant_is_within_its_bounds(
    name: str, seed: int, dtype: str, kappa: float, scale: float, m: int, eps: float
) -> None:
    """Honest variants raise no alarm at any kappa with a bound, which for K means any kappa of the dtype."""
    form = HONEST[name]
    if name == "wide" and dtype == "float64":
        dtype = "float32"  # the wide variant computes in float64, which is no wider than float64
    if kappa > LARGEST_KAPPA[dtype]:
        kappa = LARGEST_KAPPA[dtype]
    case = sample(seed, dtype, (m, 2), kappa=kappa, scale=scale, eps=eps)
    try:
        certificate = certify.certify(case, outcome_of(name, case), form=form)
    except VacuousBoundError:
        assert form != "K"
    else:
        assert 0 <= certificate.ratio <= 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_form_certifies_near_zero(form: Form, dtype: str) -> None:
    """A bound exists at moderate kappa, so that the test above is not empty."""
    name = next(name for name, honest in HONEST.items() if honest == form)
    case = sample(1, dtype, (257, 3), kappa=3.0)
    assert certify.certify(case, outcome_of(name, case), form=form).ratio <= 1


@pytest.mark.parametrize("form", FORMS)
def test_bounds_end_where_they_say_nothing(form: Form) -> None:
    """In float32, K has bounds up to kappa 1e6, and the other forms stop earlier, first-order forms first."""
    certified = []
    for kappa in (1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6):
        case = sample(1, "float32", (257, 3), kappa=kappa)
        try:
            certify.certify(case, numpy_outcome(case), form=form)
            certified.append(kappa)
        except VacuousBoundError:
            pass
    assert max(certified) == {"K": 1e6, "T": 1e4, "N": 1e3, "F": 10.0, "O": 10.0}[form]


@pytest.mark.clause("S5")
@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(tuple(DTYPES)), kappa=st.sampled_from((0.0, 3.0, 10.0)))
def test_inference_is_within(form: Form, seed: int, dtype: str, kappa: float) -> None:
    case = sample(seed, dtype, (7, 3, 5), kappa=kappa, training=False)
    certify.certify(case, numpy_outcome(case), form=form)


@pytest.mark.clause("S5")
def test_a_value_that_is_the_running_mean_gives_zero() -> None:
    """The bound is exactly 0, so that not even the error of measuring is allowed."""
    case = sample(3, "float32", (5, 3), kappa=1e6, training=False, eps=0.0)._replace(gamma=None, beta=None)
    assert case.running_mean is not None
    x = case.x.copy()
    x[2] = case.running_mean
    case = case._replace(x=x)
    outcome = numpy_outcome(case)
    assert not outcome.y[2].any()
    certify.certify(case, outcome)
    with pytest.raises(AssertionError, match="y of channel 0: value 2"):
        certify.certify(case, outcome._replace(y=outcome.y + np.float32(1e-30)))


def folded(case: Case) -> Outcome:
    """Run inference as one product and one sum, in the arithmetic of the parameters."""
    gamma, beta, mean, var = (
        np.asarray(v)[None, :, None] for v in (case.gamma, case.beta, case.running_mean, case.running_var)
    )
    scale = gamma / np.sqrt(var + var.dtype.type(case.eps))
    return Outcome((case.x * scale + (beta - mean * scale)).astype(case.x.dtype))


@pytest.mark.clause("S5")
def test_the_folded_form_is_two_pass_at_best() -> None:
    case = sample(3, "float32", (31, 3, 5), kappa=1e4, training=False)
    assert certify.certify(case, folded(case), form="T").ratio <= 1
    with pytest.raises(AssertionError, match="times its bound"):
        certify.certify(case, folded(case), form="K")


@pytest.mark.clause("S2", "S10")
@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1e25), ("float64", 1e150), ("float64", 1e-170)])
def test_the_ends_of_the_range(dtype: str, scale: float) -> None:
    """Channels whose squares leave float64 are measured too; form T has no bound there."""
    case = sample(2, dtype, (31, 3), scale=1.0, eps=1e-5)
    old: dict[str, Any] = {
        "running_mean": np.zeros_like(case.running_mean),
        "running_var": np.full_like(case.running_var, scale**2 if scale < 1 else 1),
    }
    case = case._replace(x=(case.x * case.x.dtype.type(scale)), eps=1e-5 if scale > 1 else 0.0, **old)
    outcome = numpy_outcome(case)
    assert certify.certify(case, outcome).ratio <= 1
    assert np.isinf(outcome.running_var).all() == (scale == 1e25)  # type: ignore[arg-type]
    wrong = outcome._replace(y=np.broadcast_to(np.asarray(case.beta), case.x.shape).copy())
    with pytest.raises(AssertionError, match="times its bound"):
        certify.certify(case, wrong)
    if scale > 1:
        with pytest.raises(VacuousBoundError, match="S10" if dtype == "float32" else "range"):
            certify.certify(case._replace(x=case.x * case.x.dtype.type(1e5)), outcome, form="T")


def test_an_infinite_running_variance_is_wrong_where_it_fits() -> None:
    case = sample(2, "float32", (31, 3))
    outcome = numpy_outcome(case)
    assert outcome.running_var is not None
    with pytest.raises(AssertionError, match="running_var"):
        certify.certify(case, outcome._replace(running_var=np.full_like(outcome.running_var, np.inf)))


@pytest.mark.clause("S8")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567, 1e4 + 0.1, 1e-41])
def test_constant_channels_are_exact_in_form_k(dtype: str, value: float) -> None:
    """y is beta, rounded once; its neighbour is refused, and so is the result of a two-pass form."""
    case = sample(4, dtype, (31, 2))
    case = case._replace(x=np.full_like(case.x, value))
    outcome = numpy_outcome(case)
    certify.certify(case, outcome)
    y = outcome.y.copy()
    bits = y.view(f"u{y.dtype.itemsize}")
    bits[17, 1] += 1
    with pytest.raises(AssertionError, match="y of channel 1: value 17"):
        certify.certify(case, outcome._replace(y=y))
    fresh = case._replace(momentum=0.0)
    replaced = numpy_outcome(fresh)
    certify.certify(fresh, replaced)
    for name in ("running_var", "dgamma"):
        off = getattr(replaced, name) + getattr(replaced, name).dtype.type(1e-12)
        with pytest.raises(AssertionError, match=f"{name} of channel"):
            certify.certify(fresh, replaced._replace(**{name: off}))
    naive = outcome_of("in order", case)
    if value == 0.1 and dtype == "float32":
        with pytest.raises(AssertionError, match="times its bound"):
            certify.certify(case, naive)
        certify.certify(case, naive, form="N")


@pytest.mark.clause("S12")
def test_deleted_values_are_left_out() -> None:
    case = sample(5, "float32", (9, 3, 4))
    where = np.random.default_rng(5).random((9, 3, 4)) < 0.6
    x = case.x.copy()
    x[~where] = np.nan
    case = case._replace(x=x, where=where)
    outcome = numpy_outcome(case)
    certificate = certify.certify(case, outcome)
    assert np.array_equal(certificate.y > 0, rows(where, 1) > 0)
    for name in ("y", "dx"):
        array = getattr(outcome, name).copy()
        array[~where] = 1e-30
        with pytest.raises(AssertionError, match=f"{name} is not 0 in deleted places"):
            certify.certify(case, outcome._replace(**{name: array}))


def test_what_was_not_computed_is_not_judged() -> None:
    case = sample(6, "float32", (9, 3, 4))
    outcome = numpy_outcome(case)
    certify.certify(case, Outcome(outcome.y))
    certify.certify(case, outcome._replace(dx=None))
    with pytest.raises(AssertionError, match="y of channel"):
        certify.certify(case, Outcome(outcome.y + np.float32(1e-5)))


# Wrong results are outside.


@pytest.mark.clause("S2", "S3", "S13")
@pytest.mark.parametrize("field", ["y", "running_mean", "running_var", "dx", "dgamma", "dbeta"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_bounds_bite(field: str, dtype: str, form: Form) -> None:
    """A loss of some hundred roundings in one value is refused, or of some thousands for first-order forms."""
    case = sample(5, dtype, (11, 3, 7), kappa=2.0)
    outcome = numpy_outcome(case)
    certify.certify(case, outcome, form=form)
    array = getattr(outcome, field).copy()
    f = FORMATS[dtype]
    largest = np.unravel_index(np.argmax(np.abs(array.astype(np.float64))), array.shape)
    stored = f.stored if field in ("y", "dx") else 0.0
    loss = 4 * stored + f.unit * {"K": 900, "T": 400, "N": 900, "F": 30_000, "O": 6_000}[form]
    array[largest] = array[largest] * (1 + loss)
    with pytest.raises(AssertionError, match=f"{field} of channel .* times its bound"):
        certify.certify(case, outcome._replace(**{field: array}), form=form)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["y", "running_mean", "running_var", "dx", "dgamma", "dbeta"])
def test_what_is_not_finite_is_refused(field: str, bad: float) -> None:
    case = sample(5, "float32", (11, 3, 7))
    outcome = numpy_outcome(case)
    array = getattr(outcome, field).copy()
    array.ravel()[1] = bad
    with pytest.raises(AssertionError, match="its error inf"):
        certify.certify(case, outcome._replace(**{field: array}))


def _reference(
    case: Case, *, variance: Callable[[Array], Array] | None = None, root: Callable[[Array, float], Array] | None = None
) -> Outcome:
    x = case.x[..., 0].astype(np.float64)
    v = x.var(axis=0) if variance is None else variance(x)
    scale = 1 / np.sqrt(v + case.eps) if root is None else root(v, case.eps)
    gamma, beta = (np.asarray(z, np.float64) for z in (case.gamma, case.beta))
    return Outcome((((x - x.mean(axis=0)) * scale * gamma + beta)[..., None]).astype(case.x.dtype))


WRONG: dict[str, Callable[[Case], Outcome]] = {
    "unbiased variance in y": lambda case: _reference(case, variance=lambda x: x.var(axis=0, ddof=1)),
    "eps outside the root": lambda case: _reference(case, root=lambda v, eps: 1 / (np.sqrt(v) + eps)),
    "eps left out": lambda case: _reference(case, root=lambda v, eps: 1 / np.sqrt(v)),
    "eps twice": lambda case: _reference(case, root=lambda v, eps: 1 / np.sqrt(v + 2 * eps)),
    "eps in half precision": lambda case: _reference(case, root=lambda v, eps: 1 / np.sqrt(v + float(np.float16(eps)))),
    "the reference itself": lambda case: _reference(case),
}


@pytest.mark.clause("S3")
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("form", ["K", "T"])
def test_wrong_formulas_are_refused(name: str, form: Form) -> None:
    case = sample(8, "float32", (61, 3, 1), scale=0.01, kappa=1.0, eps=1e-4)
    outcome = WRONG[name](case)
    if name == "the reference itself":
        certify.certify(case, outcome, form=form)
    else:
        with pytest.raises(AssertionError, match="y of channel"):
            certify.certify(case, outcome, form=form)


def test_a_gradient_without_its_statistics_is_refused() -> None:
    case = sample(8, "float32", (61, 3))
    outcome = numpy_outcome(case)
    plain = Plain(two_pass(in_order))
    _, _, variance = plain.centered(case.x, 1)
    dx = (np.asarray(case.gamma) / np.sqrt(variance[:, 0] + np.float32(case.eps)) * case.dy).astype(np.float32)
    with pytest.raises(AssertionError, match="dx of channel"):
        certify.certify(case, outcome._replace(dx=dx))


def test_the_other_running_variance_is_refused() -> None:
    case = sample(8, "float32", (61, 3))
    outcome = numpy_outcome(case)
    with pytest.raises(AssertionError, match="running_var of channel"):
        certify.certify(case._replace(running_variance="unbiased"), outcome)
    certify.certify(
        case._replace(running_variance="unbiased"), numpy_outcome(case._replace(running_variance="unbiased"))
    )


def test_float64_computed_in_float32_is_refused() -> None:
    """The same loss is allowed if the caller asks for the roundings of float32."""
    case = sample(9, "float64", (61, 3))
    arrays: dict[str, Any] = {name: a.astype(np.float32) for name, a in case.arrays().items() if a is not None}
    narrow = case._replace(**arrays, dy=case.dy.astype(np.float32))
    y = numpy_outcome(narrow).y.astype(np.float64)
    with pytest.raises(AssertionError, match="y of channel"):
        certify.certify(case, Outcome(y))


# The parts.


@pytest.mark.clause("S6")
def test_formats() -> None:
    assert [FORMATS[d].unit for d in DTYPES] == [2.0**-24] * 3 + [2.0**-53]
    assert [FORMATS[d].stored for d in DTYPES] == [2.0**-11, 2.0**-8, 0, 0]
    wide = format_of("float32", arithmetic="float64")
    assert (wide.unit, wide.stored, wide.kept, wide.grain) == (2.0**-53, 2.0**-24, 2.0**-24, 2.0**-150)
    half = format_of("float16", arithmetic="float64")
    assert (half.unit, half.stored, half.kept) == (2.0**-53, 2.0**-11, 2.0**-24)
    assert format_of("float32").tiny == 2.0**-150
    assert format_of("float32", flushes=True).tiny == format_of("float32", flushes=True).lost == 2.0**-126
    assert all(f.grain == float(np.finfo(np.float16).smallest_subnormal) / 2 for f in (FORMATS["float16"], half))


@pytest.mark.clause("S6")
def test_wide_arithmetic_has_narrower_bounds() -> None:
    case = sample(10, "float32", (257, 3), kappa=100.0)
    outcome = outcome_of("wide", case)
    wide = certify.certify(case, outcome, form="T", arithmetic="float64")
    assert wide.ratio <= 1
    assert (wide.y < certify.certify(case, outcome, form="T").y / 4).all()
    with pytest.raises(AssertionError, match="times its bound"):
        certify.certify(case, outcome_of("tree", case), form="T", arithmetic="float64")


@pytest.mark.clause("S6")
def test_flushing_spares_float16() -> None:
    """float16's subnormal numbers are normal in float32, so reading or storing them as 0 is outside every bound."""
    gradual, flushing = FORMATS["float16"], format_of("float16", flushes=True)
    assert flushing == gradual._replace(tiny=2.0**-126)
    assert flushing.lost == 0 < format_of("bfloat16", flushes=True).lost
    case = sample(13, "float16", (31, 3), scale=0.0)._replace(eps=1e-5, running_mean=None, running_var=None)
    x = np.random.default_rng(0).integers(-100, 101, (31, 3)) * 2.0**-24
    case = case._replace(x=x.astype(np.float16), beta=None)
    exact = numpy_outcome(case)
    certify.certify(case, exact, flushes=True)
    with pytest.raises(AssertionError, match="y of channel"):
        certify.certify(case, Outcome(np.zeros_like(exact.y)), flushes=True)


def test_flushing_widens_bounds_by_the_smallest_normal_number() -> None:
    """Reading every subnormal number as 0 is within the bounds only of libraries that flush."""
    case = sample(11, "float32", (31, 3), scale=0.0)._replace(eps=1e-18, beta=None)
    x = np.random.default_rng(0).integers(-1000, 1000, (31, 3)) * np.float32(2.0**-149)
    case = case._replace(x=x.astype(np.float32), running_mean=None, running_var=None)
    exact = numpy_outcome(case)
    certify.certify(case, exact)
    flushed = Outcome(np.zeros_like(exact.y))
    with pytest.raises(AssertionError, match="y of channel"):
        certify.certify(case, flushed)
    for beta in (np.ones(3, np.float32),):
        certify.certify(case._replace(beta=beta), Outcome(flushed.y + 1), flushes=True)


@pytest.mark.parametrize(("form", "h"), [("K", 74), ("T", 14), ("N", 1023), ("F", 1023), ("O", 1023)])
def test_chains_of_additions(form: Form, h: int) -> None:
    assert additions(form, 1024, 1024) == h
    assert additions(form, 3, 1024) == 2
    assert additions(form, 1, 1) == additions(form, 0, 0) == 0


@given(n=st.integers(1, 200))
def test_roundings_in_a_row(n: int) -> None:
    """``g(n)`` is at least the error of n roundings in the same direction, and hardly more."""
    u = 2.0**-11
    exact = (1 + Fraction(u)) ** n - 1
    assert exact <= Fraction(roundings(n, u)) * (1 + Fraction(1, 2**50)) <= 1 / (1 - Fraction(u)) ** (2 * n) - 1
    with pytest.raises(VacuousBoundError, match="no correct digit"):
        roundings(2**23, 2.0**-24)


def channel(**changes: Any) -> Channel:
    case = sample(12, "float32", (31, 1), kappa=3.0)
    (one,) = measure(case, Outcome(case.x))
    return one.channel._replace(**changes)


@pytest.mark.clause("S4")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@example(momentum=0.99999, old=1000.0, batch=-999.0)
@example(momentum=1e-5, old=1000.0, batch=1e-3)
@given(
    momentum=st.floats(0, 1) | st.sampled_from((0.0, 0.1, 0.25, 0.9, 0.99, 1 / 3, 1.0)),
    old=st.floats(-1e3, 1e3, width=32),
    batch=st.floats(-1e3, 1e3, width=32),
)
def test_weights_are_rounded(dtype: str, momentum: float, old: float, batch: float) -> None:
    """The bound allows for a weight that is rounded, whichever of the two weights a library is given."""
    f, scalar = FORMATS[dtype], np.dtype(dtype).type
    alone = channel(old_mean=old, mean=batch, momentum=momentum)
    bound = bounds.running(bounds.Errors(0.0, 0.0, 0.0, alone.c, alone.c, 1), alone, f)["running_mean"]
    exact = Fraction(momentum) * Fraction(old) + (1 - Fraction(momentum)) * Fraction(batch)
    kept, taken = scalar(momentum), scalar(1 - momentum)
    for keep, take in ((kept, scalar(1) - kept), (scalar(1) - taken, taken), (kept, taken)):
        got = keep * scalar(old) + take * scalar(batch)
        assert abs(Fraction(float(got)) - exact) <= Fraction(bound)
    size = abs(old) + abs(batch)
    assert bound <= 3.01 * f.unit * size + 4 * f.tiny
    if momentum in (0.0, 1.0):
        assert bound <= 2.01 * f.unit * abs(batch if momentum == 0 else old) + 4 * f.tiny


@pytest.mark.parametrize("m", [2, 31, 1024])
def test_the_one_pass_bound_admits_the_worst_case(m: int) -> None:
    """Round ``mean(x^2)`` upwards and the mean downwards each time, on values far from zero."""
    u, size = Fraction(1, 2**24), 1000
    worst = size**2 * ((1 + u) ** (m + 3) - (1 - u) ** (2 * (m + 2)))
    far = channel(mean=float(size), x=np.full(m, float(size)), c=np.zeros(m), variance=0.0)
    assert measured("O", far, FORMATS["float32"], m - 1).variance >= worst


@pytest.mark.parametrize("form", FORMS)
def test_longer_chains_widen_every_bound(form: Form) -> None:
    f = FORMATS["float32"]
    short, long = (bounds.envelope(form, channel(), f, h) for h in (5, 30))
    assert short.keys() == {"y", "dx", "dgamma", "dbeta", "running_mean", "running_var"}
    assert all((short[name] < long[name]).all() for name in short)


def test_additions_are_taken_from_the_caller() -> None:
    case = sample(13, "float32", (257, 3), kappa=10.0)
    outcome = numpy_outcome(case)
    certificates = [certify.certify(case, outcome, additions=h) for h in (256, None)]
    assert (certificates[0].y > certificates[1].y).all()


def test_a_vacuous_bound_names_itself() -> None:
    with pytest.raises(VacuousBoundError, match=re.escape("above 2^-4 of its size")):
        bounds.envelope("O", channel(mean=1e6, x=np.full(31, 1e6)), FORMATS["float32"])


def test_within() -> None:
    exact = ExactRow([1, 2], 2)
    assert within("z", [0.5, 1.25], exact, [1.0, 0.5]) == 0.5
    with pytest.raises(AssertionError, match=r"value 1 is 1\.25, exactly 1\.0; error 0\.25 is 2\.5 times"):
        within("z", [0.5, 1.25], exact, [1.0, 0.1])
    with pytest.raises(AssertionError, match="not finite"):
        within("z", [0.5, np.nan], exact, [1.0, 1.0])
    with pytest.raises(AssertionError, match="not positive"):
        within("z", [0.5, 1.0], exact, [1.0, 0.0])
    assert within_one("z", 0.25, Fraction(1, 2), 0.25) == 1.0
