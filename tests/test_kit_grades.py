"""Grades: an algorithm of each class gets its class, and a defect loses it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from polybn import conformance
from polybn.conformance.adapter import Info
from polybn.conformance.adapters.backend import BackendAdapter
from polybn.conformance.cases import DTYPES, Array, Case, Outcome
from polybn.conformance.families import FAMILIES
from polybn.conformance.grades import LADDER, Grade, Letter, Row, grade, holds
from polybn.conformance.runner import run as run_adapter
from tests.support.kit_variants import VARIANTS, Plain, in_a_tree, run, two_pass

LETTERS: dict[str, Letter] = {
    "wide": "S", "kappa-free": "K", "tree": "T", "in order": "N", "Welford": "F", "Chan": "F", "one-pass": "O",
}  # fmt: skip


def uncertified(grade: Grade) -> tuple[Row, ...]:
    """List the rows for which the letter has no bound; all rows for ``"-"``."""
    return tuple(row for row in grade.rows if row.bounds.get(grade.letter) is None)


def silent(grade: Grade) -> tuple[Row, ...]:
    """List the rows of the range families whose finite results are beyond K's bounds (S10)."""
    return tuple(row for row in grade.rows if not row.in_range and (row.ratio["K"] or 0) > 1)


@cache
def graded(name: str, dtype: str = "float32") -> Grade:
    adapter = VARIANTS[name]
    return grade(adapter, adapter.info(), dtype, run)  # type: ignore[arg-type]


@pytest.mark.clause("S2", "S3", "S4", "S8", "S10", "S13")
@pytest.mark.parametrize("name", LETTERS)
def test_each_algorithm_earns_its_letter(name: str) -> None:
    found = graded(name)
    assert found.letter == LETTERS[name]
    assert found.dtype == "float32"


