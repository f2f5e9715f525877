"""Lattice calls and golden vectors agree with the oracle exactly, are frozen, and are drawn in every layout."""

from __future__ import annotations

import json
import math
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

import polybn
from polybn.conformance import golden, oracle, strategies
from polybn.conformance.cases import DTYPES, Array, Case, Outcome, equal, rows, statistics_dtype
from polybn.conformance.channels import measure
from polybn.conformance.golden import Golden
from polybn.conformance.lattice import (
    LONG_TAILS,
    TAILS,
    Lattice,
    in_inference,
    lattice,
    many_values,
    more_than_float32_counts,
)
from polybn.conformance.layouts import LAYOUTS, repeated
from polybn.conformance.strategies import lattices, layouts
from tests.support.cases import run
from tests.support.golden_recipes import blended, generate, to_hex

FOLDER = Path(golden.__file__).parent / "golden"
GOLDEN = golden.load()


def assert_exact(made: Lattice) -> None:
    """Compare every answer of a lattice with the oracle's."""
    case = made.case
    assert case.gamma is not None
    assert case.beta is not None
    tables = (rows(a, case.axis) for a in (case.x, case.dy, made.y, made.dx))
    for c, (x, dy, y, dx) in enumerate(zip(*tables, strict=True)):
        values, gamma, eps = oracle.row(x.tolist()), Fraction(float(case.gamma[c])), Fraction(case.eps)
        s = oracle.batch_statistics(values, eps)
        if not case.training:
            s = oracle.given_statistics(len(x), Fraction(float(made.mean[c])), Fraction(float(made.variance[c])), eps)
        elif np.isfinite(made.variance[c]):
            assert (s.mean, s.variance) == (Fraction(float(made.mean[c])), Fraction(float(made.variance[c])))
            assert made.unbiased is None or oracle.unbiased(s) == Fraction(float(made.unbiased[c]))
        exact_y = oracle.output(values, s, gamma, Fraction(float(case.beta[c])))
        d = oracle.derivatives(values, oracle.row(dy.tolist()), s, gamma, training=case.training)
        for exact, got in ((exact_y, y), (d.x, dx)):
            size = Fraction(max(1.0, float(np.abs(got).max()))) if got is y else Fraction(1)
            size = max(size, *(Fraction(float(v)) for v in np.abs(got)))
            pairs = zip(exact.numerators, got.tolist(), strict=True)
            assert all(abs(Fraction(n, exact.denominator) - Fraction(v)) <= size / 2**290 for n, v in pairs)
        assert abs(d.gamma - Fraction(float(made.dgamma[c]))) <= Fraction(1, 2**280)
        assert d.beta == Fraction(float(made.dbeta[c]))


@pytest.mark.clause("S2", "S3", "S4", "S13")
@given(made=st.one_of(lattices(), lattices(wide=True), lattices(odd=True), lattices(training=False)))
def test_the_oracle_agrees_with_the_lattice(made: Lattice) -> None:
    assert_exact(made)


@pytest.mark.parametrize(
    ("m", "dtype"),
    [(m, d) for m in (5, 9, 10, *TAILS, *LONG_TAILS) for d in DTYPES if m <= 2**8 or d != "bfloat16"],  # it has no 265
)
def test_the_oracle_agrees_where_no_vector_divides_the_number_of_values(m: int, dtype: str) -> None:
    made = lattice(m, dtype, 3, (m,), 1, power=2, offset=17)
    assert_exact(made)
    assert_exact(in_inference(made, 3))


@pytest.mark.clause("S2", "S3", "S4", "S13")
@given(made=st.one_of(lattices(odd=True), lattices(training=False), lattices(wide=True)), unbiased=st.booleans())
def test_a_backend_gives_the_bits(made: Lattice, unbiased: bool) -> None:
    case = made.case._replace(running_variance="unbiased" if unbiased else "biased")
    variance = made.unbiased if unbiased else made.variance
    outcome, wide = run(polybn.backend("numpy"), case), statistics_dtype(case.x)
    assert equal(outcome.y, made.y.astype(case.x.dtype))
    assert equal(outcome.dx, made.dx.astype(case.x.dtype))
    assert equal(outcome.dgamma, made.dgamma.astype(wide))
    assert equal(outcome.dbeta, made.dbeta.astype(wide))
    if case.training and variance is not None:
        assert case.running_var is not None
        assert outcome.running_var is not None
        known = np.isfinite(variance)  # of float64, the exact variance may lie outside of the range
        assert equal(outcome.running_var[known], blended(case, case.running_var, variance)[known])


@pytest.mark.parametrize("arguments", [("float16", (4,), 20, 0), ("bfloat16", (4,), 0, 1000), ("float32", (6,), 0, 0)])
def test_a_lattice_that_is_not_exact_is_refused(arguments: tuple[str, tuple[int, ...], int, int]) -> None:
    dtype, rest, power, offset = arguments
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=r"polybn\.conformance\.lattice: .* must .*; got"):
        lattice(0, dtype, 3, rest, 1, power, offset)


