"""The one sentence that the author of a batch norm needs first: what to declare, or which failure to look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polybn.conformance.adapter import Info
    from polybn.conformance.result import Result

GRAVE = ("died", "time")
"""Kinds of failures that explain others, in this order."""
PLAINEST = ("P0", "P1", "P2", "P2b", "P3", "P4", "P22")
"""Properties of ordinary calls: a result of a wrong form in one of them explains others."""
RANGE = re.compile(r"P15b|P38|P6b|[RG]\d|grade-")
"""The beginnings of the ids of checks that ask for numbers from the ends of the range, and of grades."""
NAMED = re.compile(r"\b(y|dx|dgamma|dbeta|running_mean|running_var)(?= must| of|: | and| is)")
"""The name of the result that a failure is about, where its words say it first."""
TELLING = ("P18", "P17", "P37")
"""Properties whose failure explains other failures and wrong conventions: arguments are written, results change."""
MOST = 300
"""The longest sentence, in characters."""


def first(results: Sequence[Result], info: Info, declarations: Sequence[str], *, declarable: bool = True) -> str:
    """Return the sentence for these results, empty if nothing is wrong.

    ``declarations`` holds one sentence for each wrong declaration; ``declarable`` says whether all can be made right.
    Then what fails beside them, and is no echo, has another reason; otherwise nobody can tell.
    """
    failed = [result for result in results if result.status == "fail"]
    if declarations and not any(result.cause in GRAVE or tells(result) for result in failed):
        rest = in_order([result for result in failed if result.cause != "convention"])
        beside = "for another reason" if declarable else "beside that"
        more = [f"{_number(len(rest))} {beside}, first {_said(rest[0])}."] if rest else []
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


def _weight(result: Result) -> tuple[int, int]:
    """Return the place of a failure: how it fails, and of plain calls which result is wrong; equal places keep order.

    The order of ids alone would put a last bit or an overflow before a gradient of which half is missing.
    """
    if result.cause in GRAVE:
        return 0, GRAVE.index(result.cause)
    if result.cause == "contract" and result.id in PLAINEST:
        return 1, 0
    if result.id in TELLING:
        return 2, TELLING.index(result.id)
    if result.cause in ("convention", "unstable"):
        return 3, ("convention", "unstable").index(result.cause)
    if result.cause in ("bits", "contract"):  # a wrong form, too, if it comes only with unusual calls
        return 6, 0
    return (5, 0) if RANGE.match(result.id) else (4, _turn(result.words))


def _turn(words: str) -> int:
    """Return 0 for what is about y, or about nothing by name, 1 for gradients and 2 for running statistics."""
    found = NAMED.search(words)
    return 0 if found is None or found[1] == "y" else 1 if found[1].startswith("d") else 2


def _about(result: Result, many: int) -> str:
    others = "" if many == 1 else f"; mend this first: {_number(many - 1).lower()}, too"
    return f"{_said(result)}{others}."


def _said(result: Result) -> str:
    words = result.words if len(result.words) <= MOST else f"{result.words[:MOST].rsplit(' ', 1)[0]} ..."
    return f"{result.id}: {_whole(words)[:-1]}"


def _number(many: int) -> str:
    return "1 check fails" if many == 1 else f"{many} checks fail"


def _whole(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!")) else f"{sentence}."
