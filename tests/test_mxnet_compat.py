"""MXNet on today's Python: NumPy stays unchanged in every case, and errors name what is missing."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REASONS

ROOT = Path(__file__).parents[1]
runs = pytest.mark.skipif(REASONS["mxnet"] is not None, reason=f"mxnet: {REASONS['mxnet']}")

# Modules are left out, because Python makes each imported submodule of NumPy an attribute of it.
WATCH = """
import sys, types, numpy

def looks():
    modules = (numpy, numpy.lib, numpy.linalg)
    return [{k: v for k, v in vars(m).items() if not isinstance(v, types.ModuleType)} for m in modules]

def unchanged():
    now = looks()
    return all(a.keys() == b.keys() and all(a[k] is b[k] for k in a) for a, b in zip(before, now))

def left():  # setuptools has a finder, too, which comes and goes
    return [finder for finder in sys.meta_path if type(finder).__module__ == "polybn_mxnet.compat"]

before = looks()
"""


def run(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, with the given folders first on the path and warnings as errors."""
    path = [*map(str, folders), str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def printed(code: str, *folders: Path) -> str:
    done = run(code, *folders)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def package(folder: Path, name: str, code: str) -> Path:
    """Write a package of one file."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    return folder


def distribution(folder: Path, name: str) -> None:
    """Write the metadata of an installed package."""
    about = folder / f"{name.replace('-', '_')}-1.9.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.9.1\n")


@runs
def test_numpy_is_as_it_was() -> None:
    """After the import MXNet works, and NumPy has the same attributes with the same objects."""
    code = """
import polybn_mxnet
from polybn_mxnet.compat import mxnet as mx
assert mx is sys.modules["mxnet"]
print(unchanged(), mx.nd.ones(2).asnumpy().tolist())
"""
    assert printed(WATCH + code) == "True [1.0, 1.0]\n"


@runs
def test_lost_names_are_there_when_mxnet_asks_later() -> None:
    """Functions that ask NumPy for lost names when they run, and modules that are imported late, work."""
    code = """
from polybn_mxnet.compat import mxnet as mx
import mxnet.test_utils, mxnet.contrib.text, mxnet.gluon.contrib.nn, mxnet.onnx
values = mx.np.array([1.0, 2.0])
print((values > 1).dtype == numpy.bool_, mx.nd.array([1, 0], dtype=bool).asnumpy().tolist())
print(mx.np.array([True, False], dtype=bool).asnumpy().tolist(), mx.nd.array(values.asnumpy() > 1).asnumpy().tolist())
print(mx.test_utils.rand_ndarray((2, 3)).shape, mx.np.all(values > 1), mx.test_utils.same(values, values))
print(unchanged())
"""
    expected = "True [True, False]\n[True, False] [0.0, 1.0]\n(2, 3) False True\nTrue\n"
    assert printed(WATCH + code) == expected


@runs
def test_an_mxnet_that_is_there_is_taken() -> None:
    """An MXNet that is already imported stays."""
    code = """
import types
sys.modules["mxnet"] = mine = types.ModuleType("mxnet")
try:
    import polybn_mxnet.compat
except AttributeError:  # the stand-in is too small for the rest of the package
    pass
print(sys.modules["polybn_mxnet.compat"].mxnet is mine, left(), unchanged())
"""
    assert printed(WATCH + code) == "True [] True\n"


def test_an_import_that_fails_in_the_middle(tmp_path: Path) -> None:
    """The error is passed on; NumPy and the import system are unchanged, also after a second try."""
    broken = package(tmp_path, "mxnet", "import numpy\nassert numpy.PZERO == 0\nraise RuntimeError('half way')\n")
    package(tmp_path, "distutils", "")
    code = """
for attempt in range(2):
    try:
        import polybn_mxnet
    except RuntimeError as error:
        print(error, unchanged(), left(), "mxnet" in sys.modules)
"""
    assert printed(WATCH + code, broken) == "half way True [] False\n" * 2


@runs
def test_a_missing_dependency_of_mxnet_names_itself() -> None:
    code = """
sys.modules["requests"] = None
try:
    import polybn_mxnet
except ModuleNotFoundError as error:
    print(error.name, unchanged(), left())
"""
    assert printed(WATCH + code) == "requests True []\n"


def test_no_mxnet(tmp_path: Path) -> None:
    """The error says both ways of installing it."""
    package(tmp_path, "distutils", "")
    done = run("import sys; sys.modules['mxnet'] = None; import polybn_mxnet", tmp_path)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message == (
        'ImportError: polybn_mxnet: mxnet 1.9.1 must be installed (`pip install "polybn[mxnet]"` with NumPy 1.26; '
        "beside NumPy 2 `pip install --no-deps mxnet==1.9.1` and `pip install requests graphviz`)"
    )


WITHOUT_DISTUTILS = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "distutils" else find(name, package)
"""
"""What Python 3.12 and newer are without setuptools."""


def test_no_mxnet_and_no_distutils(tmp_path: Path) -> None:
    """MXNet is what is named: who installs it by its extra gets setuptools, too."""
    done = run(WITHOUT_DISTUTILS + "sys.modules['mxnet'] = None\nimport polybn_mxnet", tmp_path)
    assert done.returncode == 1
    assert "setuptools" not in done.stderr.splitlines()[-1]
    assert "mxnet" in done.stderr.splitlines()[-1]


def test_no_distutils(tmp_path: Path) -> None:
    done = run(WITHOUT_DISTUTILS + "import polybn_mxnet", package(tmp_path, "mxnet", ""))
    assert done.returncode == 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert done.stderr.splitlines()[-1] == (
        "ImportError: polybn_mxnet: setuptools must be installed (`pip install setuptools`): MXNet needs distutils, "
        f"which Python {version} no longer has"
    )


def test_no_cuda(tmp_path: Path) -> None:
    """For MXNet's CUDA build, the error names each missing library with its package."""
    failing = "raise OSError('libcudart.so.11.0: cannot open shared object file')"
    package(tmp_path, "distutils", "")
    distribution(package(tmp_path, "mxnet", failing), "mxnet-cu112")
    done = run("import polybn_mxnet", tmp_path)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("ImportError: polybn_mxnet: mxnet-cu112 must find the libraries of CUDA 11; missing are ")
    assert "libcudart.so.11.0 (`pip install nvidia-cuda-runtime-cu11`), " in message
    assert "libcudnn.so.8 (`pip install nvidia-cudnn-cu11`), " in message
    assert message.endswith("(libcudart.so.11.0: cannot open shared object file)")


def test_another_error_of_the_operating_system_is_not_about_cuda(tmp_path: Path) -> None:
    """MXNet's CPU build needs no CUDA, so its errors do not mention CUDA."""
    package(tmp_path, "distutils", "")
    package(tmp_path, "mxnet", "raise OSError('libgfortran.so.4: cannot open shared object file')")
    done = run("import polybn_mxnet", tmp_path)
    assert done.stderr.splitlines()[-1] == "OSError: libgfortran.so.4: cannot open shared object file"


@runs
def test_cuda_libraries_of_pip_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries from pip are loaded from their places, visible to MXNet, in the order of their dependencies."""
    from polybn_mxnet import compat

    for folder in ("cuda_runtime", "cublas"):
        (tmp_path / folder / "lib").mkdir(parents=True)
        (tmp_path / folder / "lib" / compat.CUDA_LIBRARIES[folder]).touch()
    loaded: list[tuple[str, int]] = []

    def load(path: str, mode: int) -> None:
        if not Path(path).is_absolute() and path != "libcudnn.so.8":
            raise OSError(f"{path}: cannot open shared object file")
        loaded.append((path, mode))

    fake: Any = type("fake", (), {"CDLL": staticmethod(load), "RTLD_GLOBAL": ctypes.RTLD_GLOBAL})
    monkeypatch.setattr(compat, "ctypes", fake)
    missing = list(compat.load_cuda_libraries([tmp_path / "none", tmp_path]))
    assert loaded == [
        (str(tmp_path / "cuda_runtime" / "lib" / "libcudart.so.11.0"), ctypes.RTLD_GLOBAL),
        (str(tmp_path / "cublas" / "lib" / "libcublas.so.11"), ctypes.RTLD_GLOBAL),
        ("libcudnn.so.8", ctypes.RTLD_GLOBAL),
    ]
    assert [line.partition(" ")[0] for line in missing] == [
        "libnvrtc.so.11.2", "libcurand.so.10", "libcufft.so.10", "libcusolver.so.11", "libnccl.so.2",
    ]  # fmt: skip
    assert missing[0] == "libnvrtc.so.11.2 (`pip install nvidia-cuda-nvrtc-cu11`)"


@runs
@pytest.mark.parametrize("hybridize", [False, True])
def test_a_program_ends_while_mxnet_computes(hybridize: bool) -> None:
    """Python waits for MXNet's thread, which needs Python; otherwise the process would never end."""
    code = f"""
from polybn_mxnet.compat import mxnet as mx
from polybn_mxnet.gluon import BatchNorm
norm = BatchNorm(in_channels=17)
norm.initialize()
norm.hybridize({hybridize}, static_alloc={hybridize})
x = mx.nd.ones((67, 17, 7, 7))
x.attach_grad()
for _ in range(41):
    with mx.autograd.record():
        y = norm(x) * norm(x)
    y.backward()
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


@runs
def test_large_arrays_are_served_while_a_program_ends() -> None:
    """Large arrays are served even after Python has ended its pools of threads."""
    code = """
import atexit
import polybn
from polybn_mxnet.compat import mxnet as mx
x = mx.nd.arange(2**21).reshape((2**17, 16))
y = polybn.batch_norm(x, training=True, eps=0.0).y
atexit.register(lambda: print((polybn.batch_norm(x, training=True, eps=0.0).y == y).asnumpy().all()))
"""
    assert printed(code).strip() == "True"


@runs
def test_a_program_that_recorded_a_call_beside_jax_ends_in_silence() -> None:
    """JAX keeps MXNet's modules alive while Python clears their names, and MXNet's callbacks run after that."""
    pytest.importorskip("jax", exc_type=ImportError)
    code = """
import polybn
from polybn_mxnet.compat import mxnet as mx
x = mx.nd.arange(15).reshape((5, 3))
x.attach_grad()
with mx.autograd.record():
    y = polybn.batch_norm(x, training=True).y
import jax
y.backward()
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")
