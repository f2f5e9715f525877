"""Random calls go to all backends that run here, and every two results are compared.

On lattices, where answers are exact, results are equal bit by bit. Elsewhere two results that each lie within their
error bound of the exact one differ by at most the sum of both bounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import polybn
from polybn.conformance import bounds, forms
from polybn.conformance.agree import agree
from polybn.conformance.cases import Array, Case, Outcome, equal, rows
from polybn.conformance.channels import measure
from polybn.conformance.forms import VacuousBoundError
from polybn.conformance.lattice import in_inference, lattice
from polybn.conformance.strategies import sample
from polybn.lenet import networks
from polybn.lenet.program import compile
from polybn.spec import Gradients, Moments
from tests.conftest import COMPILING, LACKS, TRAITS
from tests.support import faults
from tests.support.cases import errors, run
from tests.support.drawing import cases, few_forms, lattices
from tests.support.training_worker import slice_of_sample
from tests.test_second_order import Cotangents, majorants, random_cotangents, second, shares

RUNNING = [name for name in TRAITS if not LACKS[name]]
pytestmark = pytest.mark.skipif(len(RUNNING) < 2, reason=f"agreement needs two backends that run; here: {RUNNING}")
PAIR = sorted(RUNNING, key=lambda name: name != "numpy")[:2]
CALLS = 5
"""Calls of :func:`agree`, the last of which has an exact answer; a library may compile for each."""
FLUSHING = any(TRAITS[name].flushes_subnormals for name in RUNNING)


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    """Draw few forms where a library compiles for each."""
    with few_forms(bool(COMPILING)):
        yield


def outcomes(case: Case) -> dict[str, Outcome]:
    return {name: run(polybn.backend(name), case) for name in RUNNING}


def pairs(found: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield every two results, and the names of their backends."""
    for a, b in combinations(found, 2):
        yield f"{a} and {b}", found[a], found[b]


def assert_equal(found: dict[str, Any]) -> None:
    """Assert that named tuples of arrays have equal bits, except for the signs of zeros."""
    for who, a, b in pairs(found):
        for name, left, right in zip(a._fields, a, b, strict=True):
            assert equal(left, right), f"{name} of {who}"


def assert_near(found: dict[str, Any], limits: dict[str, Array], axis: int) -> None:
    """Assert that any two results differ by at most twice the bound of one."""
    for who, a, b in pairs(found):
        for name, limit in limits.items():
            left, right = getattr(a, name), getattr(b, name)
            assert (left is None) == (right is None), f"{name} of {who}"
            if left is not None:
                left, right = (rows(z, axis).ravel() if z.ndim > 1 else z.astype(np.float64) for z in (left, right))
                differ = left != right  # two infinities, where a result leaves the range, have no difference
                share = np.abs(left[differ] - right[differ]) / (2 * limit[differ])
                assert share.max(initial=0.0) <= 1, f"{name} of {who} differ by {share.max():.3g} of both bounds"


def limits_of(case: Case) -> dict[str, Array]:
    """Bound the errors of class K, value by value, channel after channel."""
    f, found = forms.format_of(case.x.dtype.name, flushes=FLUSHING), dict[str, list[Array]]()
    for measured in measure(case, Outcome(np.zeros_like(case.x))):
        for name, bound in bounds.envelope("K", measured.channel, f).items():
            found.setdefault(name, []).append(bound)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def deleted(case: Case, seed: int) -> Case:
    """Add values, NaN among them, between those of a call, and a mask that deletes the added values."""
    rng = np.random.default_rng(seed)
    n = case.x.shape[0]
    keep = np.zeros(2 * n, np.bool_)
    keep[np.sort(rng.permutation(2 * n)[:n])] = True
    x, dy = (np.full((2 * n, *z.shape[1:]), np.nan, z.dtype) for z in (case.x, case.dy))
    x[keep], dy[keep] = case.x, case.dy
    x[np.flatnonzero(~keep)[::2]] = 3
    where = np.broadcast_to(keep.reshape(-1, *[1] * (x.ndim - 1)), x.shape).copy()
    return case._replace(x=x, dy=dy, where=where)


