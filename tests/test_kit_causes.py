"""The first sentence of a report names the true cause: each batch norm here has one fault that looks like another."""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
import pytest

from polybn import conformance
from polybn.conformance import apart
from polybn.conformance.cases import Array, Case
from polybn.conformance.finding import Finding
from polybn.conformance.properties import affine_faults, gradient_faults
from polybn.conformance.properties.gradient_faults import call
from polybn.conformance.report import Report
from tests.support import kit_adapters as kit
from tests.support import kit_authors as authors
from tests.support import kit_causes as causes

CONVENTIONS = [name for name in conformance.IDS if name.startswith("convention-")]
SOME = [*CONVENTIONS, "P0", "P1", "P2", "P2b", "P3", "P4", "P5", "P16", "P17", "P22"]


def check(adapter: Any, only: list[str] | None = None) -> Report:
    return conformance.check(adapter, only=only or SOME, seed=11)


LENGTHS = [
    (
        causes.NoTail,
        r"P1: What is left beyond multiples of 8 is treated wrongly: wrong with 9, 10, 25, 35, 65, 135, 265, 515 and "
        r"1025 values a channel: y must be exactly",
    ),
    (
        causes.NoLastImages,
        r"P1: What is left beyond multiples of 4 is treated wrongly: wrong where N, the length of the first axis, is "
        r"5, 7, 9, 10, 13, 15, 25, 35, 65, 135, 265, 515 and 1025: y must be exactly",
    ),
    (causes.OneByRunning, r"P1: Wrong where N, the length of the first axis, is 1, right where it is 2, 3, 4, 5, 7, "),
    (causes.OneConstant, r"P1: Wrong where N, the length of the first axis, is 1, right where it is 2, 3, 4, 5, 7, "),
]


@pytest.mark.parametrize(("make", "sentence"), LENGTHS)
def test_lengths_at_which_the_batch_is_read_wrongly_are_no_convention(make: Any, sentence: str) -> None:
    report = check(make())
    assert re.match(sentence, report.advice), report.advice
    assert "no declaration covers" not in str(report)


