"""What a report says first: the grossest fault of the plainest results, whatever else fails beside it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from polybn import conformance
from polybn.conformance.report import Report
from tests.support import kit_adapters as kit


def check(adapter: Any, *only: str) -> Report:
    return conformance.check(adapter, only=only, seed=5)


class LastBits(kit.Right):
    """Rounds otherwise where momentum is one of NumPy's numbers."""

    def blend(self, old: Any, new: Any, momentum: float) -> Any:
        blended = (momentum * old + (1 - momentum) * new).astype(old.dtype)
        return np.nextafter(blended, np.inf, dtype=old.dtype) if isinstance(momentum, np.float64) else blended


class Promoting(kit.Right):
    """Returns float64 statistics where momentum is one of NumPy's numbers, as ordinary code for NumPy does."""

    def blend(self, old: Any, new: Any, momentum: float) -> Any:
        return momentum * old + (1 - momentum) * new.astype(old.dtype)


class NoEnds(kit.Right):
    """Loses constant channels at the end of the range."""

    def train(self, x: Any, *args: Any, **options: Any) -> Any:
        y, mean, var = super().train(x, *args, **options)
        return (y if not x.size or np.abs(x).max() < 1e38 else y * np.nan), mean, var


class Tail:
    """Drops the values beyond the last multiple of 4 from dgamma, as a kernel without its last loop does."""

    def vjp(self, x: Any, gamma: Any, beta: Any, dy: Any, **options: Any) -> Any:
        dx, dgamma, dbeta = super().vjp(x, gamma, beta, dy, **options)  # type: ignore[misc]
        g, values = (np.moveaxis(z, options["axis"], 0).reshape(len(gamma), -1).astype(float) for z in (dy, x))
        root = 1 / np.sqrt(values.var(axis=1, keepdims=True) + options["eps"]) if values.size else 0
        lost = (g * (values - values.mean(axis=1, keepdims=True)) * root)[:, g.shape[1] // 4 * 4 :] if g.size else g
        return dx, (dgamma - lost.sum(axis=1)).astype(gamma.dtype), dbeta


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("beside", "name"), [(LastBits, "P21"), (Promoting, "P21"), (NoEnds, "P15b")])
def test_a_wrong_gradient_comes_before_the_last_bit_and_the_ends_of_the_range(
    beside: Any, name: str, dtype: str
) -> None:
    class Both(Tail, beside):  # type: ignore[misc]
        conventions: ClassVar[dict[str, Any]] = {"dtypes": (dtype,)}

    report = check(Both(), name, "P22")
    if {r.id for r in report.failures} == {name, "P22"}:
        assert report.failures[0].id == "P22", str(report)
        assert report.advice.startswith("P22: In training: dgamma of channel ")
    else:  # float64 knows no type that momentum could widen, and its range ends elsewhere
        assert (dtype, beside) in {("float64", Promoting), ("float64", NoEnds)}


def test_y_comes_before_gradients_and_gradients_before_running_statistics() -> None:
    class Wrong(kit.Right):
        def infer(self, *args: Any, **options: Any) -> Any:
            return 2 * super().infer(*args, **options)

        def vjp(self, *args: Any, **options: Any) -> Any:
            dx, dgamma, dbeta = super().vjp(*args, **options)
            return dx, dgamma, 2 * dbeta

        def blend(self, *args: Any) -> Any:
            return 2 * super().blend(*args)

    report = check(Wrong(), "P2", "P3", "P4", "P33", "R3b")
    assert [r.id for r in report.failures] == ["P4", "P3", "P2", "P33", "R3b"], str(report)


