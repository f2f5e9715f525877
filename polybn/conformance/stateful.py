"""A random sequence of training, inference, saving and copying, compared with an exact model of running statistics."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import hypothesis
import numpy as np
from hypothesis import errors, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from polybn.conformance import trial as trials
from polybn.conformance.cases import DTYPES, Array, Case, Outcome, statistics_dtype
from polybn.conformance.forms import VacuousBoundError
from polybn.conformance.properties import served
from polybn.conformance.properties.compare import same
from polybn.conformance.properties.model import Model
from polybn.conformance.runner import KitAdapterError, Recorder, run
from polybn.conformance.strategies import sample

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter, Info

__all__ = ["machine"]

ID = "stateful"
TITLE = "Training, inferring, saving, loading and copying in any order: statistics are those of the closed form."
CHANNELS = 3
NUMBERS = st.integers(0, 2**32)


class Life(NamedTuple):
    """Running statistics, and the exact model that they are compared with."""

    mean: Array
    var: Array
    model: Model


def machine(adapter: Adapter, info: Info) -> type[Any]:
    """Return a Hypothesis state machine for an adapter; its attribute ``TestCase`` is a test.

    Returns
    -------
    type
        A subclass of :class:`hypothesis.stateful.RuleBasedStateMachine`.

    Examples
    --------
    >>> from polybn import conformance
    >>> adapter = conformance.resolve("polybn-numpy")
    >>> TestRunningStatistics = conformance.stateful.machine(adapter, adapter.info()).TestCase
    """
    dtype = "float32" if "float32" in info.dtypes else info.dtypes[0]
    kappas = served.kappas(info, dtype)

    class RunningStatistics(RuleBasedStateMachine):
        """Several sets of running statistics, each with a model of its own."""

        shares: ClassVar[list[float]] = []

        @initialize(seed=NUMBERS)
        def begin(self, seed: int) -> None:
            first = self._batch(seed, 0.0, 0.9)
            assert first.running_mean is not None
            assert first.running_var is not None
            mean, var = first.running_mean, first.running_var
            self.lives = [Life(mean, var, Model(info, mean, var))]
            self.saved: list[tuple[bytes, bytes, Model]] = []

        def _batch(self, seed: int, kappa: float, momentum: float) -> Case:
            shape = served.fitted(info, (5 + seed % 4, CHANNELS, 2))
            return sample(seed, dtype, shape, 1, kappa=kappa, momentum=momentum, running_variance=info.running_variance)

        def _train(self, life: Life, case: Case) -> tuple[Outcome, Life]:
            given = case._replace(running_mean=life.mean, running_var=life.var)
            outcome = run(adapter, info, given, gradients=False)
            model = life.model.copy()
            model.step(given)
            assert outcome.running_mean is not None
            assert outcome.running_var is not None
            return outcome, Life(outcome.running_mean, outcome.running_var, model)

        @rule(seed=NUMBERS, which=NUMBERS, kappa=st.sampled_from(kappas), rho=st.sampled_from((0.9, 0.5, 0.1, 1.0)))
        def train(self, seed: int, which: int, kappa: float, rho: float) -> None:
            place = which % len(self.lives)
            # A batch whose error bounds are vacuous is skipped.
            with contextlib.suppress(VacuousBoundError):
                _, self.lives[place] = self._train(self.lives[place], self._batch(seed, kappa, rho))

        @precondition(lambda _: info.infers)
        @rule(seed=NUMBERS, which=NUMBERS)
        def infer(self, seed: int, which: int) -> None:
            life = self.lives[which % len(self.lives)]
            case = self._batch(seed, 0.0, 0.9)._replace(running_mean=life.mean, running_var=np.abs(life.var))
            first = run(adapter, info, case._replace(training=False))
            same("in inference, when it is made again", run(adapter, info, case._replace(training=False)), first)

        @precondition(lambda _: info.differentiates)
        @rule(seed=NUMBERS)
        def backward(self, seed: int) -> None:
            run(adapter, info, self._batch(seed, 0.0, 0.9))

        @rule(which=NUMBERS)
        def save(self, which: int) -> None:
            mean, var, model = self.lives[which % len(self.lives)]
            self.saved.append((mean.tobytes(), var.tobytes(), model.copy()))

        @precondition(lambda self: bool(self.saved))
        @rule(which=NUMBERS, place=NUMBERS)
        def load(self, which: int, place: int) -> None:
            mean, var, model = self.saved[which % len(self.saved)]
            wide = statistics_dtype(np.empty(0, DTYPES[dtype]))
            loaded = Life(np.frombuffer(mean, wide), np.frombuffer(var, wide), model.copy())
            self.lives[place % len(self.lives)] = loaded

        @precondition(lambda self: len(self.lives) < 4)
        @rule(which=NUMBERS)
        def clone(self, which: int) -> None:
            mean, var, model = self.lives[which % len(self.lives)]
            self.lives.append(Life(mean.copy(), var.copy(), model.copy()))

        @precondition(lambda self: len(self.lives) > 1)
        @rule(one=NUMBERS, two=NUMBERS)
        def reorder(self, one: int, two: int) -> None:
            a, b = self.lives[0], self.lives[1]
            x, y = self._batch(one, 0.0, 0.9), self._batch(two, 0.0, 0.9)
            first, after = (self._train(life, case) for life, case in ((a, x), (b, y)))
            again, before = (self._train(life, case) for life, case in ((b, y), (a, x)))
            what = "whichever of two independent calls is made first"
            same(what, before[0], first[0])
            same(what, again[0], after[0])
            self.lives[:2] = first[1], after[1]

        @invariant()
        def closed_form(self) -> None:
            for life in getattr(self, "lives", ()):
                self.shares.append(life.model.compare(life.mean, life.var))

    return RunningStatistics


def attempt(recorder: Recorder, info: Info, profile: trials.Profile, seed: int, *, shrink: bool = True) -> trials.Tried:
    """Run the state machine with the number of runs and steps of the profile."""
    cls = machine(recorder, info)
    lives: list[Any] = []

    def begin() -> Any:
        recorder.forget()
        lives.append(None)
        return cls()

    options: settings = trials.settings(profile, shrink=shrink, examples=profile.runs)
    options = settings(options, stateful_step_count=profile.steps)
    error: BaseException | None = None
    words = ""
    try:
        # Hypothesis documents that any callable will do, but its annotation asks for a class.
        run_state_machine_as_test(cast("Any", hypothesis.seed(seed)(begin)), settings=options)
    except VacuousBoundError as vacuous:
        return trials.Tried(len(lives), len(lives), 0.0, (), None, (), str(vacuous))
    except (AssertionError, KitAdapterError) as violation:
        error = violation
    except errors.Flaky as flaky:
        error, words = flaky, trials.UNSTABLE
    share = max(cls.shares, default=0.0) if error is None else 0.0
    calls, outcomes = (tuple(recorder.calls), tuple(recorder.outcomes)) if error else ((), ())
    unstable = isinstance(error, errors.Flaky)
    return trials.Tried(len(lives), 0, share, (), error, calls, words, outcomes=outcomes, unstable=unstable)
