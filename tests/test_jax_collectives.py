"""What crosses devices: arrays of one value per channel, whoever partitions the program.

Activations are a thousand times as large. Programs are compiled for 4 and 8 devices and read, not run:
``test_jax_sharding`` runs them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.xla import ROOT, environment

pytest.importorskip("jax", reason="JAX is not installed")

CHANNELS = 24


def crossing(forms: str, devices: int) -> list[Any]:
    """Ask a worker; what crosses devices is decided before XLA optimizes, and nothing runs."""
    command, apart = (
        [sys.executable, "-m", "tests.support.jax_collectives_worker", forms],
        environment(devices, cheap=True),
    )
    done = subprocess.run(command, cwd=ROOT, env=apart, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.clause("S2", "S13")
@pytest.mark.parametrize(("forms", "devices"), [("automatic", 8), ("explicit", 4), ("mapped", 4)])
def test_only_vectors_cross_devices(forms: str, devices: int) -> None:
    """Forward and gradient, to second order once; batch, channels or both cut; groups that no shard holds whole."""
    programs = crossing(forms, devices)
    assert len(programs) == 13
    for form, layout, sharding, _, order, found in programs:
        assert all(kind == "all-reduce" and size <= CHANNELS for kind, size in found), (form, layout, sharding, found)
        # As many meetings as clauses S2 and S13 have sums that wait for each other, in one message or two.
        assert len(found) <= 8 * order, (form, layout, sharding, found)
        assert bool(found) == (form != "mapped" or "data" in sharding)


def test_the_test_above_can_fail() -> None:
    """Of the plain formula, whose sum reads images in pairs that lie on two devices, whole images cross."""
    (found,) = crossing("pairs", 4)
    assert max(size for _, size in found) > CHANNELS
