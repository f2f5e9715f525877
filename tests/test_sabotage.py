"""Tests of the conformance kit: each mutant of a right batch norm must fail, and each honest variant must pass.

The score is printed at the end. POLYBN_SABOTAGE_JSON names a file for the table of mutants and their detections.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from polybn import conformance
from polybn.conformance.finding import find
from polybn.conformance.result import Result
from polybn.conformance.subject import prepare
from tests.sabotage.honest import HONEST, Honest
from tests.sabotage.mutant import Mutant
from tests.sabotage.mutants import DOWNGRADED, MUTANTS, OUT_OF_REACH
from tests.sabotage.reference import Reference

SEED = 0
RAISED = re.compile(r"\.(train|infer|vjp) raised ")

# These need megabytes each, and run only if nothing else has found a fault.
LARGE = ("P6", "P6b")
# The first ones cost little and find most mutants. Inference comes before any training.
FIRST = (
    "P4",
    "convention-momentum", "convention-running_variance", "convention-single_value", "convention-empty",
    "P15", "P16", "P40", "R2", "R4", "P38", "P38b", "P38c", "P38d", "P1", "P2", "P3", "P39",
)  # fmt: skip
SMALL = (*FIRST, *(id for id in conformance.IDS if id not in FIRST + LARGE and not id.startswith("grade-")))

# Variants differ in rounding and conventions. These properties check memory and state, as in the reference.
OF_THE_REFERENCE = {
    "P12b", "P13", "P17", "P17b", "P18", "P19", "P21", "P35", "P37", "P37b", "P38", "P38b", "P38c", "P38d",
}  # fmt: skip
OF_ROUNDING = tuple(id for id in SMALL if id not in OF_THE_REFERENCE)
LONG_SUMS = {"naive-order", "welford", "pytorch-like"}
"""Variants that also run the properties with large arrays."""


def named(table: tuple[Mutant, ...] | tuple[Honest, ...]) -> list[str]:
    return [row.id for row in table]


@pytest.fixture(scope="session")
def scoreboard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Provide a directory for one file per mutant; print the sum after the last one."""
    base = tmp_path_factory.getbasetemp()
    board = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sabotage"
    board.mkdir(exist_ok=True)
    yield board
    of_mutants = (getattr(item, "originalname", "") == "test_a_mutant_is_caught" for item in request.session.items)
    expected, rows = sum(of_mutants), [json.loads(file.read_text()) for file in board.glob("*.json")]
    if len(rows) == expected:
        try:
            (board / "summed-up").touch(exist_ok=False)
        except FileExistsError:  # the other process printed it
            return
        caught = sum(bool(row["caught by"]) for row in rows)
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\nsabotage: caught {caught} of {expected} mutants", file=sys.stderr)  # noqa: T201
        if "POLYBN_SABOTAGE_JSON" in os.environ:
            order = named(MUTANTS)
            rows.sort(key=lambda row: order.index(row["mutant"]))
            table = {"caught": caught, "mutants": rows, "out of reach": OUT_OF_REACH}
            Path(os.environ["POLYBN_SABOTAGE_JSON"]).write_text(json.dumps(table, indent=1) + "\n")


def failures(adapter: Reference, ids: Iterable[str], profile: str, examples: int) -> Iterator[Result]:
    """Check one property after another, with few examples; yield failures."""
    subject = prepare(adapter, profile, seed=SEED, shrink=False)
    subject = subject._replace(profile=subject.profile._replace(examples=examples, runs=examples // 5))
    return (result for id in ids if (result := find(subject, id).result).status in ("fail", "echo"))


def stages(make: Callable[[], Reference]) -> Iterator[Result]:
    """Look for a fault in stages, the cheapest first."""
    for ids, profile, examples in ((SMALL, "dev", 10), (LARGE, "ci", 1), (SMALL, "dev", 50)):
        yield from failures(make(), ids, profile, examples)


@pytest.mark.parametrize("mutant", MUTANTS, ids=named(MUTANTS))
def test_a_mutant_is_caught(mutant: Mutant, scoreboard: Path) -> None:
    found = next(stages(mutant.make), None)
    row = {"mutant": mutant.id, "fault": mutant.sentence, "bug class": mutant.bug, "stands for": mutant.upstream}
    (scoreboard / f"{mutant.id}.json").write_text(json.dumps(row | {"caught by": found.id if found else ""}))
    assert found, f"survives: {mutant.sentence}"
    crash = RAISED.search(found.words)
    assert mutant.crashes or not crash, f"{found.id} caught a crash, not the fault: {found.words}"


@pytest.mark.parametrize("variant", HONEST, ids=named(HONEST))
def test_an_honest_variant_passes_with_the_grade_it_deserves(variant: Honest) -> None:
    assert not list(failures(variant.make(), OF_ROUNDING, "dev", 12))
    if variant.id in LONG_SUMS:
        assert not list(failures(variant.make(), LARGE, "ci", 1))
    graded = conformance.check(variant.make(), seed=SEED, only=["grade-float32"])
    assert graded.ok
    assert graded.grades[0].letter in variant.grades


@pytest.mark.parametrize("mutant", DOWNGRADED, ids=named(DOWNGRADED))
def test_a_loss_of_accuracy_shows_in_the_grade(mutant: Mutant) -> None:
    report = conformance.check(mutant.make(), seed=SEED, only=["grade-float32"])
    assert report.ok
    assert report.grades[0].letter not in "SK"


def test_the_whole_reference_passes() -> None:
    report = conformance.check(HONEST[0].make(), seed=SEED, only=[*SMALL, *LARGE])
    assert report.ok, [(result.id, result.words) for result in report.failures]
    assert report.count("not certified") == 0


def test_the_tables_are_in_order() -> None:
    ids = [*named(MUTANTS), *named(DOWNGRADED), *named(HONEST)]
    assert len(ids) == len(set(ids))
    assert len(MUTANTS) >= 60
    assert len(HONEST) >= 13
    reports = [name for mutant in (*MUTANTS, *DOWNGRADED) for name in mutant.upstream.split(", ") if name]
    unreachable = ", ".join(OUT_OF_REACH).split(", ")
    assert all(re.fullmatch(r"[\w./-]+#\d+", name) for name in [*reports, *unreachable])
    assert not set(reports) & set(unreachable)
