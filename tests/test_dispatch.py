"""The choice of a backend: by type, by name, by another package's entry point; F8 and F26 of the fault list."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

import polybn
from polybn import dispatch
from polybn.spec import BackendError, Moments, ShapeError, SingleValueWarning, Traits, traits_of
from tests.conftest import IN_TREE

pytestmark = pytest.mark.clause("S14")

ARRAYS = """
    class Array:
        shape, dtype = (2, 3), "float32"

    class Leaf(Array):
        pass

    class Vector:
        shape, dtype = (3,), "float32"

    class Count:
        shape, dtype = (3,), "int64"

    class Other:
        shape, dtype = (2, 3), "float32"

    class Opaque:
        pass  # one value per channel, as only inspect knows
"""
BACKEND = """
    import time
    loads = globals().get("loads", 0) + 1
    time.sleep(0.05)  # long enough for other threads to meet a half-imported module
    name = "{name}"

    def why_not():
        {why_not}

    def describe():
        return {{}}

    from polybn.spec import Affine, BatchNormResult, Description, Moments

    def inspect(value):
        if type(value).__name__ == "Opaque":
            return Description((1, 3), "float32")
        return Description(value.shape, value.dtype) if type(value).__module__ == "{library}" else None

    heard = []

    def forward(arguments, *, differentiable):
        heard.append(arguments)
        return BatchNormResult(name, None, None), None

    def moments(arguments):
        heard.append(arguments)
        vector = type("Vector", (), {{"__module__": name, "shape": (arguments.channels,), "dtype": "float32"}})
        count = type("Count", (vector,), {{"__module__": name, "dtype": "int64"}})
        return Moments(count(), vector(), vector())

    def fold(arguments):
        heard.append(arguments)
        return Affine(arguments.gamma, arguments.gamma)

    def merge_moments(a, b):
        heard.append((a, b))
        return a
"""


class Installer(NamedTuple):
    """Installs a package: its modules and the entry points that announce them."""

    site: Path

    def __call__(self, package: str, entries: dict[str, str], *, extras: tuple[str, ...] = (), **modules: str) -> None:
        for name, source in modules.items():
            (self.site / f"{name}.py").write_text(textwrap.dedent(source))
        info = self.site / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        offered = "".join(f"Provides-Extra: {extra}\n" for extra in extras)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n{offered}")
        lines = [f"[{dispatch.GROUP}]", *(f"{name} = {value}" for name, value in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines))
        forget()


def forget() -> None:
    """Empty the caches of dispatch, as in a new process."""
    for cached in (
        dispatch._entries,
        dispatch._names,
        dispatch._owner,
        dispatch._serving,
        dispatch._serving_all,
        dispatch._found,
    ):
        cached.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """Install packages as pip would, until the test ends."""
    before = set(sys.modules)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        yield Installer(tmp_path)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    forget()


@pytest.fixture
def strange(install: Installer) -> ModuleType:
    """Install a third party's library and its backend; return the library."""
    backend = BACKEND.format(name="strange", library="strange", why_not="return None")
    install("polybn_strange", {"strange": "polybn_strange"}, strange=ARRAYS, polybn_strange=backend)
    return importlib.import_module("strange")


def refused(function: Callable[..., Any], *args: Any, **options: Any) -> BackendError:
    with pytest.raises(BackendError) as info:
        function(*args, **options)
    assert type(info.value) is BackendError
    assert isinstance(info.value, TypeError)
    return info.value


# By type.


def test_the_type_of_the_arrays_selects_the_backend(backend: str) -> None:
    module = polybn.backend(backend)
    x, gamma = module.asarray(np.ones((2, 3), "f4")), module.asarray(np.ones(3, "f4"))
    assert dispatch.backend_of("batch_norm", x=x, gamma=gamma, beta=None) is module
    assert type(polybn.batch_norm(x, gamma, training=True).y) is type(x)