@pytest.mark.clause("S2", "S3", "S4", "S6", "S8", "S10", "S13")
@pytest.mark.parametrize(
    ("dtype", "letters"), [("float32", "SK"), ("float64", "SK"), ("float16", "K"), ("bfloat16", "K")]
)
def test_the_numpy_backend(dtype: str, letters: str) -> None:
    adapter = BackendAdapter("numpy")
    found = grade(adapter, adapter.info(), dtype, run_adapter)
    assert found.letter in tuple(letters)
    assert uncertified(found) == silent(found) == ()
    assert all(row.kappa == math.inf for row in found.rows if row.family.startswith("constant"))
    assert all(row.error <= row.bounds["K"] for row in found.rows if row.bounds["K"] is not None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_families_cover_what_they_should(dtype: str) -> None:
    names = [family.name for family in FAMILIES[dtype]]
    assert len(set(names)) == len(names) >= 9
    assert {"N(0, 1)", "N(10, 1)", "constant 0.1", "one outlier", "integers 0 to 255", "subnormal"} <= set(names)
    assert {m for family in FAMILIES[dtype] for m in family.sizes} == {2, 3, 31, 257, 1000, 1024, 16384}
    assert all(family.in_range for family in FAMILIES[dtype]) == (dtype == "float16")
    found = graded("wide", dtype)
    kappas = [row.kappa for row in found.rows if row.kappa < math.inf]
    assert max(kappas) > {"float16": 50, "bfloat16": 20, "float32": 5e5, "float64": 5e11}[dtype]
    assert {row.case.axis for row in found.rows} == {1, 3}
    assert all(row.case.x.dtype == DTYPES[dtype] for row in found.rows)
    assert all(np.isfinite(row.case.x.astype(np.float64)).all() for row in found.rows)


def test_only_the_second_axis_where_that_is_all() -> None:
    adapter = VARIANTS["wide"]
    info = adapter.info()._replace(axes="second", ranks=(2,))
    found = grade(adapter, info, "float32", run)  # type: ignore[arg-type]
    assert {(row.case.axis, row.case.x.ndim) for row in found.rows} == {(1, 2)}
    assert found.letter == "S"


def test_what_is_not_certified_is_named() -> None:
    """Two-pass forms have no bounds from some kappa between 1e4 and 1e6 on, nor if squares overflow."""
    missing = {row.family for row in uncertified(graded("tree"))}
    assert {"N(10000, 0.01)", "N(0, 1e+18)", "N(0, 1e+25)"} <= missing
    assert not {"N(0, 1)", "N(10, 1)", "N(1000, 1)", "constant 0.1", "subnormal"} & missing
    assert uncertified(graded("wide")) == uncertified(graded("kappa-free")) == ()


@pytest.mark.clause("S10")
def test_finite_and_wrong_is_reported() -> None:
    """At 1e25 the two-pass form returns beta without a warning, the wide form is right, the kappa-free one NaN."""
    assert {row.family for row in silent(graded("tree"))} == {"N(0, 1e+18)", "N(0, 1e+25)"}
    assert silent(graded("wide")) == silent(graded("kappa-free")) == ()
    honest = [row for row in graded("kappa-free").rows if row.family == "N(0, 1e+25)"]
    assert all(math.isnan(row.error) and (row.ratio["K"] or 0) <= 1 for row in honest)


def test_one_vacuous_bound_costs_k_and_not_t() -> None:
    rows = list(graded("wide").rows)
    assert holds(rows, "S")
    assert holds(rows, "K")
    none: dict[str, float | None] = dict.fromkeys(LADDER)
    rows[-1] = rows[-1]._replace(ratio=none)
    assert [name for name in LADDER if holds(rows, name)] == ["T", "N", "F", "O"]
    near = [row._replace(ratio=none) if row.family == "N(0, 1)" else row for row in rows]
    assert not holds([row for row in near if "N(0, 1)" in row.family and "last" not in row.family], "T")


def test_rows_say_what_happened() -> None:
    (row,) = (r for r in graded("tree").rows if (r.family, r.m) == ("constant 1234.567", 31))
    assert row.kappa == math.inf
    assert row.case.x.shape == (31, 3, 1, 1)
    assert set(row.bounds) == set(row.ratio) == set(LADDER)
    near = next(r for r in graded("tree").rows if (r.family, r.m) == ("N(0, 1)", 1024))
    assert 1 <= near.kappa < 1.1
    for name in LADDER:
        assert (near.bounds[name] is None) == (near.ratio[name] is None)
    assert near.error <= near.bounds["T"] <= near.bounds["N"]  # type: ignore[operator]
    assert all(
        (row.bounds[name] is None) == (row.ratio[name] is None) for row in graded("tree").rows for name in LADDER
    )


def test_progress_counts_the_rows() -> None:
    seen: list[tuple[int, int]] = []
    adapter = VARIANTS["tree"]
    found = grade(adapter, adapter.info(), "bfloat16", run, lambda done, total: seen.append((done, total)))  # type: ignore[arg-type]
    assert seen == [(i + 1, len(found.rows)) for i in range(len(found.rows))]


def test_grades_are_repeatable() -> None:
    adapter = VARIANTS["tree"]
    again = grade(adapter, adapter.info(), "float32", run)  # type: ignore[arg-type]
    assert [row[:6] for row in again.rows if row.error == row.error] == [
        row[:6] for row in graded("tree").rows if row.error == row.error
    ]


# Defects: each turns an excellent batch norm into one of a lower class, or of none.


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep to short channels, which are enough for these tests."""
    kept = tuple(
        f._replace(sizes=tuple(m for m in f.sizes if m <= 257), both_layouts=False) for f in FAMILIES["float32"]
    )
    monkeypatch.setitem(FAMILIES, "float32", kept)


Spoil = Callable[[Case, Outcome], dict[str, Any]]


def spoiled(change: Spoil) -> Callable[[Plain, Info, Case], Outcome]:
    def spoil(adapter: Plain, info: Info, case: Case) -> Outcome:
        outcome = run(adapter, info, case)
        return outcome._replace(**change(case, outcome))

    return spoil


def array(value: Array | None) -> Array:
    assert value is not None
    return value


def _bessel(case: Case, outcome: Outcome) -> dict[str, Any]:
    m = case.x.size // 3
    old = case.momentum * array(case.running_var)
    return {"running_var": (old + (array(outcome.running_var) - old) * np.float32(m / (m - 1))).astype(np.float32)}


DEFECTS: dict[str, tuple[Spoil, str]] = {
    "y": (lambda _, o: {"y": o.y * np.float32(1 + 2e-2)}, "-"),
    "dx": (lambda _, o: {"dx": array(o.dx) * np.float32(1.1)}, "-"),
    "dgamma": (lambda _, o: {"dgamma": array(o.dgamma) * np.float32(1.1)}, "-"),
    "dbeta": (lambda _, o: {"dbeta": array(o.dbeta) * np.float32(1.1)}, "-"),
    "running_mean": (lambda _, o: {"running_mean": array(o.running_mean) + np.float32(0.1)}, "-"),
    "unbiased running_var": (_bessel, "-"),
    "no dx for constants": (lambda c, o: {} if np.ptp(c.x) > 3 * abs(c.x).max() else {"dx": 0 * array(o.dx)}, "-"),
    "NaN": (lambda _, o: {"y": np.full_like(o.y, np.nan)}, "-"),
    "gamma of the wrong sign for small input": (lambda c, o: {"y": -o.y} if abs(c.x).max() < 1e-30 else {}, "-"),
}


@pytest.mark.parametrize("name", DEFECTS)
@pytest.mark.usefixtures("few")
def test_a_defect_costs_the_letter(name: str) -> None:
    change, allowed = DEFECTS[name]
    adapter = VARIANTS["wide"]
    found = grade(adapter, adapter.info(), "float32", spoiled(change))  # type: ignore[arg-type]
    assert found.letter in tuple(allowed)


@pytest.mark.usefixtures("few")
def test_constants_must_be_exact() -> None:
    """One unit in the last place of a constant channel's y costs S and K."""

    def change(case: Case, outcome: Outcome) -> dict[str, Any]:
        constant = np.ptp(case.x, axis=(0, 2, 3)).max() == 0 if case.axis == 1 else False
        return {"y": np.nextafter(outcome.y, np.float32(np.inf))} if constant else {}

    adapter = VARIANTS["wide"]
    found = grade(adapter, adapter.info(), "float32", spoiled(change))  # type: ignore[arg-type]
    assert found.letter == "T"
    assert not holds(list(found.rows), "S")
    assert not holds(list(found.rows), "K")


@pytest.mark.clause("S10")
@pytest.mark.parametrize(("value", "letter"), [(0.0, "T"), (math.nan, "S"), (math.inf, "S")])
@pytest.mark.usefixtures("few")
def test_out_of_range_wrong_costs_s_and_k_and_nan_does_not(value: float, letter: str) -> None:
    def change(case: Case, outcome: Outcome) -> dict[str, Any]:
        return {"y": np.full_like(outcome.y, value)} if abs(case.x).max() > 1e22 else {}

    adapter = VARIANTS["wide"]
    found = grade(adapter, adapter.info(), "float32", spoiled(change))  # type: ignore[arg-type]
    assert found.letter == letter
    assert bool(silent(found)) == (value == 0)


@pytest.mark.usefixtures("few")
def test_a_call_that_fails_costs_every_letter() -> None:
    def failing(adapter: Plain, info: Info, case: Case) -> Outcome:
        if case.x.size == 3 * 257:
            raise AssertionError("plain NumPy.train raised MemoryError")
        return run(adapter, info, case)

    adapter = VARIANTS["wide"]
    found = grade(adapter, adapter.info(), "float32", failing)  # type: ignore[arg-type]
    assert found.letter == "-"
    assert {row.m for row in found.rows if row.ratio["S"] == math.inf} == {257}


@pytest.mark.usefixtures("few")
def test_without_gradients_the_rest_decides() -> None:
    def forward(adapter: Plain, info: Info, case: Case) -> Outcome:
        return run(adapter, info, case)._replace(dx=None, dgamma=None, dbeta=None)

    adapter = Plain(two_pass(in_a_tree))
    assert grade(adapter, adapter.info(), "float32", forward).letter == "T"  # type: ignore[arg-type]


@pytest.mark.usefixtures("few")
def test_momentum_and_variance_as_declared() -> None:
    """The case decides the expected variance; its momentum weighs the old value, whatever the adapter declares."""
    seen: list[Case] = []

    def watching(adapter: Plain, info: Info, case: Case) -> Outcome:
        seen.append(case)
        m = case.x.size // len(array(case.gamma))
        outcome = run(adapter, info._replace(momentum="old"), case)
        old = case.momentum * array(case.running_var).astype(np.float64)
        new = old + (array(outcome.running_var) - old) * (m / (m - 1))
        return outcome._replace(running_var=new.astype(np.float32))

    adapter = VARIANTS["wide"]
    info = adapter.info()._replace(running_variance="unbiased", momentum="new")
    found = grade(adapter, info, "float32", watching)  # type: ignore[arg-type]
    assert {(case.momentum, case.running_variance) for case in seen} == {(0.25, "unbiased")}
    assert found.letter in ("S", "K", "T")


def test_a_printed_grade_is_short() -> None:
    found = conformance.check("polybn-numpy", only=["grade-float16"]).grades
    assert re.fullmatch(r"\(Grade\('float16', 'K', \d+ rows\),\)", repr(found))
