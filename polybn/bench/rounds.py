"""Rounds: in each, every entrant runs once, in random order; one that fails is left out of the next rounds."""

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
"""Seconds of rest before a contender runs, because threads of the previous one may still spin."""


class Asked(Protocol):
    """Something that answers questions: a process, or its replacement in a test."""

    def ask(self, question: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """Return ``{"seconds": ...}`` or ``{"cannot": ...}``."""


@dataclass
class Plan:
    """The settings of a run."""

    tasks: Sequence[Task]
    """The tasks to time, in this order."""
    contenders: Sequence[Found]
    """The contenders that take part."""
    against: str
    """The name of the contender that all are compared with."""
    rounds: int = 7
    """The number of rounds that count; one more warms up."""
    block: float = 0.04
    """Seconds for which a contender is called in a round; short calls are made three times at least."""
    limit: float = 120
    """Seconds after which a contender that does not answer is ended."""
    threads: int | None = None
    """Number of threads, for libraries that read the usual variables; None leaves each library's default."""
    with_busy: bool = False
    """Whether steps of LeNet are also timed while two other processes keep cores busy."""
    random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311
    """The generator that draws the order of each round."""


def run(plan: Plan, report: Callable[[str], None] = print, record: Record | None = None) -> Record:
    """Time every contender in every task; ``report`` is called with words before each task.

    Rows are added to ``record`` as they come, so that an interrupted run keeps what it has.
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
    """Time every entrant in each round; the row of one that cannot run says why, and the others go on."""
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
    """Return the names in a random order."""
    order = list(names)
    random.shuffle(order)
    return order
