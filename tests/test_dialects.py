"""Dialects: the table is complete and true of installed frameworks, and arguments compute as frameworks do."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import polybn
from polybn import console, dialects
from polybn.cli import app
from polybn.dialects import DIALECTS, Dialect, calls, words
from polybn.spec import DomainError, DTypeError
from tests.support.frameworks import FRAMEWORKS, Array, why_not

EPS = 0.5
"""An eps so large that adding it outside the root shows."""
SHAPES = ((2, 3, 1, 1), (5, 3, 1, 1), (5, 3, 7, 11))


@pytest.mark.parametrize("name", DIALECTS)
def test_a_record_is_whole(name: str) -> None:
    dialect = DIALECTS[name]
    assert dialect.name == name
    assert getattr(dialects, name.upper()) is dialect
    assert name.upper() in dialects.__all__
    assert len(set(dialect.names.values())) == len(dialect.names)
    assert {"hidden_mean", "running_mean"} & dialect.names.keys()
    assert set(dialect.sources) <= {field.name for field in fields(Dialect)}
    for source in (dialect.source, *dialect.sources.values()):
        assert re.search(r"https://|\w\.\w|/\w|header", source), source
        assert re.search(r"\d", source), f"{source} does not say which version"
    assert not dialect.remark or dialect.remark.endswith(".")
    with pytest.raises(FrozenInstanceError):
        setattr(dialect, "eps", 1.0)  # noqa: B010
    with pytest.raises(TypeError):
        dialect.names["gamma"] = "other"


def test_each_fact_has_words() -> None:
    assert set(words.LABELS) == {f.name for f in fields(Dialect)} - {"name", "title", "source", "sources", "optional"}
    assert len(words.HEADINGS) == len(words.MAIN) + 1
    for dialect in DIALECTS.values():
        assert all(words.row(dialect))
        assert all(words.say(dialect, fact) for fact in words.LABELS if fact != "remark")
    assert words.say(dialects.HAIKU, "momentum") == "must be said"
    assert "eps" in words.differing([dialects.PYTORCH, dialects.KERAS3])
    assert words.differing([dialects.PYTORCH, dialects.PYTORCH]) == []


def test_a_name_leads_to_its_dialect_and_a_wrong_one_teaches() -> None:
    assert dialects.find("keras3") is dialects.KERAS3
    assert dialects.find(dialects.KERAS3) is dialects.KERAS3
    with pytest.raises(DomainError, match=r"dialect must name a dialect; got 'keras' \(did you mean keras3"):
        dialects.find("keras")
    with pytest.raises(DomainError, match=r"got 'zzz' \(all are polybn, .*: `polybn dialects`"):
        dialects.find("zzz")
    with pytest.raises(DTypeError, match=r"dialect must be a name or a Dialect; got NoneType"):
        dialects.find(None)  # type: ignore[arg-type]
    with pytest.raises(DomainError, match=r"fact must be one of name, .*; got 'colour'"):
        dialects.PYTORCH.source_of("colour")


# The command.


@pytest.mark.parametrize("width", [80, 60])
def test_no_name_is_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are what is typed again."""
    monkeypatch.setattr(console.out, "width", width)
    every = CliRunner().invoke(app, ["dialects"]).output
    assert all(re.search(rf"^ {name} ", every, re.MULTILINE) for name in DIALECTS)
    assert max(map(len, every.splitlines())) <= width
    some = ["onnx15", "d2l_tensorflow", "equinox_batch", "mxnet_native"]
    assert CliRunner().invoke(app, ["dialects", *some]).output.split()[:4] == some
    assert "…" not in every


