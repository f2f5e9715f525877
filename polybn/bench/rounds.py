"""Rounds: every entrant once in each, in random order, and what is made of one that fails."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from polybn.bench.contenders import Found
from polybn.bench.processes import busy, started
from polybn.bench.record import AGAIN, Record, Row, facts
from polybn.bench.tasks import BUSY, Task

REST = 0.03
"""Seconds of rest before a contender runs: threads of the one before may still spin."""


class Asked(Protocol):
    """What answers questions: a process, or a test's stand-in."""

    def ask(self, question: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """Return ``{"seconds": ...}`` or ``{"cannot": ...}``."""


@dataclass
class Plan:
    """How a run is done."""

    tasks: Sequence[Task]
    """What is timed, in this order."""
    contenders: Sequence[Found]
    """Who takes part."""
    against: str
    """The name of the contender that all are compared with."""
    rounds: int = 7
    """How many rounds count; one more goes before them."""
    block: float = 0.04
    """Seconds for which a contender is called in a round, if three calls are not longer."""
    limit: float = 120
    """Seconds after which a contender that does not answer is ended."""
    threads: int | None = None
    """Threads of each contender, where its library reads the usual variables; None leaves them as installed."""
    with_busy: bool = False
    """Whether steps of LeNet are also timed while two other processes keep cores busy."""
    random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311
    """Draws the order of each round."""


def run(plan: Plan, report: Callable[[str], None] = print, record: Record | None = None) -> Record:
    """Time every contender in every task.

    Parameters
    ----------
    plan : Plan
        What to do.
    report : callable
        Called with words before each task.
    record : Record, optional
        Where the rows go as they come, so that a run which is broken off leaves what it has.

    Returns
    -------
    Record
        With a row for every task and contender.
    """
    found = {contender.name: contender.version for contender in plan.contenders}
    record = record or Record(plan.against, facts(plan.rounds, plan.threads), found)
    names = {**{name: name for name in found}, plan.against + AGAIN: plan.against}
    with started(names, plan.threads) as entrants:
        for task in plan.tasks:
            report(f"{task}")
            record.rows += measure(task, entrants, plan)
        if plan.with_busy:
            report("lenet beside two busy processes")
            with busy():
                record.rows += measure(BUSY, entrants, replace(plan, rounds=min(3, plan.rounds)))
    return record


def measure(
    task: Task, entrants: Mapping[str, Asked], plan: Plan, rest: Callable[[float], None] = time.sleep
) -> list[Row]:
    """Time every entrant in each round; one that cannot run says why, and the others go on."""
    rows = {name: Row(task, name) for name in entrants}
    question = {"task": task.to_json(), "block": plan.block}
    for number in range(plan.rounds + 1):
        for name in shuffled([name for name, row in rows.items() if not row.cannot], plan.random):
            rest(REST)
            answer = entrants[name].ask(question, plan.limit)
            if "cannot" in answer:
                rows[name] = Row(task, name, cannot=answer["cannot"])
            elif number:  # the first round warms up and is not counted
                rows[name].seconds.append(answer["seconds"])
    return list(rows.values())


def shuffled(names: Iterable[str], random: random.Random) -> list[str]:
    """Return the names in an order of their own for each round."""
    order = list(names)
    random.shuffle(order)
    return order
