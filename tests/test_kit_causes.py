"""The first sentence of a report names the true cause: each batch norm here has one fault that looks like another."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
import pytest

from polybn import conformance
from polybn.conformance.cases import Array
from polybn.conformance.report import Report
from tests.support import kit_adapters as kit
from tests.support import kit_causes as causes

CONVENTIONS = [name for name in conformance.IDS if name.startswith("convention-")]
SOME = [*CONVENTIONS, "P0", "P1", "P2", "P2b", "P3", "P4", "P5", "P16", "P17", "P22"]


def check(adapter: Any, only: list[str] | None = None) -> Report:
    return conformance.check(adapter, only=only or SOME, seed=11)


LENGTHS = [
    (
        causes.NoTail,
        r"P1: Wrong with 9, 15, 35 and 65 values a channel, right with 4, 5, 8, 16, 32 and 64: y must be exactly",
    ),
    (
        causes.NoLastImages,
        r"P1: Wrong where N, the length of the first axis, is 5, 7, 9, 13 and 15, right where it is 1, 2, 3, 4, 8 and "
        r"16: y must be exactly",
    ),
    (causes.OneByRunning, r"P1: Wrong where N, the length of the first axis, is 1, right where it is 2, 3, 4, 5, 7, "),
    (causes.OneConstant, r"P1: Wrong where N, the length of the first axis, is 1, right where it is 2, 3, 4, 5, 7, "),
]


@pytest.mark.parametrize(("make", "sentence"), LENGTHS)
def test_lengths_at_which_the_batch_is_read_wrongly_are_no_convention(make: Any, sentence: str) -> None:
    report = check(make())
    assert re.match(sentence, report.advice), report.advice
    assert "no declaration covers" not in str(report)


def test_a_wrong_y_hides_no_convention_that_can_be_declared() -> None:
    class Both(kit.EpsOutside, kit.Reversed):
        pass

    assert check(Both()).advice.startswith("Your momentum weighs the new value: declare momentum='new'.")


def test_statistics_that_nobody_declares_are_described_beside_a_right_y() -> None:
    class Squared(kit.Right):
        def kept(self, rows: Array) -> Array:
            return np.asarray(rows.var(axis=1) ** 2 + 0.3)

    assert check(Squared()).advice.startswith("Your running variance takes in 4.3 where biased gives 2, ")


def test_nothing_is_said_of_batches_where_only_their_values_are_counted() -> None:
    class Wrong(kit.Right):
        """Errs where N is 1 and where m is odd: neither is the whole truth."""

        def vjp(self, x: Array, *args: Any, **options: Any) -> Any:
            dx, dgamma, dbeta = super().vjp(x, *args, **options)
            return dx, dgamma, dbeta + (len(x) == 1 or x.size // x.shape[1] % 2)

    class Declared(Wrong):
        conventions: ClassVar[dict[str, Any]] = {"ranks": (3,)}

    (result,) = check(Declared(), ["P3"]).failures
    assert result.words.startswith("dbeta must be exactly")