@pytest.mark.parametrize("block", [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("left", [causes.values_left, causes.images_left, causes.channels_left])
def test_what_is_left_beyond_a_block_is_named_first_whatever_its_length(block: int, left: Any) -> None:
    class Left(kit.Right):
        def train(self, x: Array, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(x, *args, **options)
            return np.where(left(x, options["axis"], block), 0, y), mean, var

    report = check(Left(), ["P1", "P6", "P22"])
    assert report.advice.startswith(f"P1: What is left beyond multiples of {block} is treated wrongly: "), report.advice


@pytest.mark.parametrize(
    ("name", "result"), [("P2", "running_mean"), ("P2", "running_var"), ("P3", "dx"), ("P3", "dgamma"), ("P4", "y")]
)
def test_what_is_left_beyond_a_block_is_named_for_each_result(name: str, result: str) -> None:
    class Left(kit.Right):
        conventions: ClassVar[dict[str, Any]] = {"dtypes": ("float16",)}

        def spoilt(self, named: str, value: Array, x: Array, axis: int) -> Array:
            m = x.size // x.shape[axis]
            return 3 * value + 1 if named == result and m > 64 and m % 64 else value

        def train(self, x: Array, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(x, *args, **options)
            axis = options["axis"]
            return y, self.spoilt("running_mean", mean, x, axis), self.spoilt("running_var", var, x, axis)

        def infer(self, x: Array, *args: Any, **options: Any) -> Any:
            return self.spoilt("y", super().infer(x, *args, **options), x, options["axis"])

        def vjp(self, x: Array, *args: Any, **options: Any) -> Any:
            dx, dgamma, dbeta = super().vjp(x, *args, **options)
            axis = options["axis"]
            return self.spoilt("dx", dx, x, axis), self.spoilt("dgamma", dgamma, x, axis), dbeta

    report = check(Left(), ["P1", "P2", "P3", "P4", "P6", "P22"])
    sentence = (
        rf"{name}: (In inference: )?What is left beyond multiples of 64 is treated wrongly: wrong with 65, 135, 265"
    )
    assert re.match(sentence, report.advice), report.advice


def test_a_block_that_is_the_longest_is_no_rest() -> None:
    class Short(kit.Right):
        """Knows no more than 1024 values."""

        def train(self, x: Array, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(x, *args, **options)
            return y * (x.size // x.shape[options["axis"]] <= 1024), mean, var

    assert "right with 4, 5," in check(Short(), ["P1"]).advice


def test_only_the_dtype_that_fails_is_asked_for_its_lengths() -> None:
    class Half(kit.Right):
        conventions: ClassVar[dict[str, Any]] = {"dtypes": ("float32", "bfloat16")}

        def train(self, x: Array, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(x, *args, **options)
            left = causes.values_left(x, options["axis"], 8) & (x.itemsize == 2)
            return np.where(left, x.dtype.type(0), y), mean, var

    assert check(Half(), ["P1"]).advice.startswith("P1: What is left beyond multiples of 8 is treated wrongly: ")


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
            return dx, dgamma, dbeta + x.size * (len(x) == 1 or x.size // x.shape[1] % 2)

    class Declared(Wrong):
        conventions: ClassVar[dict[str, Any]] = {"ranks": (3,)}

    (result,) = check(Declared(), ["P3"]).failures
    assert result.words.startswith("dbeta must be exactly")


def test_channels_that_come_last_are_to_be_declared_so() -> None:
    report = check(causes.OnlyLast(), [*SOME, "P12", "P13", "P18", "P19", "stateful"])
    assert report.advice == "Only the last axis may be the channel axis: declare axes='last'."
    assert {r.status for r in report.results if r.id == "P1"} == {"echo"}
    images = check(causes.OnlyLastImages(), [*CONVENTIONS, "P1"])
    assert images.advice == (
        "Only the last axis may be the channel axis: declare axes='last'. The ranks that are served are 4: declare "
        "ranks=(4,)."
    )


def test_who_declares_the_last_axis_is_asked_for_no_other() -> None:
    only = [name for name in conformance.IDS if name not in ("P6", "P6b")]
    report = conformance.check(causes.DeclaredLast(), only=only, seed=5)
    assert report.ok, str(report)
    assert {r.id: r.words for r in report.results if r.id == "P13"} == {
        "P13": "the adapter declares that the channel axis is always the last"
    }
    assert "axes is 'last' where the specification has 'any'" in " ".join(report.deviations)


@pytest.mark.parametrize(("make", "seen"), [(kit.Right, "any"), (authors.SecondAlone, "second")])
def test_who_does_not_need_the_last_axis_must_not_declare_it(make: Any, seen: str) -> None:
    lying = type("Lying", (make,), {"conventions": {"axes": "last"}})
    assert f"declare axes={seen!r}" in check(lying(), ["convention-axes"]).advice


def test_channels_last_keep_their_strides_and_their_aliases() -> None:
    """What is passed as it is reaches the adapter as it is, but for the order of the axes."""

    class Writing(causes.DeclaredLast):
        def train(self, x: Array, *args: Any, **options: Any) -> Any:
            results = super().train(x, *args, **options)
            x += 1
            return results

    class Flat(causes.DeclaredLast):
        def train(self, x: Array, *args: Any, **options: Any) -> Any:
            return super().train(x.ravel(order="K").reshape(x.shape), *args, **options)

    assert check(Writing(), ["P18"]).advice.startswith("P18: train must not write its arguments; it changed x")
    assert check(Flat(), ["P12"]).advice.startswith("P12: ")


GRADIENTS = [
    (causes.Swapped, "P3: dgamma and dbeta are swapped: "),
    (causes.Meaning, "P3: dgamma and dbeta are means over the values of a channel, where they must be sums: "),
    (causes.NoMean, "P3: dx lacks the term of mean(dy): dx must be exactly"),
    (causes.NoProduct, "P3: dx lacks the term of xhat * mean(dy * xhat): dx must be exactly"),
    (causes.Constants, "P3: dx lacks the terms of mean(dy) and of xhat * mean(dy * xhat): dx must be exactly"),
    (causes.Opposite, "P3: dx has the opposite sign: dx must be exactly"),
    (causes.NoEps, "P3: dx and dgamma are those for eps = 0: dx and dgamma must be exactly"),
    (causes.Doubled, "P3: dbeta must be exactly"),
]


@pytest.mark.parametrize(("make", "sentence"), GRADIENTS)
def test_the_usual_faults_of_gradients_are_named_and_come_first(make: Any, sentence: str) -> None:
    assert check(make(), ["P3", "P16", "P22", "P15"]).advice.startswith(sentence)


@pytest.mark.parametrize("ranks", [(2,), (3,), (5,)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_faults_of_gradients_are_named_at_each_rank_and_dtype(ranks: tuple[int, ...], dtype: str) -> None:
    class Narrow(causes.NoMean):
        conventions: ClassVar[dict[str, Any]] = {"ranks": ranks, "dtypes": (dtype,)}

    assert check(Narrow(), ["P3"]).advice.startswith("P3: dx lacks the term of mean(dy): dx must be exactly")


FORMS = [form for form in affine_faults.forms(call(kit.Right().info())) if form != affine_faults.RIGHT]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "method"), [("P1", "train"), ("P4", "infer")])
@pytest.mark.parametrize(("dtype", "rank"), [("float32", 4), ("float16", 2), ("bfloat16", 3)])
def test_what_gamma_and_beta_do_wrongly_is_named_first(
    form: str, name: str, method: str, dtype: str, rank: int
) -> None:
    class Wrong(kit.Right):
        conventions: ClassVar[dict[str, Any]] = {"ranks": (rank,), "dtypes": (dtype,)}

        def spoilt(self, training: bool, vectors: tuple[Any, ...], x: Array, eps: float, axis: int) -> Array:
            gamma, beta, mean, var = vectors
            case = Case(x, gamma, beta, mean, var, x, training=training, eps=eps, axis=axis).moved(1)
            first = np.moveaxis(case.x, 1, 0)
            y = affine_faults.forms(case)[form].reshape(first.shape)
            return np.ascontiguousarray(np.moveaxis(y, 0, axis)).astype(x.dtype)

        def train(self, x: Array, *vectors: Any, **options: Any) -> Any:
            y, mean, var = super().train(x, *vectors, **options)
            if method == "train" and x.size:
                y = self.spoilt(True, vectors, x, options["eps"], options["axis"])
            return y, mean, var

        def infer(self, x: Array, *vectors: Any, eps: float, axis: int) -> Any:
            if method == "train":
                return super().infer(x, *vectors, eps=eps, axis=axis)
            return self.spoilt(False, vectors, x, eps, axis)

    before = "In inference: " if method == "infer" else ""
    sentence = f"{name}: {before}y is {form}, where it must be gamma * xhat + beta"
    report = check(Wrong(), ["P1", "P4", "P9", "P22", "P39"])
    assert report.advice.startswith(sentence), report.advice
    assert ("pass gamma - 1" in report.advice) == form.startswith("(1 + gamma)")


def test_usual_faults_are_farther_apart_than_what_counts_as_equal() -> None:
    info = kit.Right().info()
    close = gradient_faults.tolerance(call(info._replace(dtypes=("bfloat16",))))
    for training in (True, False):
        case = call(info)._replace(training=training)
        found = [*affine_faults.forms(case).values()]
        assert min(np.abs(a - b).max() / np.abs(b).max() for a, b in permutations(found, 2)) > close
    of_gradients = gradient_faults.faults(case, gradient_faults.gradients(case))
    for name, right in gradient_faults.gradients(case).items():
        found = [right, *(v for v in of_gradients[name].values() if not np.array_equal(v, right))]  # dbeta knows no eps
        apart = [np.abs(a - b).max() / np.abs(b).max() for a, b in permutations(found, 2) if b.any()]
        assert min(apart) > close, name


def _factor(change: Any) -> Any:
    """Make gradients with another factor in the place of gamma in dx."""

    class Wrong(kit.Right):
        def vjp(self, x: Array, gamma: Array, *args: Any, **options: Any) -> Any:
            dx = super().vjp(x, change(gamma), *args, **options)[0]
            return dx, *super().vjp(x, gamma, *args, **options)[1:]

    return Wrong


def _of_x(change: Any) -> Any:
    """Make a dgamma that is a sum of dy with something else than xhat."""

    class Wrong(kit.Right):
        def vjp(self, x: Array, gamma: Array, beta: Array, dy: Array, **options: Any) -> Any:
            dx, dgamma, dbeta = super().vjp(x, gamma, beta, dy, **options)
            rows, g = self.rows(x, options["axis"]), self.rows(dy, options["axis"])
            return dx, (change(rows) * g).sum(axis=1).astype(dgamma.dtype) if x.size else dgamma, dbeta

    return Wrong


def _times(*factors: float) -> Any:
    class Wrong(kit.Right):
        def vjp(self, *args: Any, **options: Any) -> Any:
            found = super().vjp(*args, **options)
            return tuple((v * f).astype(v.dtype) for v, f in zip(found, factors, strict=True))

    return Wrong


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_factor(lambda gamma: 1 + gamma), "dx has the factor 1 + gamma in place of gamma"),
        (_factor(np.ones_like), "dx lacks the factor gamma"),
        (_factor(np.square), "dx has the factor gamma twice"),
        (_factor(np.abs), "dx has the factor abs(gamma) in place of gamma"),
        (_of_x(lambda rows: rows), "dgamma is sum(dy * x), where it must be sum(dy * xhat)"),
        (
            _of_x(lambda rows: rows - rows.mean(axis=1, keepdims=True)),
            "dgamma is sum(dy * (x - mean)), where it must be sum(dy * xhat)",
        ),
        (_times(0, 1, 1), "dx is 0 throughout"),
        (_times(1, 0, 0), "dgamma and dbeta are 0 throughout"),
        (_times(1, 1, -1), "dbeta has the opposite sign"),
    ],
)
def test_wrong_factors_of_gradients_are_named(make: Any, sentence: str) -> None:
    assert check(make(), ["P3", "P22"]).advice.startswith(f"P3: {sentence}: ")  # what follows is the exact difference


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (kit.OnePass, "P5: A thousand deviations away from zero: y must be exactly"),
        (causes.OneMore, r"P4: In inference: y is \(1 \+ gamma\) \* xhat \+ beta, where it must be "),
        (kit.Frozen, "P4: In inference: y must be exactly"),
        (causes.SquaredVariance, r"P0: x - mean must be divided by sqrt\(variance \+ eps\); in inference it is "
         r"divided by sqrt\(variance\^2 \+ eps\), "),
    ],
)  # fmt: skip
def test_where_the_title_is_left_out_the_words_say_what_is_called(make: Any, sentence: str) -> None:
    adapter = type("Plain", (make,), {"conventions": {"differentiates": False}})()
    assert re.match(sentence, check(adapter, ["P0", "P1", "P4", "P5", "P22"]).advice)


def test_the_method_in_which_the_process_ended_is_named() -> None:
    order = apart.Order("tests.support.kit_causes:Leaving", "dev", None, 3)
    _, first, second = apart.examine(order, ["P3", "P4"])
    assert isinstance(first, Finding)
    assert isinstance(second, Finding)
    assert first.result.words == "the adapter ended the process with exit status 3, in vjp"
    assert second.result.status == "pass"


def test_nothing_is_to_be_declared_where_results_vary() -> None:
    report = check(causes.Racing(), [*SOME, "P7", "P13", "P36"])
    assert report.advice.startswith("P17: y must be the same to the bit when the same call is made again")
    assert "declare " not in str(report).partition("Differs from")[0], str(report)
    assert "values a channel, right" not in str(report)
    assert not report.count("echo")


def test_what_could_not_be_seen_for_varying_results_is_no_pass() -> None:
    class Wild(causes.Racing):
        def train(self, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(*args, **options)
            return y, mean + self.rng.normal(size=mean.shape).astype(mean.dtype), var

    report = check(Wild(), ["convention-momentum"])
    assert not report.ok
    assert report.advice == (
        "convention-momentum: The same call gives different results, so nothing can be said of what is declared."
    )


def test_last_bits_that_vary_hide_no_convention() -> None:
    assert "declare running_variance='unbiased'" in check(causes.LastBits(), ["convention-running_variance"]).advice


@pytest.mark.parametrize("declared", ["old", "new"])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (causes.Fixed, "Your momentum is not what is passed: the old value weighs 0.9 in the running mean and the "
         "running variance, whatever is passed, which no declaration covers. "),
        (causes.FixedVariance, "Your momentum is not what is passed: the old value weighs 0.9 in the running variance, "
         "whatever is passed, which no declaration covers. "),
    ],
)  # fmt: skip
def test_a_momentum_that_is_ignored_is_named(make: Any, sentence: str, declared: str) -> None:
    declaring = type("Declaring", (make,), {"conventions": make.conventions | {"momentum": declared}})
    report = check(declaring())
    assert report.advice.startswith(sentence), report.advice
    assert {r.status for r in report.results if r.id == "convention-running_variance"} <= {"pass", "not certified"}


def test_a_momentum_that_is_reversed_for_one_statistic_is_named() -> None:
    assert check(causes.HalfReversed()).advice.startswith(
        "Your momentum weighs the old value in the running mean and the new value in the running variance, which no "
        "declaration covers. "
    )


def test_the_larger_of_variance_and_eps_is_named() -> None:
    assert check(causes.Clamping()).advice.startswith(
        "P0: x - mean must be divided by sqrt(variance + eps); in training it is divided by sqrt(max(variance, eps))"
    )


@pytest.mark.parametrize("kept", [lambda v: v, lambda v: 1.25 * v, np.sqrt, lambda v: v + 0.3])
def test_a_variance_of_another_kind_is_no_momentum(kept: Any) -> None:
    class Keeping(kit.Right):
        def kept(self, rows: Array) -> Array:
            return np.asarray(kept(rows.var(axis=1)))

    (result,) = check(Keeping(), ["convention-momentum"]).results
    assert result.status == "pass", result.words


def test_what_no_declaration_covers_may_be_the_reason_of_what_else_fails() -> None:
    said = check(causes.HalfReversed(), ["convention-momentum", "P2"]).advice
    assert "no declaration covers. 1 check fails beside that, first P2: running_var must be exactly" in said
    assert "for another reason" not in said
