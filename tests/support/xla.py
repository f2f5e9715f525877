"""The environment of processes that use JAX on several devices of one CPU, or as one of several processes.

JAX fixes the number of devices when it starts, so such tests run in processes of their own, and each compiles anew.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHEAP = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""Flags that leave the division of work among devices as it is, and then optimize little, which saves 6 s of 10."""


def environment(devices: int, *, cheap: bool) -> dict[str, str]:
    """Return an environment with so many devices; ``cheap`` is for tests whose subject is not XLA's arithmetic."""
    flags = f"--xla_force_host_platform_device_count={devices}" + (f" {CHEAP}" if cheap else "")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
