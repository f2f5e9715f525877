"""Imports: polybn imports no array library, a backend only its own library and polybn, and no other backend."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VALUES: dict[str, str] = PROJECT["entry-points"]["polybn.backends"]
ENTRIES = {name: value.partition(":")[0] for name, value in VALUES.items()}
CONTRACT = {"polybn.spec", "polybn.arguments", "polybn.lenet.networks", "polybn.lenet.program"}
SHARED = {"numpy", "ml_dtypes", "cffi", "polybn_host", "polybn_numpy", "polybn_array_api"}
"""What every backend may import beside its own library: NumPy, and what serves host memory and any library."""
BY_NAME = {"polybn_array_api"}
"""Backends whose library is known by an entry point's name."""
IDIOMS = ("nnx", "gluon", "public", "nn")
"""Modules of a backend for its library's own people. They stand above the public functions, and call them."""


def libraries_of(package: str) -> set[str]:
    """Return the packages that a backend may import: those of its arrays, and those that its extras install."""
    names = {name for name, module in ENTRIES.items() if module == package}
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    wanted = [
        requirement
        for extra, requirements in extras.items()
        if extra.partition("-")[0] in names or any(f"polybn[{name}]" in requirements for name in names)
        for requirement in requirements
    ]
    installed = {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for requirement in wanted} - {"polybn"}
    return names | installed | {f"{name}x" for name in names}


PACKAGES = sorted(set(ENTRIES.values()))
LIBRARIES = {package: libraries_of(package) for package in PACKAGES}
FORBIDDEN = {"numpy", "torch", "rich", "typer", "pooch", "matplotlib", "hypothesis"}.union(*LIBRARIES.values())

# A finder in the first place sees every import, also of absent modules and inside try.
WATCH = """
import json, sys

asked = set()

class Watch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        asked.add(name.partition(".")[0])

before = set(sys.modules)
sys.meta_path.insert(0, Watch)
{code}
print(json.dumps(sorted(asked | {{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""


def imported_by(code: str) -> set[str]:
    """Run code in a new process; return the root modules that it imported or tried to import."""
    run = subprocess.run([sys.executable, "-c", WATCH.format(code=code)], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import polybn",
        "import polybn, polybn.spec, polybn.arguments, polybn.dispatch, polybn.functional, polybn.layer",
        "import polybn; polybn.dispatch._names(); dir(polybn); polybn.BatchNorm; polybn.Moments",
        "import polybn\ntry: polybn.backend('tensorflow')\nexcept polybn.BackendError: pass",
        "import polybn\ntry: polybn.moments([1.0])\nexcept polybn.BackendError: pass",
    ],
)
def test_polybn_imports_no_array_library_and_nothing_for_the_eye(code: str) -> None:
    roots = imported_by(code)
    assert "polybn" in roots
    assert not roots & {*FORBIDDEN, *LIBRARIES, "polybn_host"}


@pytest.mark.parametrize(
    ("code", "root"),
    [
        ("import polybn, numpy", "numpy"),
        ("import polybn; polybn.backend('numpy')", "polybn_numpy"),
        ("import polybn; polybn.networks", "numpy"),
        ("import polybn; polybn.conformance.check", "hypothesis"),
        ("import polybn\ntry: import no_such_library\nexcept Exception: pass", "no_such_library"),
        (
            "import importlib, contextlib\nwith contextlib.suppress(ImportError): importlib.import_module('jax.numpy')",
            "jax",
        ),
    ],
)
def test_the_test_above_can_fail(code: str, root: str) -> None:
    assert root in imported_by(code)


def test_an_array_brings_in_its_own_backend_only() -> None:
    roots = imported_by("import numpy, polybn; polybn.moments(numpy.ones((2, 3)))")
    assert roots & set(LIBRARIES) == {"polybn_numpy"}
    assert not roots & (FORBIDDEN - {"numpy"})


# Read from the source.


def imports(source: str, package: str) -> Iterator[str]:
    """Yield the full name of each import anywhere in a module of a package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module}" if node.level else str(node.module)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield f"({ast.unparse(node)})"


def foreign(source: str, package: str, *, above: bool = False) -> list[str]:
    """List what a module of a backend imports and may not; one ``above`` the public functions may import them."""
    bound = package in BY_NAME
    known = {*SHARED, *libraries_of(package), package, *({"polybn"} if above else ())}

    def allowed(name: str) -> bool:
        root = name.partition(".")[0]
        if bound and name.startswith("(importlib.import_module("):
            return True
        if root == "polybn" and any(name == one or name.startswith(f"{one}.") for one in CONTRACT):
            return True
        return root in known or root in sys.stdlib_module_names

    return [name for name in imports(source, package) if not allowed(name)]


BACKEND_FILES = sorted((ROOT / "backends").glob("*/**/*.py"))
NEUTRAL_FILES = sorted((ROOT / "polybn").glob("**/*.py"))
ADAPTERS = ROOT / "polybn" / "conformance" / "adapters"  # may import other libraries, because that is their purpose
PEERS = ROOT / "polybn" / "bench" / "peers.py"


