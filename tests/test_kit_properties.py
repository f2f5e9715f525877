"""Each property by itself: it detects its faults, draws what an adapter serves, and records failures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polybn import conformance
from polybn.conformance import Info, runner, trial
from polybn.conformance.cases import DTYPES, Array, case_of
from polybn.conformance.forms import VacuousBoundError
from polybn.conformance.layouts import LAYOUTS
from polybn.conformance.properties import PROPERTIES, Property, served, whole_range
from polybn.conformance.reproducer import expression, program, source_of
from polybn.conformance.runner import CallError, KitAdapterError, Recorder, Violation, remember, run
from polybn.conformance.strategies import sample
from polybn.conformance.trial import PROFILES, Tried
from polybn.spec import __doc__ as specification
from tests.sabotage.reference import Normalized, Reference
from tests.support import kit_adapters as kit

RIGHT = kit.Right()
BY_ID = {prop.id: prop for prop in PROPERTIES}
DEV = PROFILES["dev"]
QUICK = [name for name in BY_ID if name not in ("P6", "P6b")]


def attempt(prop: Property, adapter: Any, *args: Any, **options: Any) -> Tried:
    return trial.attempt(prop, Recorder(adapter), *args, **options)


class Spoiled(kit.Right):
    """A right batch norm with one spoiled result."""

    def __init__(self, what: str) -> None:
        self.what = what

    def spoil(self, name: str, value: Array) -> Array:
        with np.errstate(all="ignore"):
            return value * np.float32(1.5) + np.float32(0.125) if name == self.what else value

    def train(self, *args: Any, **options: Any) -> Any:
        names = ("y", "running_mean", "running_var")
        return tuple(self.spoil(n, v) for n, v in zip(names, super().train(*args, **options), strict=True))

    def infer(self, *args: Any, **options: Any) -> Any:
        return self.spoil("inferred", super().infer(*args, **options))

    def vjp(self, *args: Any, **options: Any) -> Any:
        return tuple(
            self.spoil(n, v) for n, v in zip(("dx", "dgamma", "dbeta"), super().vjp(*args, **options), strict=True)
        )


def test_ids_are_those_of_the_research_and_clauses_exist() -> None:
    assert len(BY_ID) == len(PROPERTIES)
    numbers = {int("".join(filter(str.isdigit, name))) for name in BY_ID if name.startswith("P")}
    # P20, P30 to P32 and P41 are not about the four methods of one implementation.
    assert numbers == {*range(44)} - {20, 30, 31, 32, 41}
    for prop in PROPERTIES:
        assert all(f"**{clause} " in str(specification) for clause in prop.clause.split()), prop.id
        assert prop.title.endswith(".")


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("y", {"P1", "P5", "P8", "P9", "P14", "P15", "P15b", "P16", "P22", "P23", "P24", "P25", "P26", "P27", "P39"}),
        ("y", {"R1", "R2", "R3"}),
        ("running_mean", {"P2", "P2b", "P7", "P8", "P22", "P33", "P34"}),
        ("running_var", {"P2", "P2b", "P7", "P14", "P15", "P15b", "P16", "P22", "P33", "P34"}),
        ("inferred", {"P4", "P22", "P36"}),
        ("dx", {"P3", "P9", "P9b", "P14", "P16", "P22", "P28", "P29", "P39", "R2", "R3b"}),
        ("dgamma", {"P3", "P8", "P9b", "P14", "P15", "P15b", "P16", "P22", "P40", "R2", "R3b"}),
        ("dbeta", {"P3", "P9b", "P14", "P22", "P40", "R2", "R3b"}),
    ],
)  # fmt: skip
def test_each_result_is_looked_at(what: str, names: set[str]) -> None:
    for name in sorted(names):
        tried = attempt(BY_ID[name], Spoiled(what), RIGHT.info(), DEV, 3, shrink=False)
        assert isinstance(tried.error, Violation), f"{name} does not see a wrong {what}"


class Influence(kit.Right):
    """Lets one thing have an influence that it must not have."""

    def __init__(self, what: str) -> None:
        self.what, self.before = what, 0.0
        self.scratch: dict[tuple[int, ...], Array] = {}
        self.seen: dict[tuple[int, ...], Array] = {}

    def train(
        self, x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, **options: Any
    ) -> Any:
        y, mean, var = super().train(x, gamma, beta, running_mean, running_var, **options)
        if self.what == "other channels" and mean.size > 1:
            y = y + np.float32(1e-3) * np.abs(mean).sum()
        if self.what == "order" and y.size:
            y = y + np.float32(1e-3) * x.ravel()[0]
        if self.what == "strides":
            y = y + np.float32(0.1) * (not x.flags.c_contiguous)
        if self.what == "strides of gamma":
            y = y + np.float32(0.1) * (not gamma.flags.c_contiguous)
        if self.what == "zero strides":
            y = y + np.float32(0.1) * (0 in x.strides)
        if self.what == "axis":
            y = y + np.float32(0.1) * (options["axis"] < 0)
        if self.what == "first axis":
            y = y + np.float32(0.1) * (options["axis"] == 0)
        if self.what == "aliases":
            y = y + np.float32(0.1) * np.shares_memory(gamma, running_var)
        if self.what == "old statistics":
            y = y + np.float32(1e-3) * running_mean.sum()
        if self.what == "numbers":
            y = y + np.float32(0.1) * isinstance(options["eps"], np.floating)
        if self.what == "earlier calls":
            y, self.before = y + np.float32(self.before), self.before + 0.1
        if self.what == "earlier inference":
            y = y + np.float32(self.before)
        if self.what == "shared memory":
            mean = running_mean
        if self.what == "gamma of zero" and not gamma.any():
            y = y + 1
        if self.what == "the weight of the old" and options["momentum"] == 1:
            mean = running_mean
        if self.what == "no values" and not x.size:
            var = running_var
        if self.what == "scratch":
            room = self.scratch.setdefault(y.shape, np.empty_like(y))
            room[...] = y
            y = room
        self.seen[x.shape] = x
        return y, mean, var

    def vjp(self, x: Array, *args: Any, **options: Any) -> Any:
        return super().vjp(self.seen.get(x.shape, x) if self.what == "the latest" else x, *args, **options)

    def infer(self, x: Array, *args: Any, **options: Any) -> Array:
        y = super().infer(x, *args, **options)
        self.before += 0.1 if self.what == "earlier inference" else 0
        y = y + np.float32(0.1) * (self.what == "strides in inference" and not x.flags.c_contiguous)
        return y + np.float32(1e-2) * x.max() if self.what == "rest of the batch" else y


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("other channels", "P10"), ("order", "P11"), ("strides", "P12"), ("strides of gamma", "P12"),
        ("zero strides", "P12b"), ("axis", "P13"), ("first axis", "P13b"), ("earlier calls", "P17"),
        ("shared memory", "P18"), ("aliases", "P19"), ("strides in inference", "P12"),
        ("scratch", "P18"), ("the weight of the old", "P18"),
        ("no values", "P40"), ("the latest", "P17b"), ("numbers", "P21"), ("old statistics", "P35"),
        ("earlier inference", "P37"), ("rest of the batch", "P37b"), ("gamma of zero", "P39"),
    ],
)  # fmt: skip
def test_each_influence_is_seen(what: str, name: str) -> None:
    tried = attempt(BY_ID[name], Influence(what), RIGHT.info(), DEV, 3, shrink=False)
    assert isinstance(tried.error, Violation), f"{name} does not see {what}"


@pytest.mark.parametrize("name", ["P38", "P38b", "P38d"])
def test_nan_is_seen(name: str) -> None:
    assert isinstance(attempt(BY_ID[name], kit.LeakingNaN(), RIGHT.info(), DEV, 3).error, Violation)


def test_nan_in_dbeta_is_seen() -> None:
    class Poisoned(kit.Right):
        def vjp(self, x: Array, *args: Any, **options: Any) -> Any:
            dx, dgamma, dbeta = super().vjp(x, *args, **options)
            return dx, dgamma, dbeta + 0 * dgamma

    assert isinstance(attempt(BY_ID["P38c"], Poisoned(), RIGHT.info(), DEV, 3).error, Violation)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_sizes_are_seen_in_every_dtype(dtype: str) -> None:
    class Counter(Reference):
        """Counts the values in float16 for one dtype; float16 ends at 65,504."""

        def load(self, x: Array, axis: int) -> Array:
            self.narrow = x.dtype.name == dtype
            rows: Array = super().load(x, axis)
            return rows

        def count(self, rows: Array) -> Any:
            return rows.dtype.type(np.float16(rows.shape[1]) if self.narrow else rows.shape[1])

    info = Reference().info()
    assert attempt(BY_ID["P6"], Reference(), info, DEV, 3).error is None
    assert isinstance(attempt(BY_ID["P6"], Counter(), info, DEV, 3, shrink=False).error, Violation)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_vanishing_squares_are_seen(dtype: str) -> None:
    class Vanishing(Reference):
        def exponent(self, rows: Array, eps: float) -> Array:
            k: Array = super().exponent(rows, eps)
            return np.maximum(k, 0) if rows.dtype == dtype else k

    info = Reference().info()
    assert attempt(BY_ID["R4"], Reference(), info, DEV, 3).error is None
    assert isinstance(attempt(BY_ID["R4"], Vanishing(), info, DEV, 3).error, Violation)


class Told(kit.Right):
    """Knows the answers of P6b, and returns one of them wrongly."""

    def __init__(self, **wrong: float) -> None:
        self.answers = {"y": -1000.0, "running_mean": 0.1, "dx": 0.0, "dbeta": 2.0**24 + 4} | wrong

    def give(self, x: Array, *names: str) -> tuple[Array, ...]:
        values = (self.answers.get(name, 0.0) for name in names)
        return tuple(
            np.full(x.shape if name in ("y", "dx") else 1, v, "f4") for name, v in zip(names, values, strict=True)
        )

    def train(self, x: Array, *args: Any, **options: Any) -> Any:
        return self.give(x, "y", "running_mean", "running_var")

    def vjp(self, x: Array, *args: Any, **options: Any) -> Any:
        return self.give(x, "dx", "dgamma", "dbeta")


def tell(**wrong: float) -> BaseException | None:
    try:
        BY_ID["P6b"].check(Told(**wrong), RIGHT.info(), 0.1)
    except AssertionError as error:
        return error
    return None


def test_only_gross_errors_of_very_many_values_are_judged() -> None:
    assert tell() is None
    for lost in ({"running_mean": 0.06}, {"running_var": 0.009}, {"dbeta": 2.0**24}, {"y": -940.0}, {"dx": 80.0}):
        assert isinstance(tell(**lost), VacuousBoundError), lost
    for gross in (
        {"running_mean": 0.04}, {"running_mean": np.nan}, {"running_var": 0.011}, {"dbeta": 2.0**23}, {"y": 0.0},
        {"dx": 3e3}, {"dx": np.nan},
    ):  # fmt: skip
        found = tell(**gross)
        assert isinstance(found, Violation), gross
        assert "which no order of the sums explains" in str(found)


def test_sizes_are_seen() -> None:
    class Short(kit.Right):
        """Counts in 16 bits."""

        def train(self, x: Array, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(x, *args, **options)
            return (y, mean, var) if x.size // len(mean) < 2**16 else (y * 2, mean, var)

    class Narrow(kit.Right):
        """Treats only the first 64 channels."""

        def vjp(self, *args: Any, **options: Any) -> Any:
            dx, dgamma, dbeta = super().vjp(*args, **options)
            dgamma[len(dgamma) // 64 * 64 :] *= 2 if len(dgamma) > 64 else 1
            return dx, dgamma, dbeta

    for adapter in (Short(), Narrow()):
        assert isinstance(attempt(BY_ID["P6"], adapter, RIGHT.info(), DEV, 3).error, Violation)


def test_warnings_about_nothing_are_heard() -> None:
    class Loud(kit.Right):
        def train(self, x: Array, *args: Any, **options: Any) -> Any:
            if not x.size:
                np.zeros(0).mean()
            return super().train(x, *args, **options)

    (result,) = conformance.check(Loud(), only=["P40"]).results
    assert "must not warn; got RuntimeWarning" in result.words


def test_every_property_was_shown_to_fail() -> None:
    """Three test files name all properties."""
    names = ("test_kit_properties.py", "test_kit_check.py", "test_kit_authors.py")
    here = "".join((Path(__file__).parent / name).read_text() for name in names)
    assert not [name for name in BY_ID if f'"{name}"' not in here]


def test_where_shapes_are_compiled_few_are_drawn() -> None:
    """Only shapes are few: dtypes and ranks are complete, and values, parameters and means vary as usual."""

    class Spy(kit.Right):
        def info(self) -> Info:
            return Info("a", "1", dtypes=("float16", "float32"), ranks=(2, 3), compiles=True)

        def train(self, x: Array, *args: Any, momentum: float, eps: float, axis: int) -> Any:
            calls[(x.shape, axis, x.dtype.name)] += 1
            options.setdefault((x.shape, axis, x.dtype.name), set()).add((momentum, eps))
            return super().train(x, *args, momentum=momentum, eps=eps, axis=axis)

    for name in ("P1", "P22"):
        calls, options = Counter[Any](), dict[Any, set[Any]]()
        spy = Spy()
        attempt(BY_ID[name], spy, spy.info(), DEV._replace(examples=200), 0)
        assert {dtype for *_, dtype in calls} == {"float16", "float32"}
        assert {len(shape) for shape, *_ in calls} == {2, 3}
        assert len(calls) == 2 * 2 * served.FEW + len(BY_ID[name].then(spy.info()))
        assert len(BY_ID[name].then(spy.info())) <= served.FEW
        assert max(len(each) for each in options.values()) == served.FEW


@pytest.mark.parametrize("count", [1, 3, 7])
def test_where_shapes_are_compiled_each_dtype_and_each_shape_stands_once_at_least(count: int) -> None:
    info = Info("a", "1", dtypes=("float16", "bfloat16", "float32", "float64"))
    shapes = [(n, 5) for n in range(count)]
    assert len(set(served.typed(info, shapes))) == 4 * count
    few = served.typed(info._replace(compiles=True), shapes)
    assert len(few) == max(4, count)
    assert {dtype for dtype, _ in few} == {*info.dtypes}
    assert {shape for _, shape in few} == {*shapes}


@pytest.mark.parametrize(
    "info",
    [
        Info("a", "1", axes="second", ranks=(2,)),
        Info("a", "1", axes="second", ranks=(4,), dtypes=("float16",)),
        Info("a", "1", ranks=(3, 5), dtypes=("bfloat16", "float64"), running_variance="unbiased"),
        Info("a", "1", max_kappa=2.0, infers=False),
    ],
)
@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_drawn_that_is_not_served(info: Info, name: str) -> None:
    prop = BY_ID[name]
    if prop.why_not(info) is not None:
        return
    seen: list[Array] = []

    class Spy(runner.Recorder):
        def train(self, *arrays: Array, **options: Any) -> Any:
            x = arrays[0]
            assert x.ndim in info.ranks
            assert x.dtype.name in info.dtypes
            assert info.axes == "any" or options["axis"] == 1
            seen.append(x)
            raise ValueError("stop here")

        infer = vjp = infer_vjp = train

    profile = DEV._replace(examples=15)
    for seed in range(3):
        tried = attempt(prop, Spy(kit.Right()), info, profile, seed, shrink=False)
        assert isinstance(tried.error, CallError) or (info.single_value == "error" and name == "P16") or seen, name
    assert seen


@given(st.sampled_from(sorted(LAYOUTS)), st.integers(0, 99), st.sampled_from(sorted(DTYPES)))
def test_arrays_are_written_down_with_their_strides(layout: str, seed: int, dtype: str) -> None:
    import zlib

    import ml_dtypes

    array = LAYOUTS[layout](sample(seed, dtype, (5, 3, 2)).x)
    for one in (array, array[:0], array[:, :1], array[::-1], np.broadcast_to(array[:1], (4, 3, 2)), array[0, 0, 0:]):
        code = expression(remember(one))
        again = eval(code, {"np": np, "zlib": zlib, "ml_dtypes": ml_dtypes})
        assert (again.dtype, again.shape) == (one.dtype, one.shape)
        assert again.tobytes() == one.tobytes()
        assert again.strides == one.strides or not one.size or one.flags.c_contiguous
        assert again.flags.writeable


def test_failures_shrink() -> None:
    class Sixty(kit.Right):
        """Errs for three channels or more."""

        def train(self, x: Array, gamma: Array, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(x, gamma, *args, **options)
            return (y + 1 if len(gamma) >= 3 else y), mean, var

    tried = attempt(BY_ID["P1"], Sixty(), RIGHT.info(), DEV._replace(shrinking=30.0), 5)
    (call,) = tried.calls
    assert sorted(call.arrays["x"].shape) == [3, 4]
    assert call.arrays["gamma"].shape == (3,)


def test_shrinking_ends_in_time() -> None:
    wrong = Spoiled("y")
    tried = attempt(BY_ID["P22"], wrong, RIGHT.info(), DEV._replace(shrinking=1e-9), 5)
    assert isinstance(tried.error, Violation)
    assert tried.words == ""
    assert tried.calls


def test_failures_that_come_and_go_are_told_so() -> None:
    class Moody(kit.Right):
        calls = 0

        def train(self, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(*args, **options)
            Moody.calls += 1
            return y + (Moody.calls == 5), mean, var

    tried = attempt(BY_ID["P1"], Moody(), RIGHT.info(), DEV, 5)
    assert isinstance(tried.error, Violation)
    assert "not at every try" in tried.words


def test_a_reproducer_runs_and_shows_the_failure(tmp_path: Path) -> None:
    report = conformance.check(kit.UnbiasedOutput(), only=["P1", "P3", "P12"], seed=1)
    found = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}  # to find the adapter's module
    for result in report.failures:
        file = tmp_path / f"{result.id}.py"
        file.write_text(result.reproducer)
        ran = subprocess.run([sys.executable, file], capture_output=True, text=True, env=found)
        assert ran.returncode == 0, ran.stderr
        assert "expected:" in ran.stdout
        assert "got when it failed:" in ran.stdout
    assert {r.id for r in report.failures} >= {"P1", "P3"}
    assert "resolve('tests.support.kit_adapters:UnbiasedOutput')" in report.failures[0].reproducer


def test_a_reproducer_leaves_a_line_where_the_adapter_cannot_be_made_again() -> None:
    class Local(kit.Right):
        pass

    assert source_of(Local()) is None
    assert source_of(kit.Right()) == "tests.support.kit_adapters:Right"
    assert source_of(Spoiled("y")) is None
    assert "adapter = ...  # make your adapter here" in program(None, "A title.", [], Violation("words"))


def test_long_arrays_are_compressed_and_hopeless_ones_left_out() -> None:
    recorder = Recorder(RIGHT)
    case = sample(1, "float32", (2000, 3))
    run(recorder, RIGHT.info(), case, gradients=False)
    assert "zlib.decompress" in program(None, "A title.", recorder.calls, Violation("words"))
    recorder.calls = []
    run(recorder, RIGHT.info(), sample(1, "float32", (100_000, 3)), gradients=False)
    assert "too large to write down" in program(None, "A title.", recorder.calls, Violation("words"))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda y, m, v: [y, m, v], "must return a tuple of 3 NumPy arrays .*; got list of 3"),
        (lambda y, m, v: (y, m), "got tuple of 2"),
        (lambda y, m, v: (y, m, v.tolist()), "running_var must be a plain NumPy array; got list"),
        (lambda y, m, v: (y, m[:1], v), r"running_mean must have shape \(3,\) and dtype float32; got \(1,\)"),
        (lambda y, m, v: (y, m, v.astype("f8")), r"running_var must have .* dtype float32; got \(3,\) and float64"),
        (lambda y, m, v: (y.T, m, v), r"y must have shape \(7, 3, 5\)"),
    ],
)
def test_the_contract_is_held(returned: Any, said: str) -> None:
    class Sloppy(kit.Right):
        def train(self, *args: Any, **options: Any) -> Any:
            return returned(*super().train(*args, **options))

    with pytest.raises(
        KitAdapterError, match=rf"Sloppy.train.*{said}.*contract: polybn.conformance.adapter.Adapter.train"
    ):
        run(Sloppy(), Sloppy().info(), sample(1))


def test_errors_of_a_library_are_told_and_kept() -> None:
    class Broken(kit.Right):
        def vjp(self, *args: Any, **options: Any) -> Any:
            raise ZeroDivisionError("by nothing\nat all")

    with pytest.raises(CallError, match=r"^Broken\.vjp raised ZeroDivisionError: by nothing$") as caught:
        run(Broken(), Broken().info(), sample(1))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    run(Broken(), Broken().info(), sample(1), gradients=False)


def test_results_are_copies() -> None:
    class Reusing(kit.Right):
        """Returns the same memory each time."""

        room = np.zeros((7, 3, 5), np.float32)

        def train(self, *args: Any, **options: Any) -> Any:
            y, mean, var = super().train(*args, **options)
            self.room[...] = y
            return self.room, mean, var

    first = run(Reusing(), Reusing().info(), sample(1), gradients=False)
    run(Reusing(), Reusing().info(), sample(2), gradients=False)
    assert np.array_equal(first.y, run(RIGHT, RIGHT.info(), sample(1)).y)
    assert isinstance(attempt(BY_ID["P18"], Reusing18(), RIGHT.info(), DEV, 1, shrink=False).error, Violation)


class Reusing18(kit.Right):
    """Returns the same memory for all results of one size."""

    def __init__(self) -> None:
        self.rooms: dict[tuple[int, ...], Array] = {}
        self.call = 0

    def infer(self, *args: Any, **options: Any) -> Array:
        y = super().infer(*args, **options)
        self.call += 1
        room = self.rooms.setdefault(y.shape, y)
        room[...] = y + self.call % 2
        return room


def test_momentum_is_translated() -> None:
    given: list[float] = []

    class Listener(kit.DeclaredReversed):
        def train(self, *args: Any, momentum: float, **options: Any) -> Any:
            given.append(momentum)
            return super().train(*args, momentum=momentum, **options)

    adapter = Listener()
    for info, weight in ((adapter.info(), 0.25), (adapter.info()._replace(momentum="old"), 0.75)):
        run(adapter, info, sample(1, momentum=0.75))
        assert given.pop() == weight


def test_drawn_calls_do_not_depend_on_the_settings_of_others() -> None:
    """A user's profile with derandomize or a database must not change what is drawn."""
    prop, adapter = BY_ID["P22"], kit.EpsOutside()
    before = attempt(prop, adapter, adapter.info(), DEV, 9, shrink=False)
    hypothesis.settings.register_profile("other", derandomize=True, max_examples=1)
    current = hypothesis.settings.get_current_profile_name()
    try:
        hypothesis.settings.load_profile("other")
        after = attempt(prop, adapter, adapter.info(), DEV, 9, shrink=False)
    finally:
        hypothesis.settings.load_profile(current)
    assert before.calls == after.calls


