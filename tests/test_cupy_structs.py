"""Structs passed by value have the same size in Python and C++, and fit a kernel's parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polybn
from polybn.conformance.strategies import sample
from polybn.lenet import networks
from polybn.lenet.program import compile

cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_kernels.py runs this emulated")
if "emulated" not in cupy.__version__:
    pytest.skip("it asks the emulation for sizes", allow_module_level=True)

STRUCTS = {
    "forward.cu": ("ForwardArguments",), "backward.cu": ("BackwardArguments",), "second.cu": ("SecondArguments",),
    "inference.cu": ("InferenceArguments",), "vectors.cu": ("MergeArguments", "FoldArguments"),
    "convolution.cu": ("Convolution",), "dense.cu": ("Dense",), "network.cu": ("Pool", "Batch", "Last", "Descents"),
}  # fmt: skip
KERNELS = {
    "forward": "ForwardArguments", "backward": "BackwardArguments", "second": "SecondArguments",
    "inference": "InferenceArguments", "merge": "MergeArguments", "fold": "FoldArguments",
    "convolve": "Convolution", "pull": "Convolution", "multiply": "Dense", "multiply_back": "Dense",
    "pool": "Pool", "unpool": "Pool", "judge": "Batch", "conclude": "Last", "deliver": "Batch",
    "descend": "Descents",
}  # fmt: skip
MOST_PARAMETER_BYTES = 4096


def sizes() -> dict[str, int]:
    """Ask the compiler for the size of a struct."""
    from polybn_cupy.sources import OPTIONS, source

    found: dict[str, int] = {}
    for file, structs in STRUCTS.items():
        text = "".join(f"    size[{i}] = sizeof({name});\n" for i, name in enumerate(structs))
        code = source(file) + "\n__global__ void ask(Index* size) {\n" + text + "}\n"
        module = cupy.cuda.Module()
        module.load(cupy.cuda.compiler.compile_using_nvrtc(code, OPTIONS, name_expressions=("ask",))[0])
        answer = cupy.zeros(len(structs), np.int64)
        module.get_function("ask")((1,), (1,), (answer,))
        found |= dict(zip(structs, answer.get().tolist(), strict=True))
    return found


def test_arguments_are_as_long_as_their_structs(monkeypatch: pytest.MonkeyPatch) -> None:
    from polybn_cupy import launch

    packed: dict[str, set[int]] = {}
    original = launch.kernel

    def kernel(file: str, expression: str) -> Any:
        compiled = original(file, expression)

        class Spy:
            resident = compiled.resident

            def __call__(self, blocks: int, arguments: bytes, **options: Any) -> None:
                packed.setdefault(expression.partition("<")[0], set()).add(len(arguments))
                compiled(blocks, arguments, **options)

        return Spy()

    monkeypatch.setattr(launch, "kernel", kernel)
    case, b = sample(1, "float32", (7, 3, 5)), polybn.backend("cupy")
    arrays = [b.asarray(a) for a in case.arrays().values() if a is not None]
    for training in (True, False):
        _, pullback = polybn.batch_norm_vjp(*arrays, training=training)
        gradients, second = pullback.vjp(b.asarray(case.dy))
        second(gradients)
    part = polybn.moments(arrays[0])
    polybn.merge_moments(part, part)
    polybn.fold(*arrays[1:])
    network, rng = networks.lenet(), np.random.default_rng(0)
    sigmoid_last = (*network.layers, networks.Sigmoid())  # no layer with weights reads its result
    for of in (network, networks.Network(network.input_shape, sigmoid_last)):
        program = compile(of, b, networks.initial_state(of, 0), batch_size=2)
        data = program.place(rng.integers(0, 256, (2, 1, 28, 28), np.uint8), rng.integers(0, 10, 2, np.uint8))
        list(program.train_epoch(data, np.arange(2), learning_rate=0.1))
        program.logits(data)
    expected = sizes()
    assert packed == {name: {expected[struct]} for name, struct in KERNELS.items()}
    assert max(expected.values()) <= MOST_PARAMETER_BYTES