def assert_measured(made: Lattice) -> None:
    """Compare the answers with the oracle's in 106 bits, which is much faster."""
    for one in measure(made.case, Outcome(made.y, None, None, made.dx, made.dgamma, made.dbeta)):
        assert all(errors.max() <= 1e-25 for errors in one.errors.values())


@pytest.mark.clause("S1", "S2", "S13")
@pytest.mark.parametrize("channels", [65, 130, 70_000])
def test_many_channels(channels: int) -> None:
    """More channels than a vector or a grid can hold; 65 and 130 are no multiples of a vector's width."""
    made = lattice(channels, "float32", channels, (16,) if channels > 1000 else (8, 8, 8), 1, offset=17)
    assert made.case.x.shape[1] == channels
    outcome = run(polybn.backend("numpy"), made.case)
    for name in ("y", "dx", "dgamma", "dbeta"):
        assert equal(getattr(outcome, name), getattr(made, name).astype(np.float32)), name
    if channels < 1000:
        assert_measured(made)


@pytest.mark.clause("S1", "S2", "S13")
@pytest.mark.parametrize("m", [65_540, 131_072])
def test_many_values(m: int) -> None:
    made = many_values(m)
    assert made.case.x.shape == (m, 3)
    assert_measured(made)
    outcome = run(polybn.backend("numpy"), made.case)
    for name in ("y", "dx", "dgamma", "dbeta"):
        assert equal(getattr(outcome, name), getattr(made, name).astype(np.float32)), name


@pytest.mark.clause("S8")
@pytest.mark.parametrize("value", [1.0, 0.1])
def test_more_than_float32_counts(value: float) -> None:
    assert_exact(more_than_float32_counts(258, value))
    made = more_than_float32_counts(value=value)
    assert made.case.x.size > 2**24
    outcome = run(polybn.backend("numpy"), made.case)
    assert (outcome.y == -1000).all()
    assert outcome.running_mean == made.mean
    assert outcome.running_var == outcome.dgamma == 0
    assert outcome.dbeta == made.dbeta == made.case.x.size


# Golden vectors.


def test_the_frozen_file_is_what_the_generator_makes() -> None:
    assert (FOLDER / "v1.json").read_text("ascii") == generate()


def test_there_are_enough_golden_vectors_of_every_kind() -> None:
    assert len(GOLDEN) >= 24
    assert len({g.name for g in GOLDEN}) == len(GOLDEN)
    assert {g.case.x.dtype.name for g in GOLDEN} == set(DTYPES)
    assert {g.case.x.ndim for g in GOLDEN} == {2, 3, 4, 5}
    assert {g.case.axis for g in GOLDEN} == {0, 1, 3}
    assert {g.case.momentum for g in GOLDEN} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {g.case.training for g in GOLDEN} == {True, False}
    assert sum("running_var_unbiased" in g.expected for g in GOLDEN) >= 5


def rounded(exact: Fraction, dtype: np.dtype[Any]) -> float:
    """Round once, possibly to infinity; every fraction here is a float64."""
    with np.errstate(over="ignore"):
        return float(np.asarray(float(exact)).astype(dtype)) if abs(exact) < 2**1024 else float("inf")


@pytest.mark.clause("S2", "S3", "S4", "S5", "S6", "S10", "S13")
@pytest.mark.parametrize("vector", GOLDEN, ids=lambda g: g.name)
def test_the_oracle_agrees_with_the_golden_vectors(vector: Golden) -> None:
    """Each value is the oracle's, correctly rounded, by ==."""
    case, expected = vector.case, vector.expected
    wide, narrow = statistics_dtype(case.x), case.x.dtype
    whole = {name: rows(expected[name], case.axis) for name in ("y", "dx")}
    for c, (x, dy) in enumerate(zip(rows(case.x, case.axis), rows(case.dy, case.axis), strict=True)):
        gamma, beta, old_mean, old_var = (
            Fraction(float(np.asarray(v)[c])) for v in (case.gamma, case.beta, case.running_mean, case.running_var)
        )
        values, eps, rho = oracle.row(x.tolist()), Fraction(case.eps), Fraction(case.momentum)
        s = oracle.batch_statistics(values, eps)
        if not case.training:
            s = oracle.given_statistics(len(x), old_mean, old_var, eps)
        exact_root = Fraction(1) / root_of(s.square)
        s = s._replace(root=exact_root)
        y = oracle.output(values, s, gamma, beta)
        d = oracle.derivatives(values, oracle.row(dy.tolist()), s, gamma, training=case.training)
        for name, exact in (("y", y), ("dx", d.x)):
            assert [rounded(Fraction(n, exact.denominator), narrow) for n in exact.numerators] == whole[name][
                c
            ].tolist()
        found = {"dgamma": d.gamma, "dbeta": d.beta}
        if case.training:
            found |= {"running_mean": oracle.blend(old_mean, s.mean, rho)}
            found |= {"running_var_biased": oracle.blend(old_var, s.variance, rho)}
            if "running_var_unbiased" in expected:
                found |= {"running_var_unbiased": oracle.blend(old_var, oracle.unbiased(s), rho)}
        else:
            found |= {"drunning_mean": d.running_mean, "drunning_var": d.running_var}
        assert {"y", "dx", *found} == set(expected)
        for name, value in found.items():
            assert rounded(value, wide) == float(expected[name][c]), name


