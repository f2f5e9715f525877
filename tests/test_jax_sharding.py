"""Statistics synchronised over a mesh axis: eight devices give what one gives, uneven and empty shards included."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.xla import ROOT, compiles_quickly, environment

pytest.importorskip("jax", reason="JAX is not installed")


@pytest.mark.clause("S12", "S13", "S15")
def test_eight_devices_are_one() -> None:
    """Forward, gradients by ``jax.grad`` and by the pullback, and moments, within bounds that know no kappa."""
    apart = environment(8, cheap=compiles_quickly()) | {"JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-m", "tests.support.jax_sharding_worker"]
    done = subprocess.run(command, cwd=ROOT, env=apart, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")