# The functions.


@pytest.mark.clause("S1", "S2", "S3", "S4", "S5", "S13")
@given(data=st.data(), training=st.booleans())
def test_on_lattices_every_result_is_the_same_to_the_bit(data: st.DataObject, training: bool) -> None:
    case = data.draw(lattices(training=training)).case
    found = outcomes(case)
    if training:
        assert_equal(found)
    else:  # derivatives by running statistics are rounded in inference
        assert_equal({name: polybn.BatchNormResult(*outcome[:3]) for name, outcome in found.items()})


@pytest.mark.clause("S12")
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(("float16", "bfloat16", "float32", "float64")))
def test_masks_delete_the_same_values_everywhere(seed: int, dtype: str) -> None:
    """A mask without any symmetry, on a call with exact answers."""
    assert_equal(outcomes(deleted(lattice(seed, dtype, 3, (4, 2, 4), 1, offset=17).case, seed)))


@pytest.mark.clause("S2", "S3", "S13")
@given(case=cases())
def test_elsewhere_every_two_lie_within_both_bounds(case: Case) -> None:
    try:
        limits = limits_of(case)
    except VacuousBoundError:
        assume(False)
    assert_near(outcomes(case), limits, case.axis)


@pytest.mark.clause("S13")
@given(case=cases(), seed=st.integers(0, 2**32))
def test_second_derivatives_lie_within_both_bounds(case: Case, seed: int) -> None:
    cotangents, channels = random_cotangents(case, seed), case.x.shape[case.axis]
    limits: dict[str, list[Array]] = {"dy": [], "x": [], "gamma": []}
    for c in range(channels):
        x, g = rows(case.x, case.axis)[c], rows(case.dy, case.axis)[c]
        alone = Cotangents(
            rows(cotangents.x, case.axis)[c], *(0.0 if v is None else float(v[c]) for v in cotangents[1:])
        )
        gamma = 1.0 if case.gamma is None else float(case.gamma[c])
        try:
            xhat, r, share = shares(x, case, c)
        except VacuousBoundError:
            assume(False)
        of_dy, of_x, of_gamma, *_ = majorants(g, xhat, r, gamma, alone, training=case.training)
        f = forms.FORMATS[case.x.dtype.name]
        limits["dy"].append(share * of_dy + (f.stored + f.unit) * of_dy + f.grain)
        limits["x"].append(share * of_x + (f.stored + f.unit) * of_x + f.grain)
        limits["gamma"].append(np.array([share * of_gamma + f.tiny]))
    found = {
        name: second(name, case, cotangents) for name in RUNNING if hasattr(polybn.backend(name), "double_backward")
    }
    assert_near(found, {name: np.concatenate(parts) for name, parts in limits.items()}, case.axis)


# Moments, merges, folds.


def measured(case: Case) -> dict[str, Moments]:
    found = {}
    for name in RUNNING:
        b = polybn.backend(name)
        where = None if case.where is None else b.asarray(case.where)
        found[name] = Moments(*map(b.to_numpy, polybn.moments(b.asarray(case.x), axis=case.axis, where=where)[:3]))
    return found


def merged(case: Case, cut: int) -> dict[str, Moments]:
    """Merge the moments of two parts along the first axis, which is not the channel axis."""
    found = {}
    for name in RUNNING:
        b = polybn.backend(name)
        parts = [polybn.moments(b.asarray(part), axis=case.axis) for part in (case.x[:cut], case.x[cut:])]
        found[name] = Moments(*map(b.to_numpy, polybn.merge_moments(*parts)[:3]))
    return found


