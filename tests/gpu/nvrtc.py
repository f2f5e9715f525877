"""NVRTC through ctypes, from the package ``nvidia-cuda-nvrtc-cu12``: compile CUDA kernels anywhere."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

PACKAGE = "nvidia-cuda-nvrtc-cu12"
FOLDER = Path(__file__).parents[2] / "backends" / "polybn_cupy"


@cache
def roots() -> tuple[Path, ...]:
    """Return the folders of NVIDIA's packages, which come in several wheels."""
    found = importlib.util.find_spec("nvidia")
    return () if found is None else tuple(Path(p) for p in found.submodule_search_locations or ())


@cache
def library() -> ctypes.CDLL | None:
    """Load the newest NVRTC that is installed."""
    paths = sorted(path for root in roots() for path in root.glob("*/lib/libnvrtc.so.*[0-9]"))
    return ctypes.CDLL(str(paths[-1])) if paths else None


def why_not() -> str | None:
    """Return why kernels cannot be compiled here, or None if they can."""
    return f"NVRTC is not installed: pip install {PACKAGE}" if library() is None else None


def compile(source: str, name: str, expressions: Sequence[str], target: str, options: Sequence[str] = ()) -> str:
    """Compile kernels for ``compute_XX`` (to PTX) or ``sm_XX`` (to a binary); return what the compiler said.

    Raises
    ------
    RuntimeError
        If the compiler refuses; the message is the compiler's.
    """
    with _compiled(source, name, expressions, target, options) as (lib, program):
        return _log(lib, program)


def to_ptx(source: str, name: str, expressions: Sequence[str], target: str, options: Sequence[str] = ()) -> str:
    """Compile kernels as :func:`compile` does; return the assembly text."""
    with _compiled(source, name, expressions, target, options) as (lib, program):
        size = ctypes.c_size_t()
        _check(lib, lib.nvrtcGetPTXSize(program, ctypes.byref(size)), name)
        text = ctypes.create_string_buffer(size.value)
        _check(lib, lib.nvrtcGetPTX(program, text), name)
        return text.value.decode()


def to_cubin(source: str, name: str, expression: str, target: str, options: Sequence[str] = ()) -> tuple[bytes, str]:
    """Compile one kernel for ``sm_XX``; return the machine code, and what the compiler said."""
    with _compiled(source, name, [expression], target, options) as (lib, program):
        size = ctypes.c_size_t()
        _check(lib, lib.nvrtcGetCUBINSize(program, ctypes.byref(size)), name)
        code = ctypes.create_string_buffer(size.value)
        _check(lib, lib.nvrtcGetCUBIN(program, code), name)
        return code.raw, _log(lib, program)


@cache
def version() -> str:
    """Return the compiler's version."""
    lib, major, minor = library(), ctypes.c_int(), ctypes.c_int()
    assert lib is not None
    lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


@cache
def kernels() -> ModuleType:
    """Import the backend's ``sources.py`` by its path: the package itself imports CuPy."""
    spec = importlib.util.spec_from_file_location("polybn_cupy_sources", FOLDER / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _compiled(
    source: str, name: str, expressions: Sequence[str], target: str, options: Sequence[str]
) -> Iterator[tuple[ctypes.CDLL, ctypes.c_void_p]]:
    lib = library()
    assert lib is not None
    program = ctypes.c_void_p()
    flags = [*options, f"--gpu-architecture={target}"]
    if target.startswith("sm_"):
        flags.append("--ptxas-options=-v")
    _check(lib, lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None), "")
    try:
        for expression in expressions:
            _check(lib, lib.nvrtcAddNameExpression(program, expression.encode()), expression)
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        status = lib.nvrtcCompileProgram(program, len(flags), array)
        _check(lib, status, _log(lib, program) if status else "")
        for expression in expressions:
            lowered = ctypes.c_char_p()
            _check(lib, lib.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(lowered)), expression)
        yield lib, program
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _log(lib: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, text)
    return text.value.decode()


def _check(lib: ctypes.CDLL, status: int, words: str) -> None:
    if status:
        lib.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"{lib.nvrtcGetErrorString(status).decode()}: {words}")
