"""NVRTC through ctypes, from the packages ``nvidia-cuda-*``: compile a CUDA kernel for an architecture, anywhere."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

PACKAGES = "nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-cccl-cu12"


@cache
def roots() -> tuple[Path, ...]:
    """Return the folders that hold NVIDIA's packages, of which each wheel has a part."""
    found = importlib.util.find_spec("nvidia")
    return () if found is None else tuple(Path(p) for p in found.submodule_search_locations or ())


@cache
def library() -> ctypes.CDLL | None:
    """Load the newest NVRTC there is."""
    paths = sorted(path for root in roots() for path in root.glob("*/lib/libnvrtc.so.*[0-9]"))
    return ctypes.CDLL(str(paths[-1])) if paths else None


@cache
def includes() -> list[Path]:
    """Return the folders with the headers of CUDA and of its C++ library."""
    headers = ("cuda_fp16.h", "nv/target")
    return sorted({p.parents[h.count("/")] for root in roots() for h in headers for p in root.rglob(f"include/**/{h}")})


def why_not() -> str | None:
    """Return None if kernels can be compiled here, else the reason."""
    if library() is None:
        return f"NVRTC is not installed: pip install {PACKAGES}"
    return None if len(includes()) > 0 else f"CUDA's headers are not installed: pip install {PACKAGES}"


def compile(source: str, name: str, expressions: Sequence[str], target: str, options: Sequence[str] = ()) -> str:
    """Compile kernels for ``compute_XX`` (to PTX) or ``sm_XX`` (to a binary); return what the compiler said.

    Raises
    ------
    RuntimeError
        If it refused; the message is its own.
    """
    lib = library()
    assert lib is not None
    program = ctypes.c_void_p()
    flags = [*options, f"--gpu-architecture={target}", *(f"-I{path}" for path in includes())]
    if target.startswith("sm_"):
        flags.append("--ptxas-options=-v")
    _check(lib, lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None), "")
    try:
        for expression in expressions:
            _check(lib, lib.nvrtcAddNameExpression(program, expression.encode()), expression)
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        status = lib.nvrtcCompileProgram(program, len(flags), array)
        log = _log(lib, program)
        _check(lib, status, log)
        for expression in expressions:
            lowered = ctypes.c_char_p()
            _check(lib, lib.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(lowered)), expression)
        return log
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
