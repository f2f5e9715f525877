"""Convert a trained batch norm of one framework to another, and compare results.

    python -m tests.support.conversions

writes docs/results/conversions.json, for all ordered pairs of frameworks that are installed.
"""

from __future__ import annotations

import functools
import itertools
import json
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polybn import dialects
from polybn.dialects import DIALECTS
from polybn.inspection.digits import bound
from tests.support.frameworks import FRAMEWORKS, Living, State, why_not

Array = NDArray[Any]
RECORD = Path(__file__).parents[2] / "docs" / "results" / "conversions.json"
MOMENTUM = 0.75
"""The weight of the old value."""
EPS = 0.01
SHAPE = (2, 3, 1, 3)
VALUES = 6
"""The number of values per channel, so small that Bessel's correction is a fifth."""
BEFORE, AFTER = 3, 4
"""The numbers of training steps before the conversion, so few that debiased averages still lack much, and after it."""
DISTRIBUTIONS = {
    "keras3": "keras", "flax_linen": "flax", "flax_nnx": "flax", "haiku": "dm-haiku", "equinox_ema": "equinox",
    "equinox_batch": "equinox", "mxnet_native": "mxnet", "gluon": "mxnet", "onnx15": "onnxruntime", "pytorch": "torch",
}  # fmt: skip


class Source(NamedTuple):
    """A batch norm's results after training, and after further training."""

    state: State
    inferred: Array
    """The result of inference before further training."""
    trained: list[Array]
    """The outputs of the further training steps."""
    last: State


class Seen(NamedTuple):
    """The outcome of one conversion: largest errors as shares of their bounds, where 1 or less is agreement."""

    inference: float
    """The error of inference, converted without a count."""
    outputs: float
    """The error of the outputs of further training steps."""
    statistics: float
    """The error of the running statistics after further training steps, converted with a count."""
    without: float
    """The error of the running statistics after further training steps, converted without a count."""
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Return in a word which results agree."""
        if not self.inference <= 1:
            return "nothing"
        if not (self.outputs <= 1 and self.statistics <= 1):
            return "inference"
        return "exact" if self.without <= 1 else "either"


def options(name: str) -> dict[str, Any]:
    """Return the options of a layer, in the words of its framework."""
    made = dialects.convert_options({"momentum": MOMENTUM, "eps": EPS}, "polybn", name).options
    return {word: value for word, value in made.items() if word != "axis"}


def living(name: str) -> Living:
    """Make a batch norm."""
    return FRAMEWORKS[name](3, options(name)[DIALECTS[name].momentum_word], EPS)


@functools.cache
def data() -> list[Array]:
    """Return the batches before the conversion, one for inference, and those after it."""
    rng = np.random.default_rng(20)
    scale, offset = np.array([3, 0.5, 2])[:, None, None], np.array([9, 1, -4])[:, None, None]
    return [(offset + scale * rng.standard_normal(SHAPE)).astype(np.float32) for _ in range(BEFORE + 1 + AFTER)]


@functools.cache
def trained(name: str) -> Source:
    """Train a framework's batch norm with a random gamma and beta, infer, and train on."""
    layer, names, rng = living(name), DIALECTS[name].names, np.random.default_rng(21)
    state = layer.state()
    for role in ("gamma", "beta"):
        state[names[role]] = rng.standard_normal(state[names[role]].shape).astype(np.float32)
    layer.load(state)
    for x in data()[:BEFORE]:
        layer.train(x)
    before, inferred = layer.state(), layer.infer(data()[BEFORE])
    outputs = [layer.train(x) for x in data()[BEFORE + 1 :]]
    return Source(before, inferred, outputs, layer.state())


def measure(source: str, target: str) -> Seen:
    """Convert from one framework to another, and compare."""
    here, there = trained(source), living(target)
    plain = dialects.convert(here.state, source, target, options=options(source))
    fitted = dialects.convert(here.state, source, target, VALUES, options=options(source))
    load(there, plain.state)
    difference = np.abs(there.infer(data()[BEFORE]).astype(np.float64) - here.inferred)
    inference = float((difference / inference_bound(source)).max())
    outputs = [share(there.train(x), y) for x, y in zip(data()[BEFORE + 1 :], here.trained, strict=True)]
    without = statistics(there.state(), target, here.last, source, None)
    load(there, fitted.state)
    for x in data()[BEFORE + 1 :]:
        there.train(x)
    found = statistics(there.state(), target, here.last, source, VALUES)
    return Seen(inference, max(outputs), found, without, plain.notes)


def load(layer: Living, state: dict[str, Array]) -> None:
    """Load a state into a framework's arrays, with their shapes, such as (1, C, 1, 1)."""
    shapes = {name: value.shape for name, value in layer.state().items()}
    layer.load({name: value.reshape(shapes[name]) for name, value in state.items()})


def statistics(after: State, target: str, last: State, source: str, count: int | None) -> float:
    """Compare running statistics in their form for inference, after conversion of the source's."""
    wanted = dialects.convert(last, source, "polybn", options=options(source)).state
    found = dialects.convert(after, target, "polybn", options=options(target)).state
    here, there = DIALECTS[source].running_variance, DIALECTS[target].running_variance
    factor = 1.0
    if count is not None and here != there:
        factor = (count - 1) / count if here == "unbiased" else count / (count - 1)
    mean = share(found["running_mean"], wanted["running_mean"])
    return max(mean, share(found["running_var"], wanted["running_var"] * factor))


@functools.cache
def inference_bound(source: str) -> Array:
    """Bound the difference of two results of inference, each with the errors that float32 may have."""
    state = dialects.convert(trained(source).state, source, "polybn", options=options(source)).state
    names = ("running_mean", "running_var", "gamma", "beta")
    columns = zip(*(state[name].tolist() for name in names), strict=True)
    x = data()[BEFORE].astype(np.float64)
    errors = [bound(x[:, place].ravel(), m, v, g, b, EPS) for place, (m, v, g, b) in enumerate(columns)]
    return 2 * np.stack([error.reshape(x[:, 0].shape) for error in errors], 1)


def share(found: Array, wanted: Array) -> float:
    """Return the largest difference as a share of the bound."""
    return float((np.abs(found.astype(np.float64) - wanted) / (training_bound() * (np.abs(wanted) + 1))).max())


@functools.cache
def training_bound() -> float:
    """Bound relative errors: each sum of m squares has m roundings, which kappa^2 magnifies if squares cancel."""
    kappa2 = max(float(((x.astype(np.float64) ** 2).mean((0, 2, 3)) / x.var((0, 2, 3))).max()) for x in data())
    return (VALUES + 8) * 2.0**-24 * kappa2 * (BEFORE + 1 + AFTER)


def record() -> dict[str, Any]:
    """Measure all pairs of installed frameworks."""
    names = [name for name in FRAMEWORKS if why_not(name) is None]
    pairs = [
        {"source": a, "target": b, "verdict": (seen := measure(a, b)).verdict, **seen._asdict()}
        for a, b in itertools.permutations(names, 2)
    ]
    versions = {name: version(DISTRIBUTIONS.get(name, name)) for name in names}
    facts = {"values": VALUES, "before": BEFORE, "after": AFTER, "momentum": MOMENTUM, "bound": training_bound()}
    return {"date": date.today().isoformat(), "versions": versions, **facts, "pairs": pairs}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    RECORD.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
