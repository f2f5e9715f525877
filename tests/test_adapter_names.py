"""Finding and making adapters: libraries are imported late, and errors say what is missing or wrong."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polybn import conformance, dispatch
from polybn.conformance.adapter import Adapter, Info
from polybn.conformance.adapters import ADAPTERS, mxnet, resolve
from polybn.spec import DomainError, DTypeError
from tests.test_adapters import LIBRARIES


def test_importing_every_adapter_module_imports_no_library() -> None:
    modules = sorted({path.partition(":")[0] for path in ADAPTERS.values()})
    code = f"import sys, {', '.join(modules)}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "polybn" in loaded
    assert not loaded & {"torch", "jax", "jaxlib", "flax", "keras", "mxnet", "onnx", "onnxruntime", "cupy"}


@pytest.mark.parametrize("adapter_name", ADAPTERS)
def test_every_entry_leads_to_something_callable(adapter_name: str) -> None:
    module, _, attribute = ADAPTERS[adapter_name].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    assert (adapter_name in LIBRARIES) != adapter_name.startswith("polybn-")


@pytest.mark.parametrize(
    ("adapter_name", "library"), [(name, library) for name, libraries in LIBRARIES.items() for library in libraries]
)
def test_a_missing_library_says_what_to_install(
    adapter_name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in {library, *(m for m in sys.modules if m.partition(".")[0] == library)}:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=r"needs the library [\w.]+; got .* \(`pip install [a-z=0-9. -]+` brings it"
    ) as caught:
        resolve(adapter_name)
    assert str(caught.value.name).partition(".")[0] in LIBRARIES[adapter_name]


NORM = """
from polybn.conformance import Info

class Norm:
    where = {where!r}

    def info(self):
        return Info("norm", "1")

    def train(self, *args, **options):
        import neighbour
"""


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return the path on which Python looks for modules, as an installed command has it; forget what is imported."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if Path(place).absolute() != Path.cwd()])
    yield sys.path
    for name in set(sys.modules) - before:
        if name.startswith(("my_norm", "neighbour")):
            del sys.modules[name]


def test_an_adapter_in_the_working_directory_is_found_with_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: list[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (tmp_path, elsewhere):
        (folder / "my_norm.py").write_text(NORM.format(where=folder.name))
    (tmp_path / "neighbour.py").write_text("")
    monkeypatch.chdir(tmp_path)
    path.insert(0, str(elsewhere))
    made: Any = resolve("my_norm:Norm")
    assert made.where == tmp_path.name
    made.train()


def test_the_path_is_changed_for_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: list[str]) -> None:
    (tmp_path / "my_norm_broken.py").write_text("import nothing_like_this")
    monkeypatch.chdir(tmp_path)
    before = list(path)
    resolve("polybn-numpy")
    for name in ("fractions:Fraction", "nothing_like_this:Norm", "my_norm_broken:Norm"):
        with pytest.raises((DTypeError, ImportError)):
            resolve(name)
    assert path == before


def test_a_module_that_is_nowhere_is_named_with_the_place_where_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError) as caught:
        resolve("my_nrom:Norm")
    assert str(caught.value) == (
        "polybn.conformance.resolve: adapter must name a module that can be imported; got 'my_nrom': No module named "
        f"'my_nrom' (Python looks in the working directory, {tmp_path}, and where packages are installed)"
    )


def test_a_backend_that_cannot_run_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "why_not", lambda name: f"no {name} on this planet")
    with pytest.raises(ImportError, match="backend 'cupy' must run here; got no cupy on this planet"):
        resolve("polybn-cupy")


def test_keras_on_another_backend_is_refused_and_the_environment_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keras = types.ModuleType("keras")
    keras.backend = types.SimpleNamespace(backend=lambda: "jax")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keras", keras)
    for setting in (None, "tensorflow"):
        if setting is None:
            monkeypatch.delenv("KERAS_BACKEND", raising=False)
        else:
            monkeypatch.setenv("KERAS_BACKEND", setting)
        with pytest.raises(ImportError, match="Keras must run on 'numpy' for this adapter; got 'jax'"):
            resolve("keras-numpy")
        assert os.environ.get("KERAS_BACKEND") == setting


def test_numpy_gets_its_lost_names_for_the_import_of_mxnet_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before, during = dict(vars(np)), list[bool]()

    def importing(module: str) -> types.ModuleType:
        assert module == "mxnet"
        during.append(all(n in vars(np) for n in mxnet.REMOVED))
        raise ImportError("far away")

    monkeypatch.setattr(importlib, "import_module", importing)
    with pytest.raises(ImportError, match=r"needs the library mxnet; got far away"):
        mxnet.MXNet()
    assert during == [True]
    assert {n: vars(np)[n] for n in before} == before
    assert set(vars(np)) == set(before)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        (
            "torch",
            DomainError,
            r"adapter must be one of pytorch, .*, 'polybn-NAME', or 'package.module:Class'; got 'torch'",
        ),
        ("", DomainError, "got ''"),
        (":", DomainError, "got ':'"),
        ("math:", DomainError, "got 'math:'"),
        ("math:Adapter", DomainError, r"got 'math:Adapter' \(module math has no Adapter\)"),
        ("fractions:Fraction", DTypeError, "'fractions:Fraction' made Fraction without info, train"),
        ("no_such_package.module:Class", ModuleNotFoundError, "no_such_package"),
    ],
)
def test_a_wrong_name_teaches(path: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        resolve(path)


def test_an_adapter_of_others_is_found_by_path_and_must_have_the_methods_that_it_declares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Other:
        def info(self) -> Info:
            return Info("other", "1", infers=False)

        def train(self) -> None: ...

    module = types.ModuleType("others")
    vars(module).update(Other=Other, nothing=object)
    monkeypatch.setitem(sys.modules, "others", module)
    with pytest.raises(DTypeError, match="'others:nothing' made object without info, train"):
        resolve("others:nothing")
    found: Adapter = resolve("others:Other")
    assert found.info().name == "other"
    pytest.importorskip("hypothesis")
    advice = conformance.check("others:Other").advice
    assert advice == "Nothing was checked: Other must have the methods that it declares; it lacks vjp"