def test_a_subclass_goes_where_its_base_goes() -> None:
    class Mine(np.ndarray):
        pass

    class MineToo(Mine):
        pass

    for cls in (Mine, MineToo, np.matrix, np.ma.MaskedArray, np.memmap):
        assert dispatch._serving(cls) is dispatch._serving(np.ndarray) is not None


def test_a_third_party_is_found_by_type(strange: ModuleType) -> None:
    heard: list[Any] = importlib.import_module("polybn_strange").heard
    x, gamma = strange.Array(), strange.Vector()
    options: Any = {"axis": -1, "running_variance": "unbiased", "momentum": 0.5}
    assert polybn.batch_norm(x, gamma, training=True, **options).y == "strange"
    numbers = (True, 0.5, 1e-5, True, 1, 3, 2, "float32")
    assert heard.pop() == ("batch_norm", x, gamma, None, None, None, None, *numbers, {})
    assert polybn.batch_norm_vjp(x, gamma, training=True)[0].y == "strange"
    assert polybn.moments(x, axis=0).mean.shape == (2,)
    numbers = (True, 1.0, 0.0, False, 0, 2, 3, "float32")
    assert heard.pop() == ("moments", x, None, None, None, None, None, *numbers, {})
    assert polybn.fold(gamma, None, gamma, gamma, eps=0.5).scale is gamma
    assert heard.pop().eps == 0.5
    part = Moments(strange.Count(), gamma, gamma)
    assert polybn.merge_moments(part, part) is part
    assert heard.pop() == (part, part)


def test_only_inspect_looks_at_a_third_partys_arrays(strange: ModuleType) -> None:
    for _ in range(2):
        with pytest.warns(SingleValueWarning, match=r"x has shape \(1, 3\)"):
            polybn.batch_norm(strange.Opaque(), training=True)


