"""Every backend passes the conformance kit with grades of K or better, whose accuracy depends on no mean."""

from __future__ import annotations

import functools

import pytest
from hypothesis import settings

from polybn import conformance
from polybn.conformance.finding import GRADES, find
from polybn.conformance.grades import LADDER
from polybn.conformance.result import Result
from polybn.conformance.subject import Subject, prepare
from tests.conftest import COMPILING
from tests.support.xla import ELSEWHERE, compiles_quickly

OF_OTHERS = {"P43"}
"""Properties that apply only to adapters that declare a difference from the specification."""
CHECKS = [name for name in conformance.IDS if not name.startswith("grade-") and name not in OF_OTHERS]
KAPPA_FREE = LADDER[: LADDER.index("K") + 1]
SEED = 20
SHARE = 100
"""A library that compiles is given the hundredth part of the cases: the kit has some sixty properties."""


@functools.cache
def subject(backend: str) -> Subject:
    return prepare(conformance.resolve(f"polybn-{backend}"), seed=SEED)


def found(backend: str, name: str) -> Result:
    """Check one thing, on as many cases as the profile of the other tests draws."""
    whole, examples = subject(backend), max(2, settings().max_examples // (SHARE if backend in COMPILING else 1))
    profile = whole.profile._replace(examples=examples, runs=max(1, examples // 5), slow=True, seconds=900)
    return find(whole._replace(profile=profile), name).result


@pytest.mark.clause("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S11", "S13")
@pytest.mark.parametrize("name", CHECKS)
def test_each_backend_keeps_to_the_specification(backend: str, name: str) -> None:
    result = found(backend, name)
    assert result.status == "pass", f"{result.title}\n{result.status}: {result.words}\n{result.reproducer}"


@pytest.mark.clause("S2", "S3", "S6", "S8", "S10")
@pytest.mark.parametrize("dtype", GRADES)
def test_each_backend_is_graded_k_or_better(backend: str, dtype: str) -> None:
    if backend in COMPILING and compiles_quickly():
        pytest.skip(ELSEWHERE)
    whole = subject(backend)
    if dtype not in whole.info.dtypes:
        pytest.skip(f"{whole.info.name} has no {dtype}")
    patient = whole._replace(profile=whole.profile._replace(seconds=900))
    grade = find(patient, f"grade-{dtype}").grade
    assert grade is not None
    assert grade.letter in KAPPA_FREE


def test_no_declaration_excuses_a_backend(backend: str) -> None:
    """Every backend declares the conventions, axes and ranks of the specification; dtypes and flushing may differ."""
    info = subject(backend).info
    expected = conformance.Info(info.name, info.version, dtypes=info.dtypes, flushes=info.flushes)
    assert info == expected._replace(compiles=info.compiles, differentiates_inference=True, of_backend=True)
    assert {"float32", "float64"} <= {*info.dtypes}
