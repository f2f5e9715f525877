"""Counts that are not the number of values of a channel are named, by running_variance and by P0."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from polybn import conformance
from tests.support import kit_adapters as kit

WRONG = {
    "N / (N - 1)": lambda shape, c: shape[0] / (shape[0] - 1),
    "C / (C - 1)": lambda shape, c: c / (c - 1),
    "S / (S - 1)": lambda shape, c: _rest(shape) / (_rest(shape) - 1),
    "n / (n - 1)": lambda shape, c: np.prod(shape) / (np.prod(shape) - 1),
    "m / (m - 2)": lambda shape, c: _values(shape) / (_values(shape) - 2),
    "m / (m + 1)": lambda shape, c: _values(shape) / (_values(shape) + 1),
    "(m - 1) / m": lambda shape, c: (_values(shape) - 1) / _values(shape),
}  # fmt: skip


def _rest(shape: tuple[int, ...]) -> Any:
    return np.prod(shape[2:])


def _values(shape: tuple[int, ...]) -> Any:
    return np.prod(shape) // shape[1]


class Counting(kit.Right):
    """Multiplies the variance by a factor that depends on the shape."""

    factor: ClassVar[Any]
    shape_of_x: tuple[int, ...]

    def rows(self, x: Any, axis: int) -> Any:
        self.shape_of_x = x.shape
        return super().rows(x, axis)

    def wrong(self) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = type(self).factor(np.array(self.shape_of_x), self.shape_of_x[1])
        return float(found)


@pytest.mark.parametrize("declared", ["biased", "unbiased"])
@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_count_in_the_running_variance_is_named_and_nothing_is_to_be_declared(said: str, declared: str) -> None:
    class Wrong(Counting):
        conventions: ClassVar[dict[str, Any]] = {"running_variance": declared}
        factor = WRONG[said]

        def kept(self, rows: Any) -> Any:
            return rows.var(axis=1) * self.wrong()

    report = conformance.check(Wrong(), only=["convention-running_variance"])
    assert f"takes in the variance times {said}" in report.advice
    assert not said.startswith("N") or ", N being the length of the first axis, which no" in report.advice
    assert "which no declaration covers" in report.advice
    assert "declare " not in report.advice


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_count_in_y_is_named(said: str) -> None:
    class Wrong(Counting):
        factor = WRONG[said]

        def normalize(self, rows: Any, eps: float) -> Any:
            root = 1 / np.sqrt(rows.var(axis=1, keepdims=True) * self.wrong() + eps)
            return (rows - rows.mean(axis=1, keepdims=True)) * root, root

    assert f"it is divided by sqrt(variance * {said} + eps)" in conformance.check(Wrong(), only=["P0"]).advice


@pytest.mark.parametrize("ranks", [(2,), (3,), (4,), (5,), (2, 4)])
@pytest.mark.parametrize("variance", ["biased", "unbiased"])
def test_right_counts_are_seen_at_each_rank(variance: str, ranks: tuple[int, ...]) -> None:
    class Fine(kit.Unbiased if variance == "unbiased" else kit.Right):  # type: ignore[misc]
        conventions: ClassVar[dict[str, Any]] = {"running_variance": variance, "ranks": ranks}

    report = conformance.check(Fine(), only=["convention-running_variance", "P0"])
    assert report.count("pass") == 2, str(report)
