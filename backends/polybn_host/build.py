"""Build the host kernels: a cffi extension for the stable ABI, which ``pip install`` compiles.

Without a compiler, the installation goes on without them. ``python setup.py build_ext --inplace`` builds them in a
source tree.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import cffi

ROOT = Path(__file__).parent
digest = runpy.run_path(str(ROOT / "sources.py"))["digest"]  # the package is not on Python's path here
KERNELS = ("drive", "finish_double", "finish_wide", "instructions", "isa_avx2", "isa_avx512", "isa_baseline", "pool")
NETWORK = ("network", "isa_avx2", "isa_avx512", "isa_baseline")
FOLDERS = {"kernels": KERNELS, "network": NETWORK}
# setuptools needs paths relative to setup.py.
BASE = "backends/polybn_host"

ffi = cffi.FFI()
for folder in FOLDERS:
    ffi.cdef((ROOT / folder / "interface.h").read_text())
ffi.cdef("#define POLYBN_SOURCES ...")
ffi.set_source(
    "polybn_host._kernels",
    f'#include <stdint.h>\n#include "kernels/interface.h"\n#include "network/interface.h"\n'
    f"#define POLYBN_SOURCES {digest()}LL",
    sources=[f"{BASE}/{folder}/{source}.c" for folder, sources in FOLDERS.items() for source in sources],
    include_dirs=[BASE],
    depends=[f"{BASE}/{path.relative_to(ROOT)}" for folder in FOLDERS for path in sorted((ROOT / folder).iterdir())],
    # The order of additions is that of the source text, and multiplications are not fused with additions. Nobody reads
    # errno or the flags of exceptions; without them, the compiler takes several roots and choices at once.
    extra_compile_args=[
        *("-std=gnu11", "-O3", "-g0", "-fvisibility=hidden", "-fms-extensions"),
        *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    ],
    libraries=["m", "pthread"],
    optional=True,
)
