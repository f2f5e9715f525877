"""How the host kernels are compiled: a cffi extension over the stable ABI, built by ``pip install``.

Where there is no compiler, the installation goes on without them. ``python setup.py build_ext --inplace`` builds
them in a source tree.
"""

from __future__ import annotations

from pathlib import Path

import cffi

ROOT = Path(__file__).parent
FOLDERS = ("kernels", "network")
SOURCES = ("kernels/pool.c", "network/network.c", "network/avx512.c", "network/avx2.c", "network/plain.c")

ffi = cffi.FFI()
for folder in FOLDERS:
    ffi.cdef((ROOT / folder / "interface.h").read_text())
ffi.set_source(
    "polybn_host._kernels",
    '#include <stdint.h>\n#include "kernels/interface.h"\n#include "network/interface.h"',
    # setuptools wants paths relative to setup.py.
    sources=[f"backends/polybn_host/{source}" for source in SOURCES],
    include_dirs=["backends/polybn_host", *(f"backends/polybn_host/{folder}" for folder in FOLDERS)],
    depends=[
        f"backends/polybn_host/{folder}/{path.name}" for folder in FOLDERS for path in sorted((ROOT / folder).iterdir())
    ],
    # Sums are written in the order in which they are added, and no product is fused into one.
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-fms-extensions"],
    libraries=["pthread"],
    optional=True,
)