@pytest.mark.parametrize("path", BACKEND_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_backend_imports_its_library_and_the_contract(path: Path) -> None:
    package = path.relative_to(ROOT / "backends").parts[0]
    assert foreign(path.read_text(), package, above=path.stem in IDIOMS) == []


@pytest.mark.parametrize(
    "source",
    [
        "import polybn",
        "import polybn_jax",
        "from polybn_cupy import kernels",
        "import cupy as np",
        "import scipy.linalg",
        "from polybn import batch_norm",
        "from polybn import dispatch",
        "from polybn.functional import moments",
        "from polybn.specification import x",
        "def late():\n    import torch",
        "import importlib\nimportlib.import_module('polybn_jax')",
        "__import__('jax')",
        "import numpy, jax.numpy",
    ],
)
def test_a_foreign_import_is_found(source: str) -> None:
    assert foreign(source, "polybn_numpy") != []


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np, math",
        "from collections.abc import Callable",
        "from polybn import spec",
        "from polybn.spec import Moments",
        "from polybn.arguments import check_eps",
        "import polybn.lenet.networks",
        "from polybn_numpy import blocks",
        "from . import kernels",
        "from .kernels import sums",
        "def late():\n    import polybn_host",
    ],
)
def test_a_friend_is_let_in(source: str) -> None:
    assert foreign(source, "polybn_numpy") == []


@pytest.mark.parametrize(
    "path",
    [path for path in NEUTRAL_FILES if ADAPTERS not in path.parents and path != PEERS],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_polybn_names_no_backend_and_no_array_library_but_numpy(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imports(path.read_text(), "polybn")}
    assert not roots & ({*LIBRARIES}.union(*LIBRARIES.values()) - {"numpy", "ml_dtypes"})


# The plan: no cycles, and no import from a higher floor.

ROOMS = (
    {
        "polybn.__main__",
        "polybn.cli",
        "polybn.pytest_plugin",
        "polybn.commands",
        "polybn.bench",
        "polybn.lenet.commands",
    },
    {"polybn.inspection", "polybn.statistics"},
    {"polybn.conformance", "polybn.lenet"},
    {"polybn.model_files"},
    {"polybn.layer"},
    {"polybn.layer_state", "polybn.layer_dialect"},
    {"polybn.dialects"},
    {"polybn.functional"},
    {"polybn.admission", "polybn.pullback"},
    {"polybn.dispatch"},
    {"polybn.arguments", "polybn.returned"},
    {"polybn.options"},
    {f"polybn.{name}" for name in ("spec", "version", "atomic", "console", "extras", "interrupts", "near")},
)
"""The floors from top to bottom: a module may import from lower floors, and from its own room on its own floor."""


def modules(root: Path) -> dict[str, Path]:
    named = {".".join(path.relative_to(root).with_suffix("").parts): path for path in root.glob("polybn*/**/*.py")}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


MODULES = {**modules(ROOT), **modules(ROOT / "backends")}


def arrows(name: str, path: Path) -> set[str]:
    """Return the modules of this project that a module imports, including imports for types."""
    found = set()
    for whole in imports(path.read_text(), name):
        target = whole
        while target and target not in MODULES:
            target = target.rpartition(".")[0]
        found.add(target)
    return found - {"", name}


def room_of(name: str) -> tuple[int, str]:
    """Return the floor and the room of a module of polybn, by the longest listed prefix of its name."""
    rooms = [
        (len(room), floor, room)
        for floor, group in enumerate(ROOMS)
        for room in group
        if f"{name}.".startswith(f"{room}.")
    ]
    _, floor, room = max(rooms)
    return floor, room


def test_there_is_no_circle_of_imports() -> None:
    graph = {name: arrows(name, path) for name, path in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())  # a CycleError names the cycle
    assert order.index("polybn.spec") < order.index("polybn.functional") < order.index("polybn")


def test_a_circle_is_found() -> None:
    with pytest.raises(CycleError):
        list(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("polybn.")])
def test_no_arrow_goes_up(name: str) -> None:
    """The package itself may import all rooms, and no room imports it."""
    floor, room = room_of(name)
    one_room = floor in (0, len(ROOMS) - 1)
    up = []
    for target in arrows(name, MODULES[name]):
        if target == "polybn":
            up.append(target)
        elif target.startswith("polybn."):
            there, other = room_of(target)
            if there < floor or (there == floor and other != room and not one_room):
                up.append(target)
    assert up == []


def test_files_were_read() -> None:
    assert ROOT / "backends/polybn_numpy/batch_norm.py" in BACKEND_FILES
    assert ROOT / "polybn/spec.py" in NEUTRAL_FILES


# Names.


def test_nothing_named_backends_can_be_imported(tmp_path: Path) -> None:
    """An installation offers polybn and the packages of backends, and no package named backends."""
    code = "import sys, importlib.util; print([importlib.util.find_spec(name) is not None for name in sys.argv[1:]])"
    command = [sys.executable, "-I", "-c", code, "polybn", "polybn_numpy", "backends"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[True, True, False]"
    assert not (ROOT / "backends" / "__init__.py").exists()


def test_no_module_hides_numpy() -> None:
    """A module named numpy would replace NumPy for scripts in its folder, which is first on their path."""
    assert [path for path in (*BACKEND_FILES, *NEUTRAL_FILES) if path.stem == "numpy"] == []
