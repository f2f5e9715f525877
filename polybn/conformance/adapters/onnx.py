"""ONNX: ``BatchNormalization``, operator set 15, as a model of one node, run by ONNX's reference evaluator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polybn.conformance.adapter import Info
from polybn.conformance.adapters.shared import load, refuse_other_axes

if TYPE_CHECKING:
    from polybn.conformance.adapter import Array

INPUTS = ("x", "scale", "bias", "mean", "var")


class Reference:
    """``onnx.reference.ReferenceEvaluator``, which is NumPy underneath. It has no gradients.

    Half types are not declared: for them it returns running statistics of the dtype of x, not float32 ones.
    """

    def __init__(self) -> None:
        self._onnx, self._reference = load("onnx", "onnx"), load("onnx.reference", "onnx")

    def info(self) -> Info:
        """Declare what the operator's specification says."""
        return Info(
            name="ONNX reference evaluator",
            version=self._onnx.__version__,
            empty="changed",
            dtypes=("float32", "float64"),
            axes="second",
            differentiates=False,
        )

    def train(self, x: Array, *vectors: Array, momentum: float, eps: float, axis: int) -> tuple[Array, Array, Array]:
        """Run the node with ``training_mode=1``."""
        refuse_other_axes("ONNX", x, axis)
        node = model(self._onnx, x, vectors[0], training=True, momentum=momentum, epsilon=eps)
        feed = dict(zip(INPUTS, (x, *vectors), strict=True))
        y, mean, var = self._reference.ReferenceEvaluator(node).run(None, feed)
        return y, mean, var

    def infer(self, x: Array, *vectors: Array, eps: float, axis: int) -> Array:
        """Run the node with ``training_mode=0``."""
        refuse_other_axes("ONNX", x, axis)
        node = model(self._onnx, x, vectors[0], training=False, epsilon=eps)
        feed = dict(zip(INPUTS, (x, *vectors), strict=True))
        y: Array = self._reference.ReferenceEvaluator(node).run(None, feed)[0]
        return y


def model(onnx: Any, x: Array, parameter: Array, *, training: bool, **attributes: float) -> Any:
    """Build a model of one ``BatchNormalization`` node for the shape and dtype of x and of a parameter.

    In training the node has three outputs, y and the running statistics; else y alone. The attributes are ``epsilon``
    and ``momentum``, which ONNX stores as float32.
    """
    helper = onnx.helper
    kinds = [helper.np_dtype_to_tensor_dtype(a.dtype) for a in (x, *[parameter] * 4)]
    shapes = [x.shape, *[parameter.shape] * 4]
    given = [helper.make_tensor_value_info(*each) for each in zip(INPUTS, kinds, shapes, strict=True)]
    names = ("y", "new_mean", "new_var") if training else ("y",)
    made = [
        helper.make_tensor_value_info(name, *each)
        for name, each in zip(names, [(kinds[0], shapes[0]), *[(kinds[1], shapes[1])] * 2], strict=False)
    ]
    node = helper.make_node("BatchNormalization", INPUTS, names, training_mode=int(training), **attributes)
    graph = helper.make_graph([node], "batch_norm", given, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