def test_a_type_that_only_no_values_have_explains_no_wrong_y() -> None:
    class Wrong(kit.EpsOutside):
        def train(self, x: Any, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(x, *args, **options)
            return y if x.size else y.astype(float), mean, var

    assert [r.id for r in check(Wrong(), "P0", "P40").failures] == ["P0", "P40"]


def test_the_first_fault_beside_a_wrong_declaration_is_told_in_full() -> None:
    class Wrong(kit.EpsOutside):
        conventions: ClassVar[dict[str, Any]] = {"empty": "changed"}

    report = check(Wrong(), "convention-empty", "P0", "P1")
    fact = "x - mean must be divided by sqrt(variance + eps); in training it is divided by sqrt(variance) + eps"
    assert report.advice.endswith(f"2 checks fail for another reason, first P0: {fact}.")
    listed = " ".join(str(report).partition("Failures:")[2].split())
    assert f"{fact} P1:" in listed


def test_a_type_that_comes_only_with_the_numbers_of_numpy_is_told_so() -> None:
    (result,) = check(Promoting(), "P21").failures
    assert result.words.startswith("When momentum and eps are NumPy numbers: Promoting.train: running_mean must have")


@pytest.mark.parametrize("fault", [lambda y: y.astype(float), lambda y: 1 // len(y)], ids=["form", "error"])
def test_what_comes_only_without_values_is_told_so(fault: Any) -> None:
    class Wrong(kit.Right):
        def train(self, x: Any, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(x, *args, **options)
            return y if x.size else fault(y), mean, var

    (result,) = check(Wrong(), "P40").failures
    assert result.words.startswith("On no values: Wrong.train")


@pytest.mark.parametrize(
    ("name", "results"),
    [("P1", ["y"]), ("P2", ["running_mean"]), ("P2", ["running_var"]), ("P4", ["infer"]),
     *(("P3", [result]) for result in ("dx", "dgamma", "dbeta"))],
)  # fmt: skip
@pytest.mark.parametrize("width", [4, 8, 16, 32])
def test_kernels_without_an_end_of_their_loop_are_seen_where_answers_are_exact(
    name: str, results: list[str], width: int
) -> None:
    class Short(kit.Right):
        """Leaves the values beyond the last multiple of the width out, if there is a multiple."""

        def spoilt(self, x: Any, axis: int, names: list[str], values: tuple[Any, ...]) -> tuple[Any, ...]:
            m = x.size // x.shape[axis]
            bad = m > width and m % width
            return tuple(2 * v + 1 if bad and n in results else v for n, v in zip(names, values, strict=True))

        def train(self, x: Any, *args: Any, **options: Any) -> Any:
            found = super().train(x, *args, **options)
            return self.spoilt(x, options["axis"], ["y", "running_mean", "running_var"], found)

        def infer(self, x: Any, *args: Any, **options: Any) -> Any:
            return self.spoilt(x, options["axis"], ["infer"], (super().infer(x, *args, **options),))[0]

        def vjp(self, x: Any, *args: Any, **options: Any) -> Any:
            return self.spoilt(x, options["axis"], ["dx", "dgamma", "dbeta"], super().vjp(x, *args, **options))

    assert [r.id for r in check(Short(), name).failures] == [name]


def test_it_is_said_with_how_many_values_a_result_is_wrong() -> None:
    class Wrong(Tail, kit.Right):
        """Has the right dgamma where m is a multiple of 4."""

    (result,) = check(Wrong(), "P3").failures
    assert result.words.startswith(
        "What is left beyond multiples of 4 is treated wrongly: wrong with 5, 9, 10, 25, 35, 65, 135, 265, 515 and "
        "1025 values a channel: dgamma must be exactly"
    )


def test_nothing_is_said_of_lengths_if_all_are_wrong_or_another_call_raises() -> None:
    class Doubled(kit.Right):
        def vjp(self, *args: Any, **options: Any) -> Any:
            dx, dgamma, dbeta = super().vjp(*args, **options)
            return dx, 2 * dgamma, dbeta

    class Raising(Tail, kit.Right):
        def vjp(self, x: Any, *args: Any, **options: Any) -> Any:
            if x.shape == (1, 7, 65):
                raise RuntimeError
            return super().vjp(x, *args, **options)

    for wrong in (Doubled, Raising):
        (result,) = check(wrong(), "P3").failures
        assert "values a channel" not in result.words


def test_random_calls_say_in_which_mode_they_were_and_all_that_is_wrong() -> None:
    """P22 and its like draw training and inference; which results are wrong together tells a cause."""

    class Wrong(kit.Right):
        def vjp(self, *args: Any, **options: Any) -> Any:
            dx, dgamma, dbeta = super().vjp(*args, **options)
            return 2 * dx, 3 * dgamma, dbeta

    class WrongInference(kit.Right):
        def infer(self, *args: Any, axis: int, **options: Any) -> Any:
            return super().infer(*args, axis=axis, **options) + np.float32(axis < 0)

    (result,) = check(Wrong(), "P22").failures
    assert result.words.startswith("In training: dx of channel ")
    assert result.words.endswith("; dgamma is out of bounds, too")
    first, second = check(WrongInference(), "P13", "P22").failures
    assert first.words.startswith("In inference: y must be the same to the bit for axis ")
    assert second.words.startswith("In inference: y of channel ")
    assert "out of bounds" not in second.words
