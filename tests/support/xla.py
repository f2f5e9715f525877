"""XLA's flags: tests compile thousands of programs that each run once or twice, so they ask for quick compiling.

JAX fixes the number of devices when it starts, so tests of several devices run in processes of their own, and each
compiles anew.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]


FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
TRIED = {"0.10": f"{FLAGS} --xla_cpu_use_fusion_emitters=false", "0.12": FLAGS}
"""Flags that leave the division of work among devices as it is, and then optimize little: a third of the time."""


def _cheap() -> str:
    """Return the flags that were tried with the installed version: one that it does not know would end the process."""
    try:
        version = metadata.version("jaxlib")
    except metadata.PackageNotFoundError:
        return ""
    return TRIED.get(".".join(version.split(".")[:2]), "")


CHEAP = _cheap()
"""The flags of ``make test``; without flags, programs are right and compile slowly."""
ELSEWHERE = "it takes long, or judges what XLA makes with its default flags: make lane-xla"
"""Why a test is skipped where programs are compiled quickly."""


def compiles_quickly() -> bool:
    """Tell whether programs in this process are compiled with the flags of ``make test``."""
    return CHEAP != "" and os.environ.get("XLA_FLAGS") == CHEAP


def environment(devices: int, *, cheap: bool) -> dict[str, str]:
    """Return an environment with so many devices; ``cheap`` is for tests whose subject is not XLA's arithmetic."""
    flags = f"--xla_force_host_platform_device_count={devices}" + (f" {CHEAP}" if cheap else "")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
