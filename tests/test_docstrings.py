"""Public names have numpydoc sections, with shapes, and their examples run and print what is shown."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import polybn
from polybn.conformance import stateful, strategies
from tests.conftest import BACKENDS, REASONS

ROOT = Path(__file__).parents[1]
MODULES = [polybn, *(value for name in polybn.__all__ if isinstance(value := getattr(polybn, name), ModuleType))]
MODULES += [polybn.conformance, stateful, strategies]
INNER = ("polybn.conformance.stateful.", "polybn.spec.")
"""Modules for authors of tests and of backends, whose functions need only one line."""
IDIOMS = {
    f"polybn_{name}.{idiom}": name
    for name in BACKENDS
    for idiom in ("nnx", "gluon", "public")
    if (ROOT / f"backends/polybn_{name}/{idiom}.py").exists()
}
"""Modules for users of a backend's library, beside the protocol, with the name of the backend."""
REFERENCE = re.compile(r"\b(see|as|to) :(func|meth):`", re.IGNORECASE)
"""A reference to the function that explains the arguments."""


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield the public definitions of a module, or the names in its ``__all__``, with full names."""
    listed = getattr(module, "__all__", None)
    for name, value in sorted(vars(module).items() if listed is None else [(n, getattr(module, n)) for n in listed]):
        own = listed is not None or getattr(value, "__module__", None) == module.__name__
        if not name.startswith("_") and own and (inspect.isclass(value) or inspect.isfunction(value)):
            yield f"{module.__name__}.{name}", value


PUBLIC = dict(pair for module in MODULES for pair in public(module))
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}


def sections_of(doc: str) -> dict[str, str]:
    """Split a numpydoc docstring at its underlined headings."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", doc, flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[0::2], strict=True))


def entries_of(section: str) -> dict[str, str]:
    """Map each parameter to its entry; ``a, b : int`` is an entry of both."""
    found = dict[str, str]()
    for entry in re.split(r"\n(?=\S)", section.strip()):
        names, _, _ = entry.partition("\n")[0].partition(" : ")
        found |= {name.strip(" *"): entry for name in names.split(",")}
    return found


def raises_itself(function: Callable[..., Any]) -> bool:
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except OSError:  # Hypothesis generates the function of a composite strategy; the source has the original
        file = Path(str(sys.modules[function.__module__].__file__)).read_text(encoding="utf-8")
        (definition,) = (n for n in ast.parse(file).body if getattr(n, "name", "") == function.__name__)
        source = ast.unparse(definition)
    return any(isinstance(node, ast.Raise) for node in ast.walk(ast.parse(source)))


def flaws(function: Callable[..., Any], *, inner: bool = False) -> list[str]:
    """List what is missing or wrong in a function's docstring."""
    doc = inspect.getdoc(function) or ""
    if not doc or REFERENCE.search(doc):
        return [] if doc else ["no docstring"]
    if not re.match(r"[A-Z`].*[.:]$", doc.partition("\n")[0]):
        return ["no one-line summary"]
    if inner:
        return []
    sections, signature = sections_of(doc), inspect.signature(function)
    parameters = {n: str(p.annotation) for n, p in signature.parameters.items() if n not in ("self", "cls")}
    entries = entries_of(sections.get("Parameters", ""))
    found = [f"parameter {name} is missing" for name in parameters if name not in entries]
    found += [f"parameter {name} does not exist" for name in entries if name not in ("", *parameters)]
    for name, annotation in parameters.items():
        if "Array" in annotation and not re.search(r"shape|\(N, |As in", entries.get(name, "shape")):
            found.append(f"array {name} has no shape")
    if str(signature.return_annotation) not in ("None", "NoReturn") and not {"Returns", "Yields"} & sections.keys():
        found.append("no Returns")
    if raises_itself(function) and "Raises" not in sections:
        found.append("no Raises")
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_explains_its_arguments(name: str) -> None:
    assert flaws(FUNCTIONS[name], inner=name.startswith(INNER)) == []


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith(INNER)])
def test_a_function_for_everybody_shows_an_example(name: str) -> None:
    assert "Examples" in sections_of(inspect.getdoc(FUNCTIONS[name]) or "")


@pytest.mark.parametrize(
    "name", ["batch_norm", "batch_norm_vjp", "moments", "merge_moments", "fold", "backend", "train"]
)
def test_the_functions_that_people_call_first_say_what_can_go_wrong(name: str) -> None:
    sections = sections_of(inspect.getdoc(getattr(polybn, name)) or "")
    assert {"Parameters", "Returns", "Raises", "Examples"} <= sections.keys()


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_and_its_methods_have_docstrings(name: str) -> None:
    cls = CLASSES[name]
    own = {key: value for key, value in vars(cls).items() if inspect.isfunction(value) and not key.startswith("_")}
    assert [key for key, value in {name: cls, **own}.items() if not inspect.cleandoc(value.__doc__ or "")] == []
    inner = name.startswith(INNER)
    assert {key: found for key, value in own.items() if (found := flaws(value, inner=inner))} == {}
    assert not (cls.__doc__ or "").startswith(f"{cls.__name__}(")  # generated by dataclass or NamedTuple
    if "__init__" in vars(cls) and not hasattr(cls, "__dataclass_fields__") and not getattr(cls, "_is_protocol", False):
        entries = entries_of(sections_of(inspect.getdoc(cls) or "").get("Parameters", ""))
        assert entries.keys() == inspect.signature(cls).parameters.keys()