def test_the_command_lists_explains_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 200)

    def shown(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["dialects", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    every = shown()
    assert all(re.search(rf"^ {name} ", every, re.MULTILINE) for name in DIALECTS)
    one = shown("haiku")
    assert "decay_rate" in one
    assert "seen with dm-haiku" in one
    two = shown("pytorch", "keras3")
    assert re.search(r"momentum weighs the +new value +old value", two)
    assert "stored" not in two  # they do not differ in it
    assert shown("pytorch", "pytorch") == "pytorch and pytorch do not differ.\n"
    shown("pytorch", "--json", str(tmp_path / "pytorch.json"))
    (record,) = json.loads((tmp_path / "pytorch.json").read_text(encoding="utf-8"))
    assert record["running_variance"] == "unbiased"
    assert record["names"]["gamma"] == "weight"
    assert record["sources"]["empty"] == dialects.PYTORCH.source_of("empty")
    with pytest.raises(DomainError, match="did you mean pytorch"):
        CliRunner().invoke(app, ["dialects", "pytroch"], catch_exceptions=False)


# Against the frameworks that are installed.


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return str(request.param)


def batches(seed: int) -> Iterator[Array]:
    """Yield batches whose channels have means around -4, 0 and 9, and different scales."""
    rng = np.random.default_rng(seed)
    for step in range(6):
        noise = rng.standard_normal(SHAPES[step % 3])
        yield (np.array([9, 0, -4])[:, None, None] + np.array([3, 0.5, 2])[:, None, None] * noise).astype(np.float32)


def room(x: Array) -> Array:
    """Bound the relative error of a variance in float32: m roundings of sums as large as the mean of the squares.

    Flax, Keras and Haiku subtract the square of the mean from that mean, which magnifies it by kappa^2.
    """
    wide = x.astype(np.float64)
    m = x.size // x.shape[1]
    kappa2 = (wide**2).mean((0, 2, 3)) / wide.var((0, 2, 3))
    return np.asarray((m + 8) * 2.0**-24 * kappa2)


def spread(values: Array) -> Array:
    return np.asarray(values)[:, None, None]


def test_the_page_counts_what_is_trained_here() -> None:
    trained = [name for name in FRAMEWORKS if calls.why_not(DIALECTS[name]) is None]
    libraries = {DIALECTS[name].title.partition(",")[0].partition(" ")[0] for name in trained}
    numbers = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    page = (Path(__file__).parents[1] / "docs" / "dialects.md").read_text(encoding="utf-8")
    assert f"{numbers[len(trained)]} batch norms of {numbers[len(libraries)]} libraries train step by step" in page


@pytest.mark.parametrize("momentum", [0.25, 0.9])
def test_a_layer_in_a_dialect_does_what_the_framework_does(framework: str, momentum: float) -> None:
    if calls.why_not(DIALECTS[framework]) is not None:
        pytest.skip(f"{framework}: {calls.why_not(DIALECTS[framework])}")
    compare(framework, DIALECTS[framework], momentum)


WRONG: dict[str, dict[str, Any]] = {
    "momentum": {"momentum_weighs": {"old": "new", "new": "old"}},
    "variance": {"running_variance": {"biased": "unbiased", "unbiased": "biased"}},
    "average": {"average": {"plain": "debiased", "debiased": "plain"}},
}


@pytest.mark.parametrize("fact", WRONG)
def test_a_wrong_fact_is_found(framework: str, fact: str) -> None:
    dialect = DIALECTS[framework]
    if calls.why_not(dialect) is not None:
        pytest.skip(f"{framework}: {calls.why_not(dialect)}")
    wrong = {name: others[getattr(dialect, name)] for name, others in WRONG[fact].items()}
    with pytest.raises(AssertionError, match="running_"):
        compare(framework, replace(dialect, **wrong), 0.25)


def compare(framework: str, dialect: Dialect, momentum: float) -> None:
    """Train a framework's batch norm and a layer in a dialect on the same batches; outputs and states must agree."""
    theirs = FRAMEWORKS[framework](3, momentum, EPS)
    ours = polybn.BatchNorm(3, dialect=dialect, momentum=momentum, eps=EPS, axis=1)
    ours.gamma, ours.beta = np.array([3, -0.5, 2], "f"), np.array([5, 0, -7], "f")
    names, start = dialect.names, theirs.state()
    for name, value in ((names["gamma"], ours.gamma), (names["beta"], ours.beta)):
        start[name] = value.reshape(start[name].shape)
    theirs.load(start)
    error = np.zeros(3)
    for x in batches(7):
        y, expected = theirs.train(x), ours(x, training=True)
        error = np.maximum(error, room(x))
        near(y, expected, error, ours)
        state = theirs.state()
        size = np.abs(x).max((0, 2, 3)).astype(np.float64)
        mean, var = state[names["running_mean"]].ravel(), state[names["running_var"]].ravel()
        assert (np.abs(mean - ours.running_mean) <= error * size).all(), "running_mean"
        assert (np.abs(var - ours.running_var) <= 2 * error * size**2).all(), "running_var"
        near(theirs.infer(x), ours(x, training=False), 4 * error, ours)


def near(y: Array, expected: Array, error: Array, layer: polybn.BatchNorm) -> None:
    assert layer.gamma is not None
    assert layer.beta is not None
    size = np.abs(expected - spread(layer.beta)) + np.abs(spread(layer.gamma))
    assert y.dtype == expected.dtype == np.float32
    assert (np.abs(y - expected) <= spread(error) * size + 2.0**-22 * np.abs(spread(layer.beta))).all()


def test_arguments_do_step_by_step_what_the_layer_does() -> None:
    for name in ("pytorch", "keras3", "haiku", "caffe"):
        dialect = DIALECTS[name]
        layer = polybn.BatchNorm(3, dialect=name, momentum=0.7, axis=1 if dialect.any_axis else dialect.axis)
        mean, var = layer.running_mean, layer.running_var
        for step, x in enumerate(batches(1), 1):
            options = dialect.arguments(momentum=0.7, axis=1, step=step)
            _, mean, var = polybn.batch_norm(x, None, None, mean, var, training=True, **options)
            layer(x, training=True)
            np.testing.assert_array_equal(mean, layer.running_mean)
            np.testing.assert_array_equal(var, layer.running_var)


def test_a_debiased_average_gives_each_batch_its_weight() -> None:
    """After two batches with rho, the average is (rho * first + second) / (rho + 1), for any initial value."""
    layer = polybn.BatchNorm(1, dialect="haiku", momentum=0.5)
    layer.running_mean = np.array([1e6], "f")
    for value in (2.0, 8.0):
        layer(np.full((2, 1), value, "f"), training=True)
    assert np.asarray(layer.running_mean).tolist() == [6.0]
    assert layer.state_dict()["updates"] == 2
    twin = copy.deepcopy(pickle.loads(pickle.dumps(layer)))
    for one in (layer, twin):
        one(np.full((2, 1), 13.0, "f"), training=True)
    assert np.asarray(layer.running_mean).tolist() == np.asarray(twin.running_mean).tolist() == [10.0]
    layer.reset()
    assert (np.asarray(layer.running_mean).tolist(), np.asarray(layer.running_var).tolist(), layer.updates) == (
        [0.0],
        [0.0],
        0,
    )
    assert "dialect='haiku'" in repr(layer)


def test_momentum_none_in_pytorch_averages_all_batches() -> None:
    layer = polybn.BatchNorm(1, dialect="pytorch", momentum=None)
    for value in (3.0, 9.0):
        layer(np.array([[value], [value + 2]], "f"), training=True)
    assert (np.asarray(layer.running_mean).tolist(), np.asarray(layer.running_var).tolist()) == ([7.0], [2.0])


def test_words_of_a_dialect_are_its_own() -> None:
    assert dialects.PYTORCH.arguments(momentum=0.1)["momentum"] == 0.9
    assert dialects.KERAS3.arguments(momentum=0.1)["momentum"] == 0.1
    assert dialects.KERAS3.arguments() == {"momentum": 0.99, "eps": 1e-3, "axis": -1, "running_variance": "biased"}
    assert polybn.BatchNorm(3, dialect="mxnet_native").gamma is None
    assert not np.any(polybn.BatchNorm(3, dialect="caffe", momentum=0.5).running_var)
    assert repr(polybn.BatchNorm(3)) == repr(polybn.BatchNorm(3, dialect="polybn"))


@pytest.mark.parametrize("option", ["eps", "axis"])
def test_none_is_the_same_error_with_a_dialect_and_without(option: str) -> None:
    said = []
    for dialect in ({}, {"dialect": "pytorch"}):
        with pytest.raises(DTypeError) as caught:
            polybn.BatchNorm(2, **{option: None}, **dialect)  # type: ignore[arg-type]
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("dialect", "options", "words"),
    [
        ("haiku", {}, r"momentum must be given; got none \(haiku has no default for its decay_rate\)"),
        ("equinox_ema", {}, r"got equinox_ema \(it normalizes training by the running statistics"),
        ("equinox_batch", {}, r"got equinox_batch \(its variance is divided as if it had begun at 0"),
        ("cudnn4", {"momentum": 0.1}, r"got cudnn4 \(it averages 1 / sqrt\(variance \+ eps\)"),
        ("onnx9", {}, r"got onnx9 \(it does not say which variance it keeps\)"),
        ("tf_fused", {"eps": 1e-6}, r"eps must be at least 1.001e-05; got 1e-06 \(tf_fused takes no less\)"),
        ("pytorch", {"eps": 0.0}, r"eps must be above 0; got 0.0 \(pytorch takes no less\)"),
        ("pytorch", {"axis": 3}, r"axis must be 1; got 3 \(pytorch has no other channel axis\)"),
        ("pytorch", {"momentum": 1.5}, r"momentum must lie in \[0, 1\]; got 1.5"),
        ("keras3", {"momentum": None}, r"momentum must be a number in the dialect keras3; got None"),
        ("keras3", {"running_variance": "biased"}, r"running_variance must be left out beside a dialect; got 'biased'"),
    ],
)
def test_what_cannot_be_said_is_said_in_words(dialect: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DomainError, match=r"^polybn\.BatchNorm: .*" + words):
        polybn.BatchNorm(3, dialect=dialect, **options)
    if options.keys() & {"running_variance"} or None in options.values():  # known only to the layer
        return
    with pytest.raises(DomainError, match=rf"^polybn\.dialects\.{dialect.upper()}\.arguments: .*" + words):
        DIALECTS[dialect].arguments(**options)


def test_a_debiased_average_needs_the_step() -> None:
    for step in (None, 0, True, 1.0):
        with pytest.raises(DomainError, match=r"step must be an int of 1 or more; got .* \(in haiku the weight"):
            dialects.HAIKU.arguments(momentum=0.9, step=step)  # type: ignore[arg-type]
    assert dialects.HAIKU.arguments(momentum=0.9, step=1)["momentum"] == 0
    assert dialects.HAIKU.arguments(momentum=1.0, step=4)["momentum"] == 0.75


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of a mean of no values
def test_degenerate_batches_do_what_the_table_says(framework: str) -> None:
    dialect = DIALECTS[framework]
    facts = {"single_value": one_value(framework), "empty": no_value(framework)}
    assert facts == {fact: getattr(dialect, fact) for fact in facts}


def one_value(framework: str) -> str:
    layer = FRAMEWORKS[framework](3, 0.25, EPS)
    try:
        y = layer.train(np.array([2, 3, 5], "f").reshape(1, 3, 1, 1))
    except Exception:
        return "error"
    assert not y.any()
    finite = all(np.isfinite(value).all() for value in layer.state().values())
    return "beta" if finite else "nan"


def no_value(framework: str) -> str:
    layer = FRAMEWORKS[framework](3, 0.25, EPS)
    names = DIALECTS[framework].names
    mean, before = names.get("running_mean") or names["hidden_mean"], layer.state()
    try:
        layer.train(np.zeros((0, 3, 2, 2), "f"))
    except Exception:
        return "error"
    return "kept" if np.array_equal(layer.state()[mean], before[mean]) else "changed"


DEFAULTS = {
    "polybn": ("polybn", "BatchNorm"),
    "pytorch": ("torch.nn", "BatchNorm2d"),
    "pytorch_sync": ("torch.nn", "SyncBatchNorm"),
    "keras3": ("keras.layers", "BatchNormalization"),
    "flax_linen": ("flax.linen", "BatchNorm"),
    "flax_nnx": ("flax.nnx", "BatchNorm"),
    "haiku": ("haiku", "BatchNorm"),
    "equinox_batch": ("equinox.nn", "BatchNorm"),
    "gluon": ("mxnet.gluon.nn", "BatchNorm"),
    "tinygrad": ("tinygrad.nn", "BatchNorm"),
}
"""The layers with defaults in their signatures."""


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_of_the_signature(name: str) -> None:
    if name in FRAMEWORKS and why_not(name) is not None:
        pytest.skip(f"{name}: {why_not(name)}")
    dialect, (module, layer) = DIALECTS[name], DEFAULTS[name]
    signature = inspect.signature(getattr(pytest.importorskip(module), layer).__init__).parameters
    momentum = signature[dialect.momentum_word].default
    assert (None if momentum is inspect.Parameter.empty else momentum) == dialect.momentum
    assert signature[dialect.eps_word].default == dialect.eps
    assert {signature[word].default for word in dialect.affine_words} <= {True}
    assert bool(dialect.affine_words) == (dialect.affine != "always")
    if "axis" in signature and signature["axis"].default is not None:
        assert signature["axis"].default == dialect.axis
        assert dialect.any_axis


def test_defaults_are_those_of_the_onnx_schema() -> None:
    onnx = pytest.importorskip("onnx")
    for dialect, version in ((dialects.ONNX9, 9), (dialects.ONNX15, 15)):
        schema = onnx.defs.get_schema("BatchNormalization", version)
        of = {name: onnx.helper.get_attribute_value(a.default_value) for name, a in schema.attributes.items()}
        assert of[dialect.momentum_word] == np.float32(dialect.momentum)
        assert of[dialect.eps_word] == np.float32(dialect.eps)
        assert [given.name for given in schema.inputs][1:] == list(dialect.names.values())
