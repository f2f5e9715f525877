"""Live batch norms of installed frameworks: trained step by step, with their state under their own names.

Data have rank 4 and their channels at axis 1, whichever axis a framework prefers. A class is made with the number of
channels, the momentum in the framework's own sense, and eps; if its library is missing, that raises ImportError.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from polybn.conformance.adapters import mxnet, onnx
from polybn.conformance.adapters.shared import load

Array = NDArray[Any]
State = dict[str, Array]


class Living(Protocol):
    """A batch norm with its state."""

    def load(self, state: Mapping[str, Array]) -> None:
        """Replace the state."""

    def state(self) -> State:
        """Copy the state."""

    def train(self, x: Array) -> Array:
        """Take one training step; return the output."""

    def infer(self, x: Array) -> Array:
        """Return the output of inference."""


class PyTorch:
    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        self._torch = load("torch", "torch")
        self._layer = self._torch.nn.BatchNorm2d(channels, eps, momentum)

    def load(self, state: Mapping[str, Array]) -> None:
        self._layer.load_state_dict({name: self._torch.tensor(value) for name, value in state.items()})

    def state(self) -> State:
        return {name: value.numpy().copy() for name, value in self._layer.state_dict().items()}

    def train(self, x: Array) -> Array:
        return np.array(self._layer.train()(self._torch.tensor(x)).detach().numpy())

    def infer(self, x: Array) -> Array:
        return np.array(self._layer.eval()(self._torch.tensor(x)).detach().numpy())


class Keras:
    NAMES = ("gamma", "beta", "moving_mean", "moving_variance")

    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        os.environ.setdefault("KERAS_BACKEND", "numpy")
        self._keras = load("keras", "keras")
        self._layer = self._keras.layers.BatchNormalization(axis=1, momentum=momentum, epsilon=eps)
        self._layer.build((None, channels, None, None))

    def load(self, state: Mapping[str, Array]) -> None:
        self._layer.set_weights([state[name] for name in self.NAMES])

    def state(self) -> State:
        return {name: self._host(getattr(self._layer, name).value) for name in self.NAMES}

    def train(self, x: Array) -> Array:
        return self._host(self._layer(x, training=True))

    def infer(self, x: Array) -> Array:
        return self._host(self._layer(x, training=False))

    def _host(self, tensor: Any) -> Array:
        return np.array(self._keras.ops.convert_to_numpy(tensor))


class Linen:
    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        linen = load("flax.linen", "flax")
        self._layer = linen.BatchNorm(momentum=momentum, epsilon=eps, axis=1)
        self.load({"scale": np.ones(channels, "f"), "bias": np.zeros(channels, "f"),
                   "mean": np.zeros(channels, "f"), "var": np.ones(channels, "f")})  # fmt: skip

    def load(self, state: Mapping[str, Array]) -> None:
        self._params = {name: state[name] for name in ("scale", "bias")}
        self._stats = {name: state[name] for name in ("mean", "var")}

    def state(self) -> State:
        return {name: np.array(value) for name, value in {**self._params, **self._stats}.items()}

    def train(self, x: Array) -> Array:
        variables = {"params": self._params, "batch_stats": self._stats}
        y, new = self._layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        self._stats = dict(new["batch_stats"])
        return np.array(y)

    def infer(self, x: Array) -> Array:
        variables = {"params": self._params, "batch_stats": self._stats}
        return np.array(self._layer.apply(variables, x, use_running_average=True))


class NNX:
    NAMES = ("scale", "bias", "mean", "var")

    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        nnx = load("flax.nnx", "flax")
        self._layer = nnx.BatchNorm(channels, momentum=momentum, epsilon=eps, axis=1, rngs=nnx.Rngs(0))

    def load(self, state: Mapping[str, Array]) -> None:
        for name in self.NAMES:
            getattr(self._layer, name)[...] = state[name]

    def state(self) -> State:
        return {name: np.array(getattr(self._layer, name)[...]) for name in self.NAMES}

    def train(self, x: Array) -> Array:
        return np.array(self._layer(x, use_running_average=False))

    def infer(self, x: Array) -> Array:
        return np.array(self._layer(x, use_running_average=True))


class Haiku:
    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        haiku = load("haiku", "dm-haiku")
        self._model = haiku.transform_with_state(
            lambda x, training: haiku.BatchNorm(True, True, momentum, eps, data_format="channels_first")(x, training)
        )
        self._params, self._state = self._model.init(None, np.zeros((2, channels, 1, 1), "f"), True)

    def load(self, state: Mapping[str, Array]) -> None:
        def shaped(name: str, like: Array) -> Array:
            return np.asarray(state[name]).reshape(like.shape)

        self._params = {"batch_norm": {n: shaped(n, v) for n, v in self._params["batch_norm"].items()}}
        self._state = {
            path: {n: shaped(f"{path.rpartition('/')[2]}/{n}", v) for n, v in values.items()}
            for path, values in self._state.items()
        }

    def state(self) -> State:
        found = {name: np.array(value) for name, value in self._params["batch_norm"].items()}
        for path, values in self._state.items():
            found |= {f"{path.rpartition('/')[2]}/{name}": np.array(value) for name, value in values.items()}
        return found

    def train(self, x: Array) -> Array:
        y, self._state = self._model.apply(self._params, self._state, None, x, True)
        return np.array(y)

    def infer(self, x: Array) -> Array:
        return np.array(self._model.apply(self._params, self._state, None, x, False)[0])


class Equinox:
    MODE = "batch"

    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        self._jax, self._equinox = load("jax", "jax"), load("equinox", "equinox")
        self._layer, self._state = self._equinox.nn.make_with_state(self._equinox.nn.BatchNorm)(
            channels, "batch", eps, momentum=momentum, mode=self.MODE, dtype=np.float32
        )

    def load(self, state: Mapping[str, Array]) -> None:
        jnp = self._jax.numpy
        self._layer = self._equinox.tree_at(
            lambda layer: (layer.weight, layer.bias), self._layer, (jnp.asarray(state["weight"]), state["bias"])
        )
        for name in self._indices():
            pair = tuple(jnp.asarray(state[key]) for key in (f"{name}.0", f"{name}.1") if key in state)
            self._state = self._state.set(getattr(self._layer, name), pair or jnp.array(state[name].item()))

    def state(self) -> State:
        found = {"weight": np.array(self._layer.weight), "bias": np.array(self._layer.bias)}
        for name in self._indices():
            value = self._state.get(getattr(self._layer, name))
            pair = {f"{name}.{i}": np.array(v) for i, v in enumerate(value)} if isinstance(value, tuple) else {}
            found |= pair or {name: np.array(value)}
        return found

    def train(self, x: Array) -> Array:
        y, self._state = self._call(x, False)
        return np.array(y)

    def infer(self, x: Array) -> Array:
        return np.array(self._call(x, True)[0])

    def _call(self, x: Array, inference: bool) -> Any:
        call = self._jax.vmap(
            lambda value, state: self._layer(value, state, inference=inference),
            axis_name="batch", in_axes=(0, None), out_axes=(0, None),
        )  # fmt: skip
        return call(self._jax.numpy.asarray(x), self._state)

    def _indices(self) -> tuple[str, str]:
        return ("batch_state_index", "batch_counter")


class EquinoxEma(Equinox):
    MODE = "ema"

    def _indices(self) -> tuple[str, str]:
        return ("ema_state_index", "ema_first_time_index")


class MXNet:
    NAMES = ("gamma", "beta", "moving_mean", "moving_var")

    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        mxnet.MXNet()  # makes MXNet importable
        self._mx = load("mxnet", "mxnet")
        self._options = {"momentum": momentum, "eps": eps, "fix_gamma": False}
        zeros, ones = np.zeros(channels, "f"), np.ones(channels, "f")
        self.load(dict(zip(self.NAMES, (ones, zeros, zeros, ones), strict=True)))

    def load(self, state: Mapping[str, Array]) -> None:
        self._arrays = [self._mx.nd.array(state[name], dtype="float32") for name in self.NAMES]

    def state(self) -> State:
        return {name: array.asnumpy() for name, array in zip(self.NAMES, self._arrays, strict=True)}

    def train(self, x: Array) -> Array:
        data = self._mx.nd.array(x, dtype="float32")
        for array in (data, *self._arrays[:2]):
            array.attach_grad()
        with self._mx.autograd.record():
            y = self._call(data)
        y.backward()
        return np.array(y.asnumpy())

    def infer(self, x: Array) -> Array:
        return np.array(self._call(self._mx.nd.array(x, dtype="float32")).asnumpy())

    def _call(self, data: Any) -> Any:
        return self._mx.nd.BatchNorm(data, *self._arrays, **self._options)


class Gluon(MXNet):
    NAMES = ("gamma", "beta", "running_mean", "running_var")

    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        mxnet.MXNet()
        self._mx = load("mxnet", "mxnet")
        self._layer = self._mx.gluon.nn.BatchNorm(momentum=momentum, epsilon=eps, in_channels=channels)
        self._layer.initialize()

    def load(self, state: Mapping[str, Array]) -> None:
        for name in self.NAMES:
            getattr(self._layer, name).set_data(self._mx.nd.array(state[name], dtype="float32"))

    @property
    def _arrays(self) -> list[Any]:  # type: ignore[override]
        return [getattr(self._layer, name).data() for name in self.NAMES]

    def train(self, x: Array) -> Array:
        with self._mx.autograd.record():
            y = self._layer(self._mx.nd.array(x, dtype="float32"))
        y.backward()
        return np.array(y.asnumpy())

    def _call(self, data: Any) -> Any:
        return self._layer(data)


class OnnxRuntime:
    NAMES = ("scale", "B", "input_mean", "input_var")

    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        self._onnx, self._runtime = load("onnx", "onnx"), load("onnxruntime", "onnxruntime")
        self._momentum, self._eps = momentum, eps
        zeros, ones = np.zeros(channels, "f"), np.ones(channels, "f")
        self.load(dict(zip(self.NAMES, (ones, zeros, zeros, ones), strict=True)))

    def load(self, state: Mapping[str, Array]) -> None:
        self._arrays = {name: np.array(state[name]) for name in self.NAMES}

    def state(self) -> State:
        return {name: value.copy() for name, value in self._arrays.items()}

    def train(self, x: Array) -> Array:
        y, self._arrays["input_mean"], self._arrays["input_var"] = self._run(x, True, momentum=self._momentum)
        return np.asarray(y)

    def infer(self, x: Array) -> Array:
        return np.asarray(self._run(x, False)[0])

    def _run(self, x: Array, training: bool, **momentum: float) -> Any:
        values = (x, *self._arrays.values())
        model = onnx.model(self._onnx, x, values[1], training=training, epsilon=self._eps, **momentum)
        session = self._runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, dict(zip(onnx.INPUTS, values, strict=True)))


class Tinygrad:
    NAMES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        if shutil.which("clang") is None:
            os.environ.setdefault("DEV", "PYTHON")  # slow, but without a compiler
        self._tinygrad, self._helpers = load("tinygrad", "tinygrad"), load("tinygrad.helpers", "tinygrad")
        self._layer = self._tinygrad.nn.BatchNorm(channels, eps=eps, momentum=momentum)

    def load(self, state: Mapping[str, Array]) -> None:
        for name in self.NAMES:
            value = np.asarray(state[name])
            # A scalar would become a constant, which this device cannot copy to the host.
            setattr(self._layer, name, self._tinygrad.Tensor(np.atleast_1d(value)).reshape(value.shape).realize())

    def state(self) -> State:
        return {name: np.array(getattr(self._layer, name).numpy()) for name in self.NAMES}

    def train(self, x: Array) -> Array:
        with self._helpers.Context(TRAINING=1):
            y = np.array(self._layer(self._tinygrad.Tensor(x)).numpy())
        for name in self.NAMES:
            getattr(self._layer, name).realize()
        return y

    def infer(self, x: Array) -> Array:
        return np.array(self._layer(self._tinygrad.Tensor(x)).numpy())


FRAMEWORKS: dict[str, Callable[[int, float, float], Living]] = {
    "pytorch": PyTorch,
    "keras3": Keras,
    "flax_linen": Linen,
    "flax_nnx": NNX,
    "haiku": Haiku,
    "equinox_ema": EquinoxEma,
    "equinox_batch": Equinox,
    "mxnet_native": MXNet,
    "gluon": Gluon,
    "onnx15": OnnxRuntime,
    "tinygrad": Tinygrad,
}
"""The frameworks by the names of their dialects."""


@functools.cache
def why_not(name: str) -> str | None:
    """Return why a framework cannot run here, or None."""
    try:
        FRAMEWORKS[name](1, 0.5, 1e-3)
    except ImportError as error:
        return str(error)
    return None
