"""The source text of the kernels, and a list of all that the backend uses; without CuPy, so a test can compile them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

# Without fused multiply-add, a GPU gives the same bits as the emulation in the tests. Subnormal numbers are kept. The
# last option makes lambdas in kernels device code; CuPy may pass it, too, and NVRTC accepts it twice.
OPTIONS = (
    "--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true",
    "--device-as-default-execution-space",
)  # fmt: skip
STORED = {"float16": "Half", "bfloat16": "Bfloat", "float32": "float", "float64": "double"}
VECTORS = {"float16": 8, "bfloat16": 8, "float32": 4, "float64": 2}
"""The number of values in 16 bytes."""
COUNTS = {
    ("i", 1): "signed char", ("i", 2): "short", ("i", 4): "int", ("i", 8): "long long",
    ("u", 1): "unsigned char", ("u", 2): "unsigned short", ("u", 4): "unsigned", ("u", 8): "unsigned long long",
}  # fmt: skip
"""C++ types of integers by kind and width, because NumPy has several names for one width."""

NETWORK = ("pool", "unpool", "judge", "conclude", "deliver", "descend")
KERNELS = (1, 3, 5)
"""The sides of the kernels of convolutions for which tests compile; users have any."""

_FOLDER = Path(__file__).parent / "kernels"
_INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)


@functools.cache
def source(name: str) -> str:
    """Read a kernel file and put the text of its headers in place of their ``#include`` lines.

    ``binaries.py`` caches binaries by this text, so a change of a header must change it.
    """
    seen = set[str]()

    def read(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        text = (_FOLDER / file).read_text(encoding="utf-8")
        return _INCLUDE.sub(lambda match: read(match[1]), text.replace("#pragma once\n", ""))

    return read(name)


def instances() -> Iterator[tuple[str, str]]:
    """Yield the file and the C++ name of every kernel that the backend may use."""
    for kernel in ("forward", "backward", "second", "inference"):
        for dtype, stored in STORED.items():
            for walk, most in (("ROWS", VECTORS[dtype]), ("CHANNELS", min(VECTORS[dtype], 4)), ("ANY", 1)):
                for length in sorted({most, 1}):
                    yield f"{kernel}.cu", f"{kernel}<{stored}, {walk}, {length}>"
    for real in ("float", "double"):
        yield "vectors.cu", f"fold<{real}>"
        for count in COUNTS.values():
            yield "vectors.cu", f"merge<{count}, {real}>"
    for kernel in NETWORK:
        yield "network.cu", kernel
    for side in KERNELS:
        yield from (("convolution.cu", f"{kernel}<{side}>") for kernel in ("convolve", "pull"))
    yield from (("dense.cu", kernel) for kernel in ("multiply", "multiply_back"))
