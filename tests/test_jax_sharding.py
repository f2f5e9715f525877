"""Several devices give what one gives: statistics synchronised over a mesh axis, and arrays that lie on a mesh."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.xla import ROOT, compiles_quickly, environment

pytest.importorskip("jax", reason="JAX is not installed")


def ends_equal(worker: str, devices: int, **more: str) -> None:
    apart = environment(devices, cheap=compiles_quickly()) | more
    command = [sys.executable, "-m", f"tests.support.{worker}"]
    done = subprocess.run(command, cwd=ROOT, env=apart, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")


@pytest.mark.clause("S12", "S13", "S15")
def test_eight_devices_are_one() -> None:
    """Uneven and empty shards included; by ``jax.grad`` and the pullback, within bounds that know no kappa."""
    ends_equal("jax_sharding_worker", 8, JAX_ENABLE_X64="1")


@pytest.mark.clause("S12", "S13", "S15")
def test_explicit_axes_give_what_one_device_gives() -> None:
    """On a default mesh of JAX 0.10, whose axes are Explicit: each call and its derivatives, however x is divided."""
    ends_equal("jax_explicit_worker", 4)
