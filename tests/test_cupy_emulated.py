"""The CUDA kernels, emulated: the tests of the contract, on the same sources that a GPU runs.

g++ compiles the kernels with tests/cuda_emulator, and a stand-in for CuPy's few names drives the whole Python side. It
tests arithmetic, control flow, indices and barriers, but not the compiler, memory model and speed of a GPU.
"""

from __future__ import annotations

import pytest

from tests.support import emulation

pytestmark = emulation.needed

# Emulation is slow: `make lane-cuda` checks accuracy, lattices and programs (test_cupy_kernels.py).
# A process takes seconds to start, so it runs several modules.
CONTRACT = (
    ("degenerate", "dispatch", "faults", "gradients", "layer"),
    ("moments", "nan", "protocol", "purity", "range"),
    ("running_statistics", "second_order", "symmetries", "unusual", "where"),
)


@pytest.mark.parametrize("modules", CONTRACT, ids="-".join)
def test_the_contract_holds_emulated(modules: tuple[str, ...]) -> None:
    """The tests for every backend pass, without those of 70,000 channels, which `make lane-cuda` repeats in the kit."""
    ran = emulation.run_pytest(*(f"tests/test_{module}.py" for module in modules), "-k", "cupy and not 70000")
    assert all(ran[f"tests/test_{module}.py"]["PASSED"] for module in modules)
