"""The host kernels: batch norm in C on host memory, for every library whose arrays lie there.

:data:`lib` is the compiled library, or None where it was not built; :data:`missing` then says why.
"""

from __future__ import annotations

from typing import Any

lib: Any = None
ffi: Any = None
missing: str | None = None
try:
    from polybn_host._kernels import ffi, lib
except ImportError as error:
    missing = f"the compiled kernels cannot be imported: {error}"
