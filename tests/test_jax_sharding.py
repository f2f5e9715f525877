"""Statistics synchronised over a mesh axis: eight devices give what one gives, uneven and empty shards included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax", reason="JAX is not installed")

ROOT = Path(__file__).parents[1]


@pytest.mark.clause("S12", "S13", "S15")
def test_eight_devices_are_one() -> None:
    """Forward, gradients by ``jax.grad`` and by the pullback, and moments, within bounds that know no kappa."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.support.jax_sharding_worker"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")