def same_counts(found: dict[str, Moments]) -> dict[str, Moments]:
    """Compare counts as numbers: libraries have integers of different widths."""
    for who, a, b in pairs(found):
        assert a.count.tolist() == b.count.tolist(), who
    return {name: part._replace(count=part.count.astype(np.int64)) for name, part in found.items()}


@pytest.mark.clause("S15")
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(("float16", "bfloat16", "float32", "float64")))
def test_moments_of_lattices_are_the_same_to_the_bit_masked_or_not(seed: int, dtype: str) -> None:
    case = lattice(seed, dtype, 3, (4, 2, 4), 1, offset=17).case
    assert_equal(same_counts(measured(case)))
    assert_equal(same_counts(measured(deleted(case, seed))))


@pytest.mark.clause("S15")
@given(case=cases(training=True, largest_kappa=1e3))
def test_moments_and_merges_lie_within_both_bounds(case: Case) -> None:
    assume(case.axis % case.x.ndim != 0 and case.x.shape[0] > 1)
    try:
        found = errors(case)
    except VacuousBoundError:
        assume(False)
    f, m = forms.FORMATS[case.x.dtype.name], case.x.size // case.x.shape[case.axis]
    table = rows(case.x, case.axis)
    mean = np.array([e.mean for e in found])
    m2 = m * np.array([e.variance for e in found])
    assert_near(same_counts(measured(case)), {"mean": mean, "m2": m2 + f.unit * m * table.var(axis=1)}, case.axis)
    # A merge is accurate to first order in u kappa (S15), because the mean of each part is rounded.
    size, spread = np.abs(table).max(axis=1), table.std(axis=1)
    loose = {"mean": mean + 8 * f.unit * size, "m2": m2 + 16 * f.unit * m * (size * spread + spread**2)}
    assert_near(same_counts(merged(case, case.x.shape[0] // 2)), loose, case.axis)


@pytest.mark.clause("S5")
@given(seed=st.integers(0, 2**32), wide=st.booleans())
def test_folds_differ_by_few_units(seed: int, wide: bool) -> None:
    """scale rounds in a sum, a root, a division and a product, and shift in three further steps."""
    rng, dtype = np.random.default_rng(seed), np.float64 if wide else np.float32
    gamma, beta, mean = (rng.normal(3, 2, 5).astype(dtype) for _ in range(3))
    variance, u = rng.uniform(0.01, 30, 5).astype(dtype), float(np.finfo(dtype).eps) / 2
    found = {}
    for name in RUNNING:
        b = polybn.backend(name)
        affine = polybn.fold(*map(b.asarray, (gamma, beta, mean, variance)))
        found[name] = polybn.Affine(*map(b.to_numpy, affine))
    scale = np.abs(gamma / np.sqrt(variance.astype(np.float64) + 1e-5))
    assert_near(found, {"scale": 5 * u * scale, "shift": 8 * u * (np.abs(mean) * scale + np.abs(beta))}, 0)


# Errors.

WORDS = [fault for fault in faults.BATCH_NORM if "F19" not in fault.name and "F13 where" not in fault.name]


@pytest.mark.clause("S14")
@pytest.mark.parametrize("fault", WORDS, ids=[fault.name for fault in WORDS])
def test_a_bad_call_has_the_same_class_and_the_same_words_everywhere(fault: faults.Fault) -> None:
    said = {}
    for name in RUNNING:
        b = polybn.backend(name)
        call = {**faults.GOOD, **fault.arguments}
        lifted = {
            key: b.asarray(value) if key in faults.ARRAYS and isinstance(value, np.ndarray) else value
            for key, value in call.items()
        }
        with pytest.raises(fault.error) as info:
            polybn.batch_norm(**lifted)
        said[name] = (type(info.value), re.sub(r" at 0x\w+", "", str(info.value)))
    assert len(set(said.values())) == 1, said


# Networks.


@pytest.mark.clause("S3", "S4", "S13")
@pytest.mark.parametrize("norm", ["spec", None])
def test_networks_take_the_same_first_steps_from_the_same_bits(norm: Any) -> None:
    """Losses agree over eight steps at a rate that does not amplify rounding, and the first within a few units."""
    network, data, losses = networks.lenet(norm), slice_of_sample(8 * 32, 1), {}
    for name in RUNNING:
        if not hasattr(polybn.backend(name), "compile"):
            continue
        program = compile(network, polybn.backend(name), networks.initial_state(network, 0), batch_size=32)
        placed = program.place(data.train_images, data.train_labels)
        order = networks.epoch_order(0, 1, len(data.train_labels))
        losses[name] = np.concatenate([s.losses for s in program.train_epoch(placed, order, learning_rate=0.02)])
    for who, a, b in pairs(losses):
        assert len(a) == len(b) == 8, who
        assert abs(a[0] - b[0]) <= 1e-6, who
        assert np.abs(a - b).max() <= 1e-3, who


# The tests can fail.


def planted(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], Any]) -> None:
    """Spoil the results of one backend's forward call."""
    module: Any = polybn.backend("numpy")
    forward = module.forward

    def spoiled(arguments: Any, *, differentiable: bool) -> Any:
        result, residuals = forward(arguments, differentiable=differentiable)
        return spoil(result), residuals

    monkeypatch.setattr(module, "forward", spoiled)


def one_unit(result: Any) -> Any:
    if result.running_var is None:
        return result
    return result._replace(running_var=np.nextafter(result.running_var, np.inf, dtype=result.running_var.dtype))


def test_one_unit_in_the_last_place_of_a_running_variance_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(difference.bits for difference in agree(PAIR, cases=CALLS).differences)
    planted(monkeypatch, one_unit)
    case = lattice(0, "float32", 3, (4, 2, 4), 1).case
    with pytest.raises(AssertionError, match="running_var of"):
        assert_equal(outcomes(case))
    differ = [d for d in agree(PAIR, cases=CALLS).differences if not d.bits]
    assert {d.quantity for d in differ} == {"running_var"}
    assert all(d.ulps >= 1 and {d.first, d.second} == set(PAIR) for d in differ)
    assert all(f"resolve('polybn-{name}')" in d.program for d in differ for name in PAIR)


def test_a_transposed_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = polybn.backend("numpy")
    forward = module.forward

    def transposed(arguments: Any, *, differentiable: bool) -> Any:
        where = arguments.where
        return forward(arguments._replace(where=where if where is None else where[::-1]), differentiable=differentiable)

    monkeypatch.setattr(module, "forward", transposed)
    case = deleted(lattice(1, "float32", 3, (4, 2, 4), 1).case, 1)
    with pytest.raises(AssertionError):
        assert_equal(outcomes(case))


def test_a_changed_word_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = polybn.backend("numpy")
    real = module.inspect
    monkeypatch.setattr(module, "inspect", lambda value: None if (d := real(value)) is None else d._replace(dtype="f4"))
    fault = next(fault for fault in WORDS if fault.name.startswith("F5"))
    with pytest.raises(AssertionError):
        test_a_bad_call_has_the_same_class_and_the_same_words_everywhere(fault)


def test_gradients_of_another_case_are_not_near() -> None:
    case = sample(3, "float32", (7, 3, 5))
    found = outcomes(case)
    first: Any = found[RUNNING[0]]
    off = found | {RUNNING[0]: first._replace(dx=first.dx * np.float32(1.001))}
    assert_near(found, limits_of(case), case.axis)
    with pytest.raises(AssertionError, match="dx of"):
        assert_near(off, limits_of(case), case.axis)


def test_inference_agrees_on_a_lattice() -> None:
    made = in_inference(lattice(5, "float64", 3, (4, 2, 4), 1))
    found = outcomes(made.case)
    assert_equal({name: Outcome(o.y) for name, o in found.items()})
    assert isinstance(Gradients(None, None, None), tuple)
