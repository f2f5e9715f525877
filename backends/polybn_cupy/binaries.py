"""Kernels as machine code, compiled by CuPy's compiler and cached on disk beside CuPy's own kernels."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import cupy

from polybn_cupy.sources import OPTIONS, source


def binary(file: str, expression: str) -> tuple[bytes, str]:
    """Return a kernel's machine code for the current device, and its name in it.

    A kernel takes seconds to compile, so later processes use the code that an earlier one cached. The cache obeys
    CuPy's variables: ``CUPY_CACHE_DIR`` is the folder, and with ``CUPY_CACHE_IN_MEMORY=1`` nothing is written. CuPy's
    ``RawModule`` does the same, but it adds -ftz=true after all options, and subnormal numbers would be read as zeros
    (https://github.com/cupy/cupy/issues/9576).
    """
    path = None if os.environ.get("CUPY_CACHE_IN_MEMORY") == "1" else _path(file, expression)
    found = None if path is None else _read(path)
    if found is None:
        code, names = cupy.cuda.compiler.compile_using_nvrtc(
            source(file), OPTIONS, name_expressions=(expression,), cache_in_memory=True
        )
        found = code, names[expression]
        if path is not None:
            _write(path, *found)
    return found


def _path(file: str, expression: str) -> Path:
    """Return the path of a binary, with a digest of all that it depends on: source, compiler, options and device."""
    capability, compiler = cupy.cuda.Device().compute_capability, cupy.cuda.nvrtc.getVersion()
    key = repr((source(file), OPTIONS, expression, capability, compiler, os.environ.get("CUPY_COMPILE_WITH_PTX")))
    folder = os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache"
    return Path(folder).expanduser() / f"polybn-{hashlib.sha256(key.encode()).hexdigest()}.bin"


def _read(path: Path) -> tuple[bytes, str] | None:
    """Read name and code, or return None if the file is missing or damaged."""
    try:
        digest, name, code = path.read_bytes().split(b"\n", 2)
    except (OSError, ValueError):
        return None
    return (code, name.decode()) if digest == _digest(name, code) else None


def _write(path: Path, code: bytes, name: str) -> None:
    """Write name and code in one step, because other processes may be reading; ignore a folder that is not writable."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
            part.write(b"\n".join((_digest(name.encode(), code), name.encode(), code)))
        Path(part.name).replace(path)


def _digest(name: bytes, code: bytes) -> bytes:
    return hashlib.sha256(name + b"\n" + code).hexdigest().encode()
