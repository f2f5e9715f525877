"""Import the released MXNet 1.9.1 with a current Python and a current NumPy.

MXNet's last release uses names that NumPy has since removed, some during import and some when a function is
called. MXNet's modules therefore get a view of NumPy that has these names, too. NumPy itself, the files of MXNet,
and an MXNet that was imported before are not changed.
"""

from __future__ import annotations

import builtins
import ctypes
import sys
import warnings
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CUDA_BUILD = "mxnet-cu112"
CUDA_LIBRARIES = {
    "cuda_runtime": "libcudart.so.11.0",
    "cuda_nvrtc": "libnvrtc.so.11.2",
    "cublas": "libcublas.so.11",
    "curand": "libcurand.so.10",
    "cufft": "libcufft.so.10",
    "cusolver": "libcusolver.so.11",
    "cudnn": "libcudnn.so.8",
    "nccl": "libnccl.so.2",
}
"""The libraries that MXNet's CUDA build is linked to, by their folders in the package ``nvidia``; each comes after
those that it needs."""


def _gone(*_: object, **__: object) -> None:
    raise NotImplementedError("NumPy has removed this function")


_CORE = SimpleNamespace(numeric=SimpleNamespace())
if hasattr(numpy.lib, "array_utils"):  # NumPy 2, where using numpy.core gives a warning
    _CORE.numeric.normalize_axis_tuple = numpy.lib.array_utils.normalize_axis_tuple

LOST: dict[str, Any] = {
    **{"bool": numpy.bool_, "int": int, "float_": numpy.float64, "PZERO": 0.0, "NZERO": -0.0, "NINF": -numpy.inf},
    **dict.fromkeys(("PINF", "Inf", "Infinity", "infty"), numpy.inf),
    **dict.fromkeys(("NaN", "NAN"), numpy.nan),
    **{"product": numpy.prod, "cumproduct": numpy.cumprod, "alltrue": numpy.all, "sometrue": numpy.any},
    **{"in1d": numpy.isin, "row_stack": numpy.vstack, "round_": numpy.round},
    **{"trapz": getattr(numpy, "trapezoid", _gone), "msort": lambda a: numpy.sort(a, axis=0)},
    **dict.fromkeys(("mirr", "npv", "pmt", "ppmt", "pv", "rate"), _gone),
    "compat": SimpleNamespace(basestring=str),
}
"""Names that MXNet uses and that some versions of NumPy no longer have, with their former values."""


def numpy_as_it_was() -> ModuleType:
    """Return a module with everything that NumPy has, and the removed names."""
    lost = {name: value for name, value in LOST.items() if name not in vars(numpy)}
    if hasattr(numpy.lib, "array_utils"):
        lost["core"] = _CORE
    return _view(numpy, lost)


def scipy_as_it_was(scipy: ModuleType) -> ModuleType:
    """Return a module like ``scipy`` whose ``sparse.csr`` does not warn."""
    matrices = SimpleNamespace(csr_matrix=scipy.sparse.csr_matrix)
    return _view(scipy, {"sparse": _view(scipy.sparse, {"csr": matrices})})


def _view(module: ModuleType, changes: dict[str, Any]) -> ModuleType:
    view = ModuleType(module.__name__, module.__doc__)
    vars(view).update({**vars(module), **changes})
    vars(view)["__getattr__"] = lambda name: getattr(module, name)  # submodules that are imported later
    return view


class OldImports:
    """An import finder that gives all modules of MXNet the former NumPy and SciPy."""

    def __init__(self) -> None:
        old_numpy, import_new = numpy_as_it_was(), builtins.__import__

        def import_(name: str, *arguments: Any, **options: Any) -> ModuleType:
            module = import_new(name, *arguments, **options)
            if module is numpy:
                return old_numpy
            return scipy_as_it_was(module) if name == "scipy.sparse" and module.__name__ == "scipy" else module

        self._builtins = {**vars(builtins), "__import__": import_}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of MXNet as Python does, and replace its loader."""
        if name.partition(".")[0] != "mxnet":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(name, spec.loader.path, self._builtins)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, old_builtins: dict[str, Any]) -> None:
        super().__init__(name, path)
        self._builtins = old_builtins

    def exec_module(self, module: ModuleType) -> None:
        # An import statement looks up __import__ in the __builtins__ of its module:
        # https://docs.python.org/3/reference/executionmodel.html#builtins-and-restricted-execution
        vars(module)["__builtins__"] = self._builtins
        super().exec_module(module)


def import_mxnet() -> ModuleType:
    """Import MXNet, or return the imported one; an ImportError names what is missing and how to install it."""
    there = sys.modules.get("mxnet")
    if there is not None:
        return there
    if find_spec("mxnet") is not None:  # else MXNet is what must be installed, with an extra that brings the rest
        _require_distutils()
    cuda = _has_cuda_build()
    missing = list(load_cuda_libraries(_nvidia_folders())) if cuda else []
    finder = OldImports()
    sys.meta_path.insert(0, finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about MXNet's own code, such as invalid escapes in strings
            import mxnet  # noqa: F401
        return sys.modules["mxnet"]
    except ModuleNotFoundError as error:
        sys.meta_path.remove(finder)
        if error.name != "mxnet":
            raise
        raise ImportError(
            'polybn_mxnet: mxnet 1.9.1 must be installed (`pip install "polybn[mxnet]"` with NumPy 1.26; '
            "beside NumPy 2 `pip install --no-deps mxnet==1.9.1` and `pip install requests graphviz`)",
            name="mxnet",
        ) from None  # polybn.backends shows the first cause, and this one says more
    except OSError as error:
        sys.meta_path.remove(finder)
        if not missing:
            raise
        listed = ", ".join(missing)
        raise ImportError(
            f"polybn_mxnet: {CUDA_BUILD} must find the libraries of CUDA 11; missing are {listed} ({error})",
            name="mxnet",
        ) from None
    except BaseException:
        sys.meta_path.remove(finder)
        raise


def load_cuda_libraries(folders: Sequence[Path]) -> Iterator[str]:
    """Load the CUDA 11 libraries that pip installed in these folders, so that MXNet finds them.

    Yield the name of each library that is missing there and on the system, and the package that has it.
    """
    for folder, library in CUDA_LIBRARIES.items():
        paths = [path for root in folders if (path := root / folder / "lib" / library).exists()]
        try:
            ctypes.CDLL(str(paths[0]) if paths else library, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            yield f"{library} (`pip install nvidia-{folder.replace('_', '-')}-cu11`)"


def _nvidia_folders() -> list[Path]:
    spec = find_spec("nvidia")
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]


def _has_cuda_build() -> bool:
    try:
        metadata.distribution(CUDA_BUILD)
    except metadata.PackageNotFoundError:
        return False
    return True


def _require_distutils() -> None:
    if find_spec("distutils") is None:
        raise ImportError(
            f"polybn_mxnet: setuptools must be installed (`pip install setuptools`): MXNet needs distutils, which "
            f"Python {sys.version_info.major}.{sys.version_info.minor} no longer has",
            name="distutils",
        )


mxnet: Any = import_mxnet()