def test_served_shapes_keep_channels_and_values() -> None:
    for ranks in ((2,), (3,), (4,), (5,), (2, 3, 4, 5)):
        for shape in ((5, 7, 3), (4, 65, 4, 2), (9, 3), (0, 5, 3, 2)):
            got = served.fitted(Info("a", "1", ranks=ranks), shape)
            assert len(got) in ranks
            assert got[1] == shape[1]
            assert np.prod(got) == np.prod(shape)


class Small(Reference):
    """Is right near 1, and lacks one of the steps for the ends of the range."""

    def __init__(self, what: str) -> None:
        self.what = what

    def exponent(self, rows: Array, eps: float) -> Array:
        k: Array = super().exponent(rows, eps)
        hidden = self.what == "squares beside NaN" and np.isnan(rows).any()
        return 0 * k if self.what == "squares" or hidden else k

    def exponent_of(self, values: Array) -> Array:
        k: Array = super().exponent_of(values)
        return 0 * k if self.what == "products" else k

    def normalize(self, rows: Array, eps: float) -> Normalized:
        n = super().normalize(rows, eps)
        if self.what == "what momentum leaves":
            n = n._replace(variance=np.ldexp(n.variance, n.lowered), lowered=0 * n.lowered)
        return n

    def line(self, rows: Any, xhat: Any, k: Any, gamma: Any, beta: Any) -> Any:
        if self.what == "what beta brings back":
            return self.affine(np.ldexp(xhat, k), gamma, beta)
        return super().line(rows, xhat, k, gamma, beta)

    def by_running(self, rows: Array, mean: Array, variance: Array, eps: float) -> tuple[Array, Array, Array]:
        if self.what != "small beside large":
            return super().by_running(rows, mean, variance, eps)
        k = np.maximum(self.exponent_of(rows), self.exponent_of(mean))  # one scale for all values of a channel
        root = self.running_root(variance, rows.dtype.type(eps))
        return (np.ldexp(rows, -k) - np.ldexp(mean, -k)) * root, root, k


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("nothing", set()),
        ("squares", {"G1", "G2"}),
        ("products", {"G2", "G4"}),
        ("squares beside NaN", {"G1", "G2"}),
        ("what momentum leaves", {"G1"}),
        ("what beta brings back", {"G1", "G3"}),
        ("small beside large", {"G3", "G4"}),
    ],
)
def test_the_whole_range_is_seen(what: str, names: set[str]) -> None:
    info = Reference().info()._replace(dtypes=("float32",))
    tried = {name: attempt(BY_ID[name], Small(what), info, DEV, 3) for name in ("G1", "G2", "G3", "G4")}
    assert {name for name, one in tried.items() if one.error is not None} == names
    assert all(one.cases for one in tried.values())


