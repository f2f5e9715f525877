"""Kernels compiled by g++ in place of NVRTC, and launched through ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import cuda
from ._array import check_guards, ndarray

INCLUDE = Path(__file__).parents[1] / "include"
BUILD = Path(__file__).parents[3] / "build" / "emulated"
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fno-gnu-unique", "-fvisibility=hidden", "-w")

LAUNCH = """
extern "C" __attribute__((visibility("default"))) void emulated_launch(
    unsigned grid, unsigned threads, unsigned long long shared, int together, void** arguments) {{
    emulated::launch({expression}, grid, threads, shared, together, arguments);
}}
"""


ARITHMETIC = {"--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"}


def compile_using_nvrtc(
    source: str,
    options: tuple[str, ...] = (),
    arch: None = None,
    filename: str = "kern.cu",
    name_expressions: tuple[str, ...] = (),
    log_stream: None = None,
    cache_in_memory: bool = False,
) -> tuple[bytes, dict[str, str]]:
    """Compile one kernel; return the path of the binary in place of a binary, and its name without mangling."""
    if not ARITHMETIC.issubset(options):
        raise ValueError(f"{options} lack {ARITHMETIC.difference(options)}: that is not what g++ compiles")
    (name,) = name_expressions
    return str(compiled(source, name)).encode(), {name: name}


class Module:
    """A binary, loaded."""

    def load(self, cubin: bytes) -> None:
        """Load the binary at the path that the compiler returned."""
        self._path = Path(cubin.decode())

    def get_function(self, name: str) -> Function:
        """Return a kernel."""
        return Function(self._path, name)


class Function:
    """A kernel that can be launched, cooperatively or not."""

    def __init__(self, path: Path, name: str) -> None:
        # PyDLL keeps the interpreter lock: an emulated device runs one kernel at a time.
        self._launch = ctypes.PyDLL(str(path)).emulated_launch
        self._launch.restype = None
        self.name, self.ptr = name, id(self)
        cuda.SHARED_LIMITS[self.ptr] = 48 << 10

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared_mem: int = 0,
        stream: Any = None,
        enable_cooperative_groups: bool = False,
    ) -> None:
        """Launch on the current stream, or remember the launch if the stream is being captured."""
        limit = cuda.SHARED_LIMITS[self.ptr]
        if shared_mem > limit:
            raise ValueError(f"{self.name}: {shared_mem} bytes of shared memory, the limit is {limit}")
        if enable_cooperative_groups:
            room = cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(self.ptr, block[0], shared_mem)
            if grid[0] > room * min([cuda.Device().attributes["MultiProcessorCount"], *cuda.GRANTED]):
                raise cuda.driver.CUDADriverError(720)  # blocks that wait for each other must be resident together
        held = [_by_value(argument) for argument in args]

        def go() -> None:
            pointers = (ctypes.c_void_p * len(held))(*(value.ctypes.data for value in held))
            self._launch(
                ctypes.c_uint(grid[0]), ctypes.c_uint(block[0]), ctypes.c_ulonglong(shared_mem),
                ctypes.c_int(enable_cooperative_groups), pointers,
            )  # fmt: skip
            cuda.LAUNCHES.append((self.name, grid[0], enable_cooperative_groups))
            check_guards()

        (stream or cuda.get_current_stream()).do(go)


cuda.compiler = SimpleNamespace(compile_using_nvrtc=compile_using_nvrtc)
cuda.Module = Module


def _by_value(argument: Any) -> Any:
    if isinstance(argument, ndarray):
        return np.array(argument.data.ptr, np.uint64)
    if isinstance(argument, np.ndarray) and argument.size == 1:
        return argument.copy()
    raise TypeError(f"cannot pass a {type(argument)} to a kernel")


@functools.cache
def compiled(code: str, name: str) -> Path:
    """Compile one kernel, unless it is in the cache; return its path."""
    text = '#include "emulator.h"\n#line 1 "kernel"\n' + code + LAUNCH.format(expression=name)
    target = BUILD / f"{key(text)}.so"
    if not target.exists():
        before = ("-I", str(precompiled()), "-I", str(INCLUDE), "-x", "c++", "-", "-shared")
        build(*before, text=text, target=target, what=name)
    return target


@functools.cache
def precompiled() -> Path:
    """Compile the header of all kernels once, which takes half of the time of a kernel; return the folder it is in."""
    folder = BUILD / key("")
    target = folder / "emulator.h.gch"
    if not target.exists():
        build("-x", "c++-header", str(INCLUDE / "emulator.h"), text="", target=target, what="emulator.h")
    return folder


def key(text: str) -> str:
    """Return a name for what is compiled from a text, the headers and the flags."""
    headers = "".join(path.read_text() for path in sorted(INCLUDE.iterdir()))
    return hashlib.sha256((text + headers + str(FLAGS)).encode()).hexdigest()[:24]


def build(*arguments: str, text: str, target: Path, what: str) -> None:
    """Compile; other processes see the result only when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}")
    run = subprocess.run(
        ["g++", *FLAGS, *arguments, "-o", str(part)], input=text, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuntimeError(f"g++ refused {what}:\n{run.stderr[:4000]}")
    part.replace(target)
