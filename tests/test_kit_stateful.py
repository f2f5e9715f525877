"""Long sequences of calls: right batch norms pass, wrong ones fail, and the model is the closed form."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polybn import conformance
from polybn.conformance import oracle, stateful
from polybn.conformance.cases import rows
from polybn.conformance.forms import VacuousBoundError
from polybn.conformance.properties.model import Model
from polybn.conformance.runner import Recorder, Violation, run
from polybn.conformance.strategies import sample
from polybn.conformance.trial import PROFILES
from tests.support import kit_adapters as kit

DEV = PROFILES["dev"]

TestRunningStatistics = stateful.machine(kit.Right(), kit.Right().info()).TestCase
TestBackend = stateful.machine(
    conformance.resolve("polybn-numpy"), conformance.resolve("polybn-numpy").info()
).TestCase  # fmt: skip
for case in (TestRunningStatistics, TestBackend):
    case.settings = hypothesis.settings(max_examples=15, stateful_step_count=15, deadline=None)


@pytest.mark.parametrize("make", [kit.Right, kit.Unbiased, kit.DeclaredReversed, kit.OnlyForward])
def test_right_ones_live(make: Any) -> None:
    adapter = make()
    tried = stateful.attempt(Recorder(adapter), adapter.info(), DEV, 5)
    assert tried.error is None, str(tried.error)
    assert tried.cases >= DEV.runs
    assert 0 < tried.share < 1


class Training(kit.Right):
    """Changes the statistics of the next training call in a backward pass."""

    def __init__(self) -> None:
        self.drift = 0.0

    def vjp(self, *args: Any, **options: Any) -> Any:
        self.drift += 0.5
        return super().vjp(*args, **options)

    def train(self, *args: Any, **options: Any) -> Any:
        y, mean, var = super().train(*args, **options)
        return y, mean + np.float32(self.drift), var


class Ordered(kit.Right):
    """Counts its calls, and adds the count to every second output."""

    def __init__(self) -> None:
        self.calls = 0

    def train(self, *args: Any, **options: Any) -> Any:
        y, mean, var = super().train(*args, **options)
        self.calls += 1
        return y + np.float32(self.calls % 2), mean, var


class Inferring(kit.Right):
    """Returns another output each time."""

    calls = 0

    def infer(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        return super().infer(*args, **options) + np.float32(self.calls)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (kit.Reversed, "must be the closed form"),
        (Training, "must be the closed form"),
        (Ordered, "whichever of two independent calls is made first"),
        (Inferring, "in inference, when it is made again"),
    ],
)
def test_wrong_ones_do_not(make: Any, said: str) -> None:
    adapter = make()
    tried = stateful.attempt(Recorder(adapter), adapter.info(), PROFILES["ci"], 5)
    assert tried.error is not None
    assert said in str(tried.error)
    assert tried.calls


def test_lives_shrink() -> None:
    adapter = kit.Reversed()
    tried = stateful.attempt(Recorder(adapter), adapter.info(), DEV._replace(shrinking=30.0), 5)
    # A single step is left: a training call, or two of them in both orders. Which one depends on the modules that are
    # imported, because Hypothesis takes constants from them.
    assert [call.method for call in tried.calls] in (["train"], ["train"] * 4)


def test_the_same_seed_lives_the_same() -> None:
    one, other = (
        stateful.attempt(Recorder(kit.Reversed()), kit.Reversed().info(), DEV, 5, shrink=False) for _ in range(2)
    )
    assert one.calls == other.calls


@given(seed=st.integers(0, 2**32), rho=st.sampled_from((0.9, 0.5, 1 / 3, 1.0, 0.0)), unbiased=st.booleans())
def test_the_model_is_the_closed_form(seed: int, rho: float, unbiased: bool) -> None:
    """The model is ``rho^k old + (1 - rho) sum rho^(k-1-i) batch_i``."""
    case = sample(seed, "float32", (7, 2, 3), momentum=rho)
    info = kit.Right().info()._replace(running_variance="unbiased" if unbiased else "biased")
    assert case.running_mean is not None
    assert case.running_var is not None
    start = case.running_mean, case.running_var
    model, batches = Model(info, *start), []
    for k in range(3):
        case = case._replace(x=sample(seed + k, "float32", (7, 2, 3)).x)
        model.step(case)
        batches.append([oracle.batch_statistics(oracle.row(r), Fraction(0)) for r in rows(case.x, 1).tolist()])
    r = Fraction(rho)
    for c in range(2):
        old = [Fraction(float(vector[c])) for vector in start]
        factor = Fraction(21, 20) if unbiased else 1
        found = [(b[c].mean, b[c].variance * factor) for b in batches]
        closed = [
            r**3 * old[i] + (1 - r) * sum(r ** (2 - k) * batch[i] for k, batch in enumerate(found)) for i in range(2)
        ]
        assert [model.exact["running_mean"][c], model.exact["running_var"][c]] == closed


def test_the_model_bounds_what_it_must() -> None:
    """A hundred steps in float64, each rounded to float32, stay within the bounds; half a percent more does not."""
    adapter = kit.Right()
    case = sample(4, "float32", (11, 3, 2), momentum=0.9)
    assert case.running_mean is not None
    assert case.running_var is not None
    model = Model(adapter.info(), case.running_mean, case.running_var)
    for k in range(100):
        case = case._replace(x=sample(k, "float32", (11, 3, 2)).x)
        outcome = run(adapter, adapter.info(), case, gradients=False)
        model.step(case)
        case = case._replace(running_mean=outcome.running_mean, running_var=outcome.running_var)
    assert case.running_mean is not None
    assert case.running_var is not None
    assert 0 < model.compare(case.running_mean, case.running_var) < 1
    with pytest.raises(Violation, match="running_var of channel 0 must be the closed form"):
        model.compare(case.running_mean, case.running_var * np.float32(1.005))
    with pytest.raises(Violation, match="got nan"):
        model.compare(case.running_mean * np.nan, case.running_var)


def test_a_copied_model_goes_its_own_way() -> None:
    case = sample(4, "float32", (11, 3, 2))
    assert case.running_mean is not None
    assert case.running_var is not None
    model = Model(kit.Right().info(), case.running_mean, case.running_var)
    twin = model.copy()
    twin.step(case)
    assert model.compare(case.running_mean, case.running_var) == 0
    assert twin.exact != model.exact


def test_a_model_refuses_to_guess() -> None:
    case = sample(4, "float32", (200, 3, 2), kappa=1e5)
    assert case.running_mean is not None
    assert case.running_var is not None
    with pytest.raises(VacuousBoundError):
        Model(kit.Right().info(), case.running_mean, case.running_var).step(case)
