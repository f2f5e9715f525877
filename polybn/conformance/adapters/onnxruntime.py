"""ONNX Runtime: ``BatchNormalization``, operator set 15, by its CPU provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polybn.conformance.adapter import Info
from polybn.conformance.adapters.onnx import INPUTS, model
from polybn.conformance.adapters.shared import load, refuse_other_axes

if TYPE_CHECKING:
    from polybn.conformance.adapter import Array


class OnnxRuntime:
    """The runtime's kernel, in training mode and in inference. It has no gradients outside its training builds."""

    def __init__(self) -> None:
        self._onnx, self._runtime = load("onnx", "onnx onnxruntime"), load("onnxruntime", "onnx onnxruntime")

    def info(self) -> Info:
        """Declare what the operator's specification says."""
        return Info(
            name="ONNX Runtime",
            version=f"{self._runtime.__version__}, CPU",
            empty="changed",
            dtypes=("float16", "float32", "float64"),
            axes="second",
            differentiates=False,
        )

    def train(self, x: Array, *vectors: Array, momentum: float, eps: float, axis: int) -> tuple[Array, Array, Array]:
        """Run the node with ``training_mode=1``."""
        refuse_other_axes("ONNX Runtime", x, axis)
        y, mean, var = self._run(True, x, *vectors, momentum=momentum, epsilon=eps)
        return y, mean, var

    def infer(self, x: Array, *vectors: Array, eps: float, axis: int) -> Array:
        """Run the node with ``training_mode=0``."""
        refuse_other_axes("ONNX Runtime", x, axis)
        return self._run(False, x, *vectors, epsilon=eps)[0]

    def _run(self, training: bool, x: Array, *parameters: Array, **attributes: float) -> list[Array]:
        node = model(self._onnx, x, parameters[0], training=training, **attributes).SerializeToString()
        session = self._runtime.InferenceSession(node, providers=["CPUExecutionProvider"])
        results: list[Array] = session.run(None, dict(zip(INPUTS, (x, *parameters), strict=True)))
        return results