# Examples.


NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d*(?:e[-+]?\d+)?|(?<![\w.])[-+]?\d+e[-+]?\d+")


class Checker(doctest.OutputChecker):
    """Compares floats to one unit of the sixth digit, and the rest exactly, except for white space."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        numbers = [[float(x) for x in NUMBER.findall(text)] for text in (want, got)]
        texts = [re.sub(r"\s+", "", NUMBER.sub("#", text)) for text in (want, got)]
        same = len(numbers[0]) == len(numbers[1]) and all(
            abs(x - y) <= 1e-6 * abs(x) for x, y in zip(*numbers, strict=True)
        )
        return texts[0] == texts[1] and same


def module_names(folder: str, package: str = "*") -> list[str]:
    files = sorted((ROOT / folder).glob(f"{package}/**/*.py"))
    names = [".".join(path.relative_to(ROOT / folder).with_suffix("").parts) for path in files]
    return [name.removesuffix(".__init__") for name in names]


def run_examples(name: str) -> int:
    """Run the examples of a module; return their number."""
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(Checker(), verbose=False)
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        for test in finder.find(importlib.import_module(name)):
            runner.run(test)
    assert runner.failures == 0, report.getvalue()
    return runner.tries


@pytest.mark.parametrize("name", module_names(".", "polybn"))
def test_the_examples_of_polybn_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples(name)


@pytest.mark.usefixtures("as_readers_have_it")
def test_the_examples_of_a_backend_run(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in module_names("backends", f"polybn_{backend}"):
        run_examples(name)


def test_each_function_of_a_backend_says_what_it_does(backend: str) -> None:
    module: Any = polybn.backend(backend)
    names = getattr(module, "__all__", [name for name in dir(module) if not name.startswith("_")])
    functions = {name: value for name in names if inspect.isroutine(value := getattr(module, name))}
    found = {name: flaws(value, inner=True) for name, value in functions.items()}
    assert {name: all_flaws for name, all_flaws in found.items() if all_flaws} == {}


@pytest.mark.parametrize("idiom", IDIOMS)
def test_what_a_backend_offers_to_its_own_people_is_explained(idiom: str) -> None:
    if REASONS[IDIOMS[idiom]] is not None:
        pytest.skip(f"{IDIOMS[idiom]}: {REASONS[IDIOMS[idiom]]}")
    pytest.importorskip(idiom, reason="the backend runs without the library of its layers")
    names = dict(public(importlib.import_module(idiom)))
    assert names
    for name, value in names.items():
        assert not inspect.isfunction(value) or flaws(value) == []
        sections = sections_of(inspect.getdoc(value) or "")
        assert {"Parameters", "Examples"} <= sections.keys(), name
        assert "Raises" in sections or not raises_itself(value), name


def test_there_are_examples() -> None:
    assert run_examples("polybn.functional") >= 15
    assert "polybn.lenet.networks" in module_names(".", "polybn")
    assert "polybn_numpy.kernels" in module_names("backends")


# The tests can fail.


def good(x: polybn.spec.Array, *, axis: int = 1) -> int:
    """Do it.

    Parameters
    ----------
    x : array, shape (N, C)
    axis : int

    Returns
    -------
    int
    """
    return axis


@pytest.mark.parametrize(
    ("old", "new", "flaw"),
    [
        ("Do it.", "do it", "no one-line summary"),
        ("    axis : int\n", "", "parameter axis is missing"),
        ("axis : int", "axes, axis : int", "parameter axes does not exist"),
        (", shape (N, C)", "", "array x has no shape"),
        ("Returns\n    -------", "Return\n    ------", "no Returns"),
        ("    int\n    ", "    int\n    ", None),
        ("return axis", "raise ValueError", "no Raises"),
    ],
)
def test_a_flaw_is_found(old: str, new: str, flaw: str | None, tmp_path: Path) -> None:
    source = inspect.getsource(good)
    assert old in source
    path = tmp_path / "flawed.py"
    path.write_text(f"from __future__ import annotations\n{source.replace(old, new)}")
    spec = importlib.util.spec_from_file_location("flawed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert flaws(module.good) == ([] if flaw is None else [flaw])


@pytest.mark.parametrize(
    ("want", "got", "same"),
    [
        ("array([1.5, -2.0000001])", "array([ 1.5       , -2.        ])", True),
        ("1.00001", "1.0", False),
        ("-0.5", "0.5", False),
        ("1", "2", False),
        ("[1.0, 2.0]", "[1.0]", False),
        ("1.5 float32", "1.5 float64", False),
        ("1e-05", "2e-05", False),
        ("nan", "0.0", False),
    ],
)
def test_floats_are_compared_to_six_digits_and_the_rest_to_the_letter(want: str, got: str, same: bool) -> None:
    assert Checker().check_output(want, got, 0) is same


def test_a_wrong_example_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polybn.functional.moments, "__doc__", ">>> 1 + 1\n3\n")
    with pytest.raises(AssertionError, match="Expected"):
        run_examples("polybn.functional")
