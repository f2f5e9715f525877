"""Every CUDA kernel compiles for every architecture, with NVRTC, which needs no GPU.

It is skipped where NVRTC is not installed, unless POLYBN_REQUIRE_TOOLS names ``nvrtc``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.gpu import nvrtc

ROOT = Path(__file__).parents[1] / "backends" / "polybn_cupy"
ARCHITECTURES = (80, 90, 100)
MULTIPROCESSOR_REGISTERS = 65536
REASON = nvrtc.why_not()
REQUIRED = "nvrtc" in os.environ.get("POLYBN_REQUIRE_TOOLS", "").split(",")
SOURCES = nvrtc.kernels()
THOROUGH = os.environ.get("POLYBN_PROFILE", "ci" if os.environ.get("CI") else "dev") != "dev"
needs_nvrtc = pytest.mark.skipif(REASON is not None and not REQUIRED, reason=str(REASON))


FILES = sorted({file for file, _ in SOURCES.instances()})


def expressions(file: str) -> list[str]:
    return [name for of, name in SOURCES.instances() if of == file]


def test_each_file_has_kernels_and_each_kernel_a_file() -> None:
    assert sorted(path.name for path in (ROOT / "kernels").glob("*.cu")) == FILES


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES if THOROUGH else ARCHITECTURES[1:2])
@pytest.mark.parametrize("file", FILES)
def test_all_instances_compile_without_a_word(file: str, architecture: int) -> None:
    """Kernels compile to PTX; machine code for sm_90 lets a multiprocessor hold three blocks, as planned."""
    options = (*SOURCES.OPTIONS, "--device-as-default-execution-space")  # CuPy appends it
    log = nvrtc.compile(
        SOURCES.source(file),
        file,
        expressions(file),
        ("sm_" if architecture == 90 else "compute_") + str(architecture),
        options,
    )
    assert "error" not in log
    assert "warning" not in log, log
    if architecture != 90:
        return
    registers = [int(used) for used in re.findall(r"Used (\d+) registers", log)]
    assert len(registers) == len(expressions(file))
    assert max(registers) * 256 * 3 <= MULTIPROCESSOR_REGISTERS, registers


@needs_nvrtc
def test_subnormal_numbers_are_numbers() -> None:
    """No instruction flushes subnormal numbers to zero: PTX has no ``.ftz``."""
    file, name = "vectors.cu", "fold<float>"
    kept, flushed = (
        nvrtc.to_ptx(SOURCES.source(file), file, [name], "compute_90", (*SOURCES.OPTIONS, *more))
        for more in ((), ("--ftz=true",))
    )
    assert "sub.rn.f32" in kept
    assert "sub.rn.ftz.f32" not in kept
    assert "sub.rn.ftz.f32" in flushed


@needs_nvrtc
def test_a_broken_kernel_is_refused() -> None:
    file = "vectors.cu"
    broken = SOURCES.source(file).replace("struct FoldArguments {", "struct FoldArgument {")
    with pytest.raises(RuntimeError, match="FoldArguments"):
        nvrtc.compile(broken, file, ["fold<float>"], "compute_90", SOURCES.OPTIONS)
