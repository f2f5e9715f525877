"""Try one property on one adapter, on many cases, and keep the smallest that fails."""

from __future__ import annotations

import contextlib
import pickle
import time
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, errors, given
from hypothesis import settings as hypothesis_settings
from hypothesis.strategies import SearchStrategy

from polybn.conformance.forms import VacuousBoundError
from polybn.conformance.runner import Call, KitAdapterError, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from polybn.conformance.adapter import Adapter, Info
    from polybn.conformance.properties import Property


UNSTABLE = "not at every try: the same calls gave different results"


class Profile(NamedTuple):
    """How much to try."""

    examples: int
    """The number of random cases per property."""
    shrinking: float
    """The number of seconds spent on looking for a smaller failing case."""
    runs: int
    """The number of runs of the stateful test."""
    steps: int
    """The largest number of steps of a run."""
    seed: int | None
    """The seed; None means a random one."""
    seconds: float
    """The time limit of each check in seconds."""
    slow: bool = True
    """Whether to make the slow checks, too."""


PROFILES: dict[str, Profile] = {
    "dev": Profile(50, 1.0, 10, 12, None, 120, slow=False),
    "ci": Profile(300, 5.0, 40, 15, 0, 600),
    "nightly": Profile(20_000, 60.0, 1000, 30, None, 7200),
}


class Tried(NamedTuple):
    """The result of trying many cases."""

    cases: int
    """The number of cases that were judged."""
    vacuous: int
    """The number of cases for which an error bound was too wide to certify anything."""
    share: float
    """The largest share of an error bound that was used; 0 where all was exact."""
    worst: tuple[Call, ...]
    """The calls with the largest share."""
    error: BaseException | None
    """The error of the smallest failing case."""
    calls: tuple[Call, ...]
    """The calls of the smallest failing case."""
    words: str
    """The message of the last vacuous bound, or a remark on the failure."""
    listed: bool = False
    """Whether the cases come from a fixed list, not from random draws."""
    outcomes: tuple[str, ...] = ()
    """Digests of the results of the failing calls, to see whether a program repeats them."""
    unstable: bool = False
    """Whether the same calls gave different results."""

    @property
    def certified(self) -> bool:
        """Whether enough cases were judged: all cases of a fixed list, or some of the drawn ones."""
        return self.vacuous == 0 if self.listed and self.cases else self.vacuous < self.cases


class Trial:
    """A property under trial; call it with each case."""

    def __init__(self, check: Callable[[Adapter, Info, Any], float], recorder: Recorder, info: Info) -> None:
        self._check, self._recorder, self._info = check, recorder, info
        self._cases = self._vacuous = 0
        self._share, self._worst = 0.0, tuple[Call, ...]()
        self._error: BaseException | None = None
        self._calls, self._outcomes = tuple[Call, ...](), tuple[str, ...]()
        self._words = ""

    def __call__(self, case: Any) -> None:
        """Judge a case; an error is kept and raised."""
        self._recorder.forget()
        self._cases += 1
        try:
            share = self._check(self._recorder, self._info, case)
        except VacuousBoundError as error:
            self._vacuous += 1
            self._words = str(error)
        except (AssertionError, KitAdapterError) as error:
            self._error, self._calls = error, tuple(self._recorder.calls)
            self._outcomes = tuple(self._recorder.outcomes)
            raise
        else:
            if share > self._share:
                self._share, self._worst = share, tuple(self._recorder.calls)

    @property
    def failed(self) -> bool:
        """Whether a case failed."""
        return self._error is not None

    def result(self, words: str = "", *, listed: bool = False, unstable: bool = False) -> Tried:
        """Sum up."""
        return Tried(
            self._cases,
            self._vacuous,
            self._share,
            self._worst,
            self._error,
            self._calls,
            words or self._words,
            listed,
            self._outcomes,
            unstable,
        )


def attempt(
    prop: Property, recorder: Recorder, info: Info, profile: Profile, seed: int, *, shrink: bool = True
) -> Tried:
    """Try a property on cases drawn from the seed, or on all cases of its list."""
    trial, cases = Trial(prop.check, recorder, info), prop.cases(info)
    if isinstance(cases, SearchStrategy):
        words, unstable = _search(trial, cases, profile, seed ^ zlib.crc32(prop.id.encode()), shrink=shrink)
        if not trial.failed:
            _go_through(trial, prop.then(info))
        return trial.result(words, unstable=unstable)
    _go_through(trial, cases)
    return trial.result(listed=True)


def _go_through(trial: Trial, cases: Sequence[Any]) -> None:
    with contextlib.suppress(AssertionError, KitAdapterError):  # the trial keeps the first error, and stops there
        for case in cases:
            trial(case)


def settings(profile: Profile, *, shrink: bool, examples: int) -> hypothesis_settings:
    """Return Hypothesis settings that depend only on the arguments, not on the environment."""
    return hypothesis_settings(
        max_examples=examples,
        phases=(Phase.generate, Phase.shrink) if shrink and profile.shrinking else (Phase.generate,),
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )


def _search(trial: Trial, cases: SearchStrategy[Any], profile: Profile, seed: int, *, shrink: bool) -> tuple[str, bool]:
    """Return words about the search, and whether results were unstable."""
    failed: set[bytes] = set()
    until = [float("inf")]

    @hypothesis.seed(seed)
    @settings(profile, shrink=shrink, examples=profile.examples)
    @given(cases)
    def search(case: Any) -> None:
        # When the time for shrinking is over, new cases pass unseen; known failures still fail.
        if time.monotonic() > until[0] and pickle.dumps(case) not in failed:
            return
        try:
            trial(case)
        except (AssertionError, KitAdapterError):
            failed.add(pickle.dumps(case))
            until[0] = min(until[0], time.monotonic() + profile.shrinking)
            raise

    try:
        search()
    except (AssertionError, KitAdapterError):
        return "", False
    except errors.Flaky:
        return UNSTABLE, True
    except errors.Unsatisfiable:
        return "no case could be drawn that fits what the adapter declares", False
    return "", False
