"""The one sentence that the author of a batch norm needs first: what to declare, or which failure to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polybn.conformance.adapter import Info
    from polybn.conformance.result import Result

GRAVE = ("died", "time", "contract")
"""Kinds of failures that explain others, in this order."""
TELLING = ("P18", "P17", "P37")
"""Properties whose failure explains other failures and wrong conventions: arguments are written, results change."""
MOST = 300
"""The longest sentence, in characters."""


def first(results: Sequence[Result], info: Info, declarations: Sequence[str]) -> str:
    """Return the sentence for these results, empty if nothing is wrong.

    ``declarations`` holds one sentence for each wrong declaration.
    """
    failed = [result for result in results if result.status == "fail"]
    if declarations and not any(result.cause in GRAVE or tells(result) for result in failed):
        rest = [result for result in failed if result.cause != "convention"]
        more = [f"{_number(len(rest))} for another reason, first {rest[0].id}."] if rest else []
        return " ".join([*map(_whole, declarations), *more])
    if failed:
        return _about(in_order(failed)[0], len(failed))
    reasons = sorted({result.reason for result in results if result.status == "echo"})
    return f"{info.name}: {' and '.join(reasons)}." if reasons else ""


def tells(result: Result) -> bool:
    """Return whether a failure explains others, whatever is declared: calls with side effects, not merely errors."""
    return result.id in TELLING and result.cause not in ("raised", "contract")


def in_order(failed: Sequence[Result]) -> list[Result]:
    """Return failures in the order in which to mend them: those that explain others, then the plainest."""
    return sorted(failed, key=_weight)


def _weight(result: Result) -> int:
    if result.cause in GRAVE:
        return GRAVE.index(result.cause)
    if result.id in TELLING:
        return len(GRAVE) + TELLING.index(result.id)
    return 10 if result.cause == "unstable" else 11


def _about(result: Result, many: int) -> str:
    others = "" if many == 1 else f"; mend this first: {_number(many - 1).lower()}, too"
    words = result.words if len(result.words) <= MOST else f"{result.words[:MOST].rsplit(' ', 1)[0]} ..."
    return f"{result.id}: {_whole(words)[:-1]}{others}."


def _number(many: int) -> str:
    return "1 check fails" if many == 1 else f"{many} checks fail"


def _whole(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!")) else f"{sentence}."
