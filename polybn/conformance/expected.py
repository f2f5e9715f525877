"""Expected failures: each must have a reason, and an expected failure that passes is an error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polybn.conformance.finding import demand_known
from polybn.spec import DomainError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from polybn.conformance.result import Result


def read(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the reasons, by id, from lines ``property-id  # reason, url``; empty lines and comments are skipped."""
    found = dict[str, str]()
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        name, _, reason = (part.strip() for part in line.partition("#"))
        if not name:
            continue
        if not reason or name in found:
            rule = "have a reason: property-id  # reason, url" if not reason else "name each id once"
            raise DomainError(f"polybn.conformance.check: xfail must {rule}; got {line!r} ({path}, line {number})")
        demand_known("xfail", name)
        found[name] = reason
    return found


def judge(results: Sequence[Result], expected: dict[str, str]) -> tuple[list[Result], list[str]]:
    """Return the results with expected failures marked, and a message for each stale entry of reasons by id."""
    errors = list[str]()
    marked = []
    for result in results:
        reason = expected.get(result.id)
        if reason is not None and result.status in ("fail", "echo"):
            result = result._replace(status="expected failure", reason=reason)
        elif reason is not None:
            errors.append(f"xfail entry {result.id} ({reason}) must be removed: the result is {result.status!r}")
        marked.append(result)
    return marked, errors
