"""A dialect as a declaration of the kit, and the dialect that the kit names when a declaration is wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest

from polybn import conformance
from polybn.conformance import check, conventions
from polybn.conformance.adapter import Info
from polybn.conformance.adapters import ADAPTERS, resolve
from polybn.conformance.convention import Convention
from polybn.conformance.dialects import DECLARED, advise, fitting, whole
from polybn.spec import DomainError
from tests.support import kit_adapters as kit
from tests.test_adapters import why_not

CONVENTIONS = [f"convention-{name}" for name in conventions.NAMES]
OF = {
    "pytorch": "pytorch", "pytorch-channels-last": "pytorch", "flax-linen": "flax_linen", "flax-nnx": "flax_nnx",
    "keras-numpy": "keras3", "keras-torch": "keras3", "mxnet": "mxnet_native", "onnxruntime": "onnx15",
    "onnx-reference": "onnx15",
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_declare_what_the_dialect_of_their_library_says(name: str) -> None:
    if name not in OF:
        assert name == "jax-standardize"  # a function without a state
        return
    reason = why_not(name)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    info = resolve(name).info()
    said = whole(Info(info.name, info.version, dialect=OF[name]))
    assert {field: getattr(info, field) for field in DECLARED} == {field: getattr(said, field) for field in DECLARED}


def test_a_dialect_takes_the_place_of_defaults_and_of_nothing_else() -> None:
    info = whole(Info("mine", "1", dialect="pytorch", empty="error"))
    assert (info.momentum, info.running_variance, info.single_value, info.empty) == (
        "new",
        "unbiased",
        "error",
        "error",
    )
    assert whole(Info("mine", "1")) == Info("mine", "1")
    assert whole(Info("mine", "1", dialect="mxnet_cudnn")).single_value == "beta"  # no word for a state that is NaN


class Unbiased(kit.Unbiased):
    def info(self) -> Info:
        return super().info()._replace(running_variance="biased", single_value="beta", dialect=self.dialect)

    dialect = ""


def test_a_true_dialect_is_all_that_needs_to_be_declared() -> None:
    adapter = Unbiased()
    adapter.dialect = "chainer"
    report = check(adapter, only=["convention-running_variance", "convention-momentum", "P3"])
    assert report.ok, str(report)
    assert report.info.dialect == "chainer"
    assert report.info.running_variance == "unbiased"


@pytest.mark.parametrize("dialect", ["", "keras3"])
def test_when_a_declaration_is_wrong_the_dialect_that_fits_is_named(dialect: str) -> None:
    class Mine(kit.Right):
        """Follows PyTorch's conventions."""

        def info(self) -> Info:
            return Info("mine", "1", dialect=dialect)

        def train(self, x: Any, *arrays: Any, momentum: float, eps: float, axis: int) -> Any:
            if x.size == x.shape[axis]:
                raise ValueError("more than one value, please")
            m = x.size // x.shape[axis] if x.size else 1
            y, mean, var = super().train(x, *arrays, momentum=1 - momentum, eps=eps, axis=axis)
            old = arrays[3]
            return y, mean, var if m == 1 else old * (1 - momentum) + (var - old * (1 - momentum)) * m / (m - 1)

    report = check(Mine(), only=CONVENTIONS)
    assert "declare momentum='new'" in report.advice
    assert "All that was seen is what dialect='pytorch' declares (it is also that of pytorch_sync, " in report.advice
    assert fitting(report.conventions)[0] == "pytorch"


def test_nothing_is_named_where_too_little_was_seen_or_nothing_fits() -> None:
    report = check(Unbiased(), only=["convention-running_variance"])
    assert "declare running_variance='unbiased'" in report.advice
    assert "dialect=" not in report.advice

    class Deviation(kit.Right):
        def kept(self, rows: Any) -> Any:
            return rows.std(axis=1)

        def info(self) -> Info:
            return super().info()._replace(momentum="new")

    assert "dialect=" not in check(Deviation(), only=CONVENTIONS).advice


def seen(name: str, value: str, declared: str) -> Convention:
    """Return a convention as detection leaves it; a value with a space cannot be declared."""
    right = value == declared
    advice = "" if right else f"declare {name}={value!r}"
    return Convention(name, declared, value, "S4", "", "", advice, () if right or " " in value else ((name, value),))


def conventions_of(info: Info, **values: str) -> list[Convention]:
    """Return the conventions of a declaration; those in ``values`` are seen to be otherwise."""
    return [seen(field, values.get(field, getattr(info, field)), getattr(info, field)) for field in DECLARED]


NAN = {"single_value": "nan in running_var"}


@pytest.mark.parametrize(
    ("declared", "values", "sentence"),
    [
        ({"dialect": "mxnet_cudnn"}, {"empty": "changed", **NAN}, ""),
        ({"dialect": "keras3", "empty": "error"}, {"empty": "changed"}, ""),
        (
            {"dialect": "keras3"}, {"running_variance": "unbiased", "momentum": "new", **NAN},
            "The rest of what was seen is what dialect='cudnn' and empty='changed' declares; it takes the place of "
            "dialect='keras3'",
        ),
        (
            {"dialect": "pytorch"}, {"momentum": "old"},
            "No dialect has all that: declare running_variance='unbiased' and single_value='error' in place of "
            "dialect='pytorch'",
        ),
        (
            {"dialect": "pytorch"}, {"momentum": "old", "running_variance": "biased", "single_value": "beta"},
            "All that was seen is what dialect='polybn' declares; it takes the place of dialect='pytorch'",
        ),
        (
            {}, {"momentum": "new"},
            "All that was seen is what dialect='d2l_mxnet' declares",
        ),
        ({}, {"momentum": "new", "running_variance": "the standard deviation"}, ""),
    ],
)  # fmt: skip
def test_the_advice_is_a_declaration_that_would_be_true(
    declared: dict[str, str], values: dict[str, str], sentence: str
) -> None:
    info = whole(Info("mine", "1", **declared))  # type: ignore[arg-type]
    said = advise(conventions_of(info, **values), info)
    assert re.sub(r" \(it is also that of .*?\)", "", said) == sentence


def test_a_default_is_not_to_be_declared_beside_a_dialect_that_overrules_it() -> None:
    class OldWeight(kit.Unbiased):
        """PyTorch, it says, but its momentum weighs the old value."""

        def info(self) -> Info:
            return Info("old weight", "1", dialect="pytorch")

    report = check(OldWeight(), only=[*CONVENTIONS, "P2"])
    assert report.advice == (
        "Your momentum weighs the old value: declare momentum='old', without dialect='pytorch'. No dialect has all "
        "that: declare running_variance='unbiased' and single_value='error' in place of dialect='pytorch'."
    )

    class Declared(OldWeight):
        def info(self) -> Info:
            return Info("old weight", "1", running_variance="unbiased", single_value="error")

    assert check(Declared(), only=[*CONVENTIONS, "P2"]).ok


@pytest.mark.parametrize(
    ("dialect", "words"),
    [
        ("pytroch", r"polybn.conformance.Info: dialect must name a dialect; got 'pytroch' \(did you mean pytorch"),
        ("haiku", r"dialect must be one whose state is a plain average of variances; got 'haiku'"),
        (3, r"info: dialect must be a str; got 3"),
    ],
)
def test_a_wrong_dialect_is_said_and_nothing_is_checked(dialect: Any, words: str) -> None:
    adapter = Unbiased()
    adapter.dialect = dialect
    report = conformance.check(adapter, only=["P1"])
    assert not report.ok
    assert not report.results
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(report.advice)
    if isinstance(dialect, str):
        with pytest.raises(DomainError):
            whole(adapter.info())
