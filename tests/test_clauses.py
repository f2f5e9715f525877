"""Each clause of the specification has a test, and no test or comment cites a clause that does not exist."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from polybn import spec

ROOT = Path(__file__).parents[1]
TESTS = sorted((ROOT / "tests").glob("**/test_*.py"))
PROSE = sorted(path for folder in ("polybn", "backends") for path in (ROOT / folder).glob("**/*.py"))


def clauses_of(prose: str) -> list[str]:
    """List the clauses that a specification names at the head of a paragraph, in order."""
    return re.findall(r"^\*\*(S\d+) [^*]+\*\*", prose, re.MULTILINE)


def marks_of(source: str) -> Iterator[str]:
    """Yield the clauses in the marks of a module, on tests, on parameters or on the whole module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.clause"):
            assert node.args, f"a mark without a clause in line {node.lineno}"
            yield from (ast.literal_eval(argument) for argument in node.args)


@functools.cache
def marked_in(path: Path) -> frozenset[str]:
    return frozenset(marks_of(path.read_text()))


CLAUSES = clauses_of(spec.__doc__ or "")


def test_the_specification_has_its_clauses_in_order() -> None:
    assert [f"S{i}" for i in range(1, 16)] == CLAUSES


@pytest.mark.parametrize("clause", CLAUSES)
def test_each_clause_is_checked_by_a_test(clause: str) -> None:
    assert [path.name for path in TESTS if clause in marked_in(path)]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_no_test_marks_a_clause_that_is_not_there(path: Path) -> None:
    assert marked_in(path) <= set(CLAUSES)


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_comment_cites_a_clause_that_is_not_there(path: Path) -> None:
    assert set(re.findall(r"\bS\d{1,2}\b", path.read_text())) <= set(CLAUSES)


def test_the_readers_read() -> None:
    assert clauses_of("**S1 Axes.** See S2 and **S3**.\n\n  **S4 x.**\n**S5 y z.** text\n**S6**") == ["S1", "S5"]
    source = """
        pytestmark = pytest.mark.clause("S1")
        @pytest.mark.clause("S2", "S3")
        def test(x=pytest.param(1, marks=[pytest.mark.clause("S4")])): "S5"
        # pytest.mark.clause("S6")
        @pytest.mark.skip("S7")
        class T:
            @pytest.mark.clause("S8")
            def test(self): ...
    """
    assert sorted(marks_of(re.sub(r"^        ", "", source, flags=re.MULTILINE))) == ["S1", "S2", "S3", "S4", "S8"]
    assert Path(__file__) in TESTS
    assert ROOT / "polybn" / "arguments.py" in PROSE