@pytest.mark.parametrize(
    ("x", "dy", "vectors", "training", "name", "right"),
    [
        # Reported bugs: eps that vanishes when a constant channel is scaled; products in a bad order.
        ([3e38] * 4, [1, 0, 0, 0], (1, 0, 0, 1), True, "dx", 237.17),
        ([1, 2, 3, 5], [3e38, 0, 0, -3e38], (1e-3, 0, 0, 1), True, "dx", 4.06e34),
        ([1e30, 2e30, 3e30, 5e30], [1e-14, 0, 0, 0], (1e30, 0, 0, 1), True, "dx", 2.704e-15),
        ([3e38], [0], (1, 0, -3e38, 1e38), False, "y", 6e19),
        ([3e38], [0], (0, 0.5, 0, 0.5), False, "y", 0.5),
    ],
)
def test_the_whole_range_knows_the_exact_results(
    x: list[float], dy: list[float], vectors: tuple[float, ...], training: bool, name: str, right: float
) -> None:
    rows = (np.array(values, np.float32)[:, None] for values in (x, dy))
    case = case_of(next(rows), ([v] for v in vectors), next(rows), training=training)
    exact, _, _ = whole_range._exact(case, derivatives=name.startswith("d"))
    assert exact[name].floats()[0] == pytest.approx(right, rel=1e-3)
