"""How the host kernels are compiled: a cffi extension over the stable ABI, built by ``pip install``.

Where there is no compiler, the installation goes on without them. ``python setup.py build_ext --inplace`` builds
them in a source tree.
"""

from __future__ import annotations

from pathlib import Path

import cffi

ROOT = Path(__file__).parent / "kernels"
SOURCES = ("drive", "finish_double", "finish_wide", "instructions", "isa_avx2", "isa_avx512", "isa_baseline", "pool")

ffi = cffi.FFI()
ffi.cdef((ROOT / "interface.h").read_text())
ffi.set_source(
    "polybn_host._kernels",
    '#include <stdint.h>\n#include "interface.h"',
    # setuptools wants paths relative to setup.py.
    sources=[f"backends/polybn_host/kernels/{source}.c" for source in SOURCES],
    include_dirs=["backends/polybn_host/kernels"],
    depends=[f"backends/polybn_host/kernels/{path.name}" for path in sorted(ROOT.iterdir())],
    # Sums are written in the order in which they are added, and no product is fused into one.
    extra_compile_args=["-std=gnu11", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden"],
    libraries=["pthread"],
    optional=True,
)