@pytest.mark.parametrize("says", ["[]", "None", "'always the same'"])
def test_a_signature_may_have_no_hash(strange: ModuleType, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    backend: Any = importlib.import_module("polybn_strange")
    monkeypatch.setattr(backend, "traits", Traits(signature=lambda arrays: eval(says)), raising=False)
    for _ in range(2):
        result, pullback = polybn.batch_norm_vjp(strange.Array(), strange.Vector(), training=True)
        assert result[0] == "strange"
        assert "dy must have shape (2, 3); got (3,)" in str(refused_shape(pullback, strange.Vector()))


def refused_shape(function: Callable[..., Any], *args: Any) -> ShapeError:
    with pytest.raises(ShapeError) as info:
        function(*args)
    return info.value


def test_a_tracer_is_found_by_what_it_inherits_from(strange: ModuleType) -> None:
    tracer = type("Tracer", (strange.Array,), {"__module__": "somewhere.else_"})
    deeper = type("Inner", (tracer,), {"__module__": "anywhere"})
    for x in (tracer(), deeper()):
        assert dispatch.backend_of("moments", x=x).name == "strange"


def test_a_name_inside_another_is_no_match(install: Installer, strange: ModuleType) -> None:
    install("other", {}, strangest=ARRAYS)
    refused(polybn.moments, importlib.import_module("strangest").Array())


def test_two_names_of_one_backend_are_one_backend(install: Installer) -> None:
    backend = BACKEND.format(name="twin", library="twin", why_not="return None")
    install(
        "polybn_twin",
        {"twin": "polybn_twin", "twinlib": "polybn_twin"},
        twin=ARRAYS,
        twinlib=ARRAYS,
        polybn_twin=backend,
    )
    x, gamma = (importlib.import_module(name).Array() for name in ("twin", "twinlib"))
    assert dispatch.backend_of("moments", x=x, gamma=gamma).name == "twin"
    assert polybn.backend("twin") is polybn.backend("twinlib")
    assert [name for name in polybn.backends() if name.startswith("twin")] == ["twin"]


# F8: arrays of several backends.


def test_f8_mixed_libraries_are_named_argument_by_argument(strange: ModuleType) -> None:
    x, mine = np.ones((2, 3)), strange.Array()
    rule = "polybn.{}: all arrays must belong to one backend; got {} (convert them yourself: polybn moves nothing ...)"
    rule = re.escape(rule).replace(r"\.\.\.", ".*")

    def check(error: BackendError, function: str, owners: str) -> None:
        assert re.fullmatch(rule.replace(r"\{\}", "{}").format(function, re.escape(owners)), str(error)), error

    for function in ("batch_norm", "batch_norm_vjp"):
        error = refused(getattr(polybn, function), x, mine, x, training=True)
        check(error, function, "x: numpy, gamma: strange, beta: numpy")
        error = refused(getattr(polybn, function), mine, None, None, mine, x, training=True, where=mine)
        check(error, function, "x: strange, running_mean: strange, running_var: numpy, where: strange")
    check(refused(polybn.moments, x, where=mine), "moments", "x: numpy, where: strange")
    check(refused(polybn.fold, None, mine, x, x), "fold", "beta: strange, running_mean: numpy, running_var: numpy")
    a, b = Moments(x, x, x), Moments(x, mine, x)
    owners = "a.count: numpy, a.mean: numpy, a.m2: numpy, b.count: numpy, b.mean: strange, b.m2: numpy"
    check(refused(polybn.merge_moments, a, b), "merge_moments", owners)


# F26: by name.


@pytest.mark.parametrize("name", ["tensorflow", "NumPy", "", "numpy ", "polybn_numpy", None, 3, ["numpy"], np])
def test_f26_an_unknown_name_is_told_the_known_ones(name: Any) -> None:
    error = refused(polybn.backend, name)
    assert str(error) == (
        f"polybn.backend: name must be one of {', '.join(dispatch._names())}; got {name!r} "
        "(a package adds one by an entry point in the group 'polybn.backends')"
    )
    assert error.__cause__ is None


def test_a_name_selects_a_backend(backend: str) -> None:
    name, _, attribute = dispatch._entries()[backend].value.partition(":")
    module = importlib.import_module(name)
    assert polybn.backend(backend) is (getattr(module, attribute) if attribute else module)
    assert attribute or name == f"polybn_{backend}"
    assert polybn.backend(backend).name == backend


def test_a_third_party_is_found_by_name(strange: ModuleType) -> None:
    assert polybn.backend("strange") is sys.modules["polybn_strange"]
    assert polybn.backends()["strange"] is None
    assert "strange" in str(refused(polybn.backend, "stranger"))


FAILURES = {
    "ModuleNotFoundError": "import no_such_library",
    "ImportError": "raise ImportError('libfoo.so.7: cannot open shared object file')",
    "RuntimeError": "raise RuntimeError('the driver is\\n  too old')",
    "SyntaxError": "this is no Python",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_f26_a_failing_import_keeps_its_cause(install: Installer, failure: str) -> None:
    install("polybn_broken", {"broken": "polybn_broken"}, broken=ARRAYS, polybn_broken=FAILURES[failure])
    x = importlib.import_module("broken").Array()
    calls: dict[str, Callable[[], Any]] = {
        "backend": lambda: polybn.backend("broken"),
        "batch_norm": lambda: polybn.batch_norm(x, training=True),
        "moments": lambda: polybn.moments(x),
    }
    for function, call in calls.items():
        error = refused(call)
        assert type(error.__cause__).__name__ == failure
        assert str(error) == (
            f"polybn.{function}: the module of backend 'broken' must be importable; got {failure}: {error.__cause__} "
            "(it is polybn_broken; install its library, and see polybn.backends())"
        )
    reason = polybn.backends()["broken"]
    assert reason == " ".join(f"{failure}: {error.__cause__}".split())
    assert polybn.backends()["numpy"] is None


@pytest.mark.parametrize(
    ("offered", "command"),
    [
        (("broken", "broken-more", "docs"), 'pip install "polybn-broken[broken]"'),
        (
            ("broken-cuda12", "broken-cuda13"),
            'pip install "polybn-broken[broken-cuda12]" or pip install "polybn-broken[broken-cuda13]"',
        ),
        (("docs", "unbroken"), ""),
    ],
)
def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(
    install: Installer, offered: tuple[str, ...], command: str
) -> None:
    failure = FAILURES["ModuleNotFoundError"]
    install("polybn-broken", {"broken": "polybn_broken"}, extras=offered, broken=ARRAYS, polybn_broken=failure)
    missing = "ModuleNotFoundError: No module named 'no_such_library'"
    assert polybn.backends()["broken"] == f"{missing}{command and f' ({command})'}"
    error = refused(polybn.moments, importlib.import_module("broken").Array())
    hint = f"install its library{command and f': {command}'}, and see polybn.backends()"
    assert str(error).endswith(f"got {missing} (it is polybn_broken; {hint})")


def test_what_every_library_of_the_standard_needs_is_named_itself(install: Installer) -> None:
    failure = 'raise ModuleNotFoundError("No module named array_api_compat", name="array_api_compat")'
    install("polybn-other", {"other": "polybn_other"}, extras=("other",), polybn_other=failure)
    assert str(polybn.backends()["other"]).endswith("(pip install array-api-compat)")


def test_only_what_is_missing_is_to_be_installed(install: Installer) -> None:
    """A library that is there and fails, or a backend whose own module is not there, needs something else."""
    for number, source in enumerate((FAILURES["ImportError"], FAILURES["RuntimeError"])):
        name = f"broken{number}"
        install(f"polybn-{name}", {name: f"polybn_{name}"}, extras=(name,), **{f"polybn_{name}": source})
    install("polybn-gone", {"gone": "polybn_gone"}, extras=("gone",))
    reasons = polybn.backends()
    assert "pip" not in f"{reasons['broken0']} {reasons['broken1']} {reasons['gone']}"


WITHOUT = """
import sys
from polybn import dispatch

for name in ("array_api_compat", "array_api_strict", "cupy", "dask", "jax", "mxnet", "torch"):
    sys.modules[name] = None
for name, reason in dispatch.backends().items():
    print(f"{name}: {reason}")
"""


def test_every_backend_of_this_tree_says_how_to_get_its_library() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert said.keys() == set(IN_TREE)
    named = {name: re.findall(r'pip install "polybn\[([^]]+)\]"', reason) for name, reason in said.items()}
    assert named.pop("numpy") == []
    builds = {"cupy": ["cupy-cuda12x", "cupy-cuda13x"], "array_api_strict": ["array-api-strict"]}
    assert named == {name: builds.get(name, [name]) for name in named}


def test_the_reason_why_a_backend_cannot_run_is_the_first_cause(install: Installer) -> None:
    install(
        "polybn_broken",
        {"broken": "polybn_broken:Array"},
        polybn_broken=(
            "try:\n    import no_such_library\nexcept ImportError as error:\n    raise AttributeError('no') from error"
        ),
    )
    assert polybn.backends()["broken"] == "ModuleNotFoundError: No module named 'no_such_library'"


ENDING = """
import atexit, threading  # which sees the end only if it was there before
import polybn

def late():
    try:
        polybn.backend("broken")
    except polybn.BackendError as error:
        print(error)

atexit.register(late)
"""


def test_a_backend_that_cannot_be_imported_while_python_ends_says_so(install: Installer) -> None:
    """What is wrong is the moment, not the installation."""
    install(
        "polybn_broken", {"broken": "polybn_broken"}, polybn_broken="import threading; threading._register_atexit(id)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(install.site), *sys.path])}
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=True, env=environment)
    assert (
        "got RuntimeError: can't register atexit after shutdown (it is polybn_broken; Python is ending: " in done.stdout
    )


def test_f26_a_repaired_backend_is_found_without_a_new_process(install: Installer) -> None:
    install("polybn_broken", {"broken": "polybn_broken"}, polybn_broken="import no_such_library")
    refused(polybn.backend, "broken")
    (install.site / "polybn_broken.py").write_text("name = 'repaired'")
    importlib.invalidate_caches()
    assert polybn.backend("broken").name == "repaired"


# What runs here.


REASONS = {
    "return None": None,
    "return 'no device'": "no device",
    "return 'no device:\\n   error 100'": "no device: error 100",
    "raise OSError('driver went away')": "OSError: driver went away",
    "raise RuntimeError('no device') from OSError('the cause')": "OSError: the cause",
}


@pytest.mark.parametrize("why_not", REASONS)
def test_backends_says_why_not_in_a_line_and_never_fails(install: Installer, why_not: str) -> None:
    install(
        "polybn_some", {"some": "polybn_some"}, polybn_some=BACKEND.format(name="some", library="some", why_not=why_not)
    )
    listed = polybn.backends()
    assert listed["some"] == REASONS[why_not]
    assert list(listed) == sorted(listed)
    assert listed.keys() == {*IN_TREE, "some"}


def test_a_backend_without_why_not_is_a_reason_too(install: Installer) -> None:
    install("polybn_bare", {"bare": "polybn_bare"}, polybn_bare="name = 'bare'")
    reason = polybn.backends()["bare"]
    assert reason is not None
    assert reason.startswith("AttributeError: ")
    assert "why_not" in reason


def test_a_backend_that_cannot_describe_itself_does_not_run(install: Installer) -> None:
    """Otherwise one that is not finished would end each command that lists all of them: info, bench."""
    unfinished = BACKEND.format(name="some", library="some", why_not="return None").replace("return {}", "...")
    install("polybn_some", {"some": "polybn_some"}, polybn_some=unfinished)
    assert polybn.backends()["some"] == "TypeError: 'NoneType' object is not iterable"


def test_an_installation_without_backends_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "entry_points", lambda group: ())
    forget()
    try:
        assert "pip install -e ." in str(refused(polybn.backend, "numpy"))
        assert "pip install -e ." in str(refused(polybn.moments, np.ones((2, 3))))
    finally:
        monkeypatch.undo()
        forget()


def test_no_environment_variable_selects_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYBN_BACKEND", "nonsense")
    forget()
    assert polybn.moments(np.ones((2, 3))).mean.tolist() == [1, 1, 1]
    assert polybn.backend("numpy").name == "numpy"


# The only state is caches.


def test_eight_threads_at_once_find_one_backend_and_import_it_once(strange: ModuleType) -> None:
    forget()
    barrier = threading.Barrier(8)

    def call(i: int) -> tuple[int, object, object]:
        barrier.wait()
        by_type = polybn.batch_norm(strange.Array(), strange.Vector(), training=True)[0]
        return threading.get_ident(), by_type, polybn.backend("strange")

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(8)))
    threads, names, modules = zip(*results, strict=True)
    assert len(set(threads)) == 8
    assert set(names) == {"strange"}
    assert set(modules) == {sys.modules["polybn_strange"]}
    assert sys.modules["polybn_strange"].loads == 1


def test_eight_threads_at_once_compute_the_same_bits() -> None:
    x = np.random.default_rng(0).standard_normal((64, 5, 33)).astype("f4")
    expected = polybn.batch_norm(x, training=True).y.tobytes()
    forget()
    barrier = threading.Barrier(8)

    def call(i: int) -> bytes:
        barrier.wait()
        return bytes(polybn.batch_norm(x, training=True).y.tobytes())

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(call, range(8))) == {expected}


def test_nothing_can_be_registered() -> None:
    with pytest.raises(TypeError):
        dispatch._entries()["mine"] = None  # type: ignore[index]
    assert isinstance(dispatch._names(), tuple)


def test_traits_of_another_kind_are_refused_in_words() -> None:
    module = ModuleType("polybn_wrong")
    module.name, module.traits = "wrong", {"flushes_subnormals": True}  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match=r"traits of the backend 'wrong' must be a polybn.spec.Traits; got dict"):
        traits_of(module)