def root_of(square: Fraction) -> Fraction:
    """Return the root of a fraction that is a square, as on every lattice."""
    root = Fraction(math.isqrt(square.numerator), math.isqrt(square.denominator))
    assert root**2 == square
    return root


@pytest.mark.clause("S2", "S3", "S4", "S5", "S10", "S13")
@pytest.mark.parametrize("vector", GOLDEN, ids=lambda g: g.name)
def test_a_backend_agrees_with_the_golden_vectors(vector: Golden) -> None:
    for kind in ("biased", "unbiased"):
        outcome = run(polybn.backend("numpy"), vector.case._replace(running_variance=kind))
        for name, exact in vector.expected.items():
            if not name.startswith("running_var"):
                assert equal(getattr(outcome, name), exact), name
            elif name.endswith(f"_{kind}"):
                assert equal(outcome.running_var, exact), name


def test_the_bits_are_read_as_the_readme_says() -> None:
    """The format can be read with struct alone, as an implementer in another language would read it."""
    entry = next(e for e in json.loads((FOLDER / "v1.json").read_text())["cases"] if e["name"] == "f32-images")
    x = entry["inputs"]["x"]
    values = [struct.unpack(">f", bytes.fromhex(word))[0] for word in x["bits"].split()]
    (vector,) = (g for g in GOLDEN if g.name == "f32-images")
    assert values == vector.case.x.ravel().tolist()
    assert list(vector.case.x.shape) == x["shape"]
    assert (
        struct.unpack(">d", bytes.fromhex(entry["eps"]["bits"]))[0] == float(entry["eps"]["value"]) == vector.case.eps
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_travel(dtype: str) -> None:
    """All bit patterns of half types, and random ones of the others, are kept, NaN and -0 among them."""
    size = DTYPES[dtype].itemsize
    words = np.random.default_rng(0).integers(0, 256, (500, size), np.uint8).view(f"u{size}").ravel()
    array = np.append(words, 1 << (8 * size - 1)).astype(f"u{size}").view(DTYPES[dtype]).reshape(-1, 3)
    assert golden.from_hex(to_hex(array)).tobytes() == array.tobytes()


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version must be 1 to 1; got 7"):
        golden.load(7)


# Layouts.


@pytest.mark.clause("S1")
@given(case=strategies.cases(), data=st.data())
def test_layouts_keep_values(case: Case, data: st.DataObject) -> None:
    laid = data.draw(layouts(case.x))
    assert equal(laid, case.x)
    assert not np.shares_memory(laid, case.x)


def test_layouts_differ_in_memory() -> None:
    x = np.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    seen = {name: make(x) for name, make in LAYOUTS.items()}
    assert len({a.strides for name, a in seen.items() if name != "an offset view"}) == len(seen) - 1
    assert seen["an offset view"].strides == x.strides
    assert all(np.array_equal(a, x) for a in seen.values())
    assert min(seen["negative strides"].strides) < 0
    assert seen["channels last in memory"].strides[1] == x.itemsize


@pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 3, 5)])
def test_repeated_values_are_drawn_without_strides(shape: tuple[int, ...]) -> None:
    ones: Array = np.ones(shape)
    found = find(layouts(ones), lambda a: 0 in a.strides, settings=settings(max_examples=500, database=None))
    assert found.tolist() == ones.tolist()
    assert repeated(np.arange(60.0).reshape(3, 4, 5)) is None
    along = repeated(np.broadcast_to(np.arange(3.0), (4, 3)).copy())
    assert along is not None
    assert along.strides[0] == 0 != along.strides[1]


def test_strategies_draw_what_they_are_asked_for() -> None:
    few = settings(max_examples=40, database=None, deadline=None)

    @few
    @given(
        made=lattices(("float16",), ranks=(3,), second=True),
        case=strategies.cases(("float64",), ranks=(4,), second=True),
    )
    def check(made: Lattice, case: Case) -> None:
        assert (made.case.x.dtype.name, made.case.x.ndim, made.case.axis) == ("float16", 3, 1)
        assert (case.x.dtype.name, case.x.ndim, case.axis) == ("float64", 4, 1)
        assert len(set(case.x.shape)) == 4

    check()
    assert in_inference(lattice(0, "float32", 2, (4,), 1)).case.training is False
    assert Outcome(np.zeros(1)).dx is None
