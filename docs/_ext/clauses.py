"""The clauses of the specification, each with the tests and the properties that check it.

The prose is the docstring of :mod:`polybn.spec`. Tests name their clauses in marks, ``@pytest.mark.clause("S8")``, and
properties of the kit in their field ``clause``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from polybn import spec

ROOT = Path(__file__).parents[2]


class Clause(NamedTuple):
    """One numbered paragraph of the specification, in reStructuredText."""

    number: str
    title: str
    body: str


class Check(NamedTuple):
    """A place in the tests that names a clause."""

    path: str
    """The path of the file, relative to the repository."""
    line: int
    name: str
    """The name of the test, or of the table of cases, that has the mark; empty for a mark of the whole file."""


def split(prose: str) -> tuple[str, list[Clause]]:
    """Return what comes before the first clause, and the clauses."""
    intro, *rest = re.split(r"^\*\*(S\d+) ([^*]+?)\.?\*\*", prose, flags=re.MULTILINE)
    triples = zip(rest[0::3], rest[1::3], rest[2::3], strict=True)
    return intro.strip(), [Clause(number, title, _complete(title, body)) for number, title, body in triples]


def checks(path: Path) -> Iterator[tuple[str, Check]]:
    """Yield each clause that a test file marks, with the place."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        name = getattr(statement, "name", "")
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) != "pytestmark":
            name = ast.unparse(statement.targets[0])
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.clause"):
                for clause in node.args:
                    line = statement.lineno if name else node.lineno
                    yield ast.literal_eval(clause), Check(str(path.relative_to(ROOT)), line, name)


def to_rst(prose: str, tests: list[Path], properties: dict[str, list[str]]) -> str:
    """Write the specification in reStructuredText: the clauses, then the tests and ``properties`` that check each."""
    intro, clauses = split(prose)
    found = [pair for path in tests for pair in checks(path)]
    parts = [intro]
    for clause in clauses:
        parts += [f".. _{clause.number}:", _heading(f"{clause.number}. {clause.title}", "-"), clause.body]
        parts.append(f":ref:`What checks {clause.number} <checks-{clause.number}>`")
    parts.append(_heading("What checks each clause", "-"))
    for clause in clauses:
        parts += [f".. _checks-{clause.number}:", _heading(f"{clause.number}: {clause.title}", "~")]
        if properties.get(clause.number):
            ids = ", ".join(f"``{name}``" for name in properties[clause.number])
            parts.append(f"In the conformance kit (``polybn check --only ID``): {ids}")
        parts.append(_tests([check for number, check in found if number == clause.number]))
    return "\n\n".join(parts) + "\n"


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}"


def kit() -> dict[str, list[str]]:
    """Map each clause to the ids of the kit's properties that check it."""
    from polybn.conformance import PROPERTIES

    found = dict[str, list[str]]()
    for prop in PROPERTIES:
        for number in re.findall(r"S\d+", prop.clause):
            found.setdefault(number, []).append(prop.id)
    return found


def specification() -> str:
    """Return the text of the page of the specification."""
    return to_rst(spec.__doc__ or "", sorted((ROOT / "tests").glob("**/test_*.py")), kit())


def _complete(title: str, body: str) -> str:
    """Return a body that begins with a whole sentence, by repeating a title that is part of the first sentence."""
    body = body.strip()
    return body if body[:1].isupper() or body[:1] == "`" else f"{title} {body}"


def _tests(found: list[Check]) -> str:
    by_file = dict[str, list[Check]]()
    for check in found:
        if check not in by_file.setdefault(check.path, []):
            by_file[check.path].append(check)
    lines = []
    for path, places in by_file.items():
        links = ", ".join(
            f"`{place.name or 'the whole file'} <sources/{path}.html#L{place.line}>`__" for place in places
        )
        lines.append(f"- ``{path}``: {links}")
    return "\n".join(lines)
