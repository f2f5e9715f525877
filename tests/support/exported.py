"""Use of an exported LeNet in other frameworks: read the file, and score ``uint8`` images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Scores = NDArray[np.float32]


def onnx(files: list[Path], images: Images) -> Scores:
    import onnxruntime

    session = onnxruntime.InferenceSession(files[0], providers=["CPUExecutionProvider"])
    scores: Scores = session.run(None, {"images": images})[0]
    return scores


def torch_network(normalized: bool) -> Any:
    """Build LeNet as PyTorch's users would, with the names of the file."""
    from torch import nn

    class LeNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
            self.dense1, self.dense2, self.dense3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)
            self.norm1, self.norm2 = (nn.BatchNorm2d(n) if normalized else nn.Identity() for n in (6, 16))
            self.norm3, self.norm4 = (nn.BatchNorm1d(n) if normalized else nn.Identity() for n in (120, 84))

        def forward(self, x: Any) -> Any:
            x = nn.functional.max_pool2d(self.norm1(self.conv1(x)).sigmoid(), 2)
            x = nn.functional.max_pool2d(self.norm2(self.conv2(x)).sigmoid(), 2)
            x = self.norm3(self.dense1(x.flatten(1))).sigmoid()
            return self.dense3(self.norm4(self.dense2(x)).sigmoid())

    return LeNet().eval()


def _torch(state: dict[str, Any], images: Images) -> Scores:
    import torch

    network = torch_network("norm1.weight" in state)
    network.load_state_dict(state)
    with torch.inference_mode():
        scores: Scores = network(torch.from_numpy(images) / 255).numpy()
    return scores


def safetensors(files: list[Path], images: Images) -> Scores:
    from safetensors.torch import load_file

    return _torch(load_file(files[0]), images)


def pt(files: list[Path], images: Images) -> Scores:
    import torch

    return _torch(torch.load(files[0], weights_only=True)["state_dict"], images)


def flax(files: list[Path], images: Images) -> Scores:
    import jax
    from flax import linen, serialization

    variables = serialization.msgpack_restore(files[0].read_bytes())
    del variables["polybn"]
    normalized, pool = "norm1" in variables["params"], cast(Any, linen.max_pool)

    class LeNet(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            def norm(x: Any, name: str) -> Any:
                if not normalized:
                    return x
                return linen.BatchNorm(use_running_average=True, epsilon=1e-5, name=name)(x)

            for number, features in ((1, 6), (2, 16)):
                x = linen.Conv(features, (5, 5), padding="VALID", name=f"conv{number}")(x)
                x = pool(linen.sigmoid(norm(x, f"norm{number}")), (2, 2), (2, 2))
            x = x.reshape(len(x), -1)
            for number, features in ((1, 120), (2, 84)):
                x = linen.Dense(features, name=f"dense{number}")(x)
                x = linen.sigmoid(norm(x, f"norm{number + 2}"))
            return linen.Dense(10, name="dense3")(x)

    x = images.transpose(0, 2, 3, 1).astype(np.float32) / np.float32(255)
    return np.asarray(jax.jit(LeNet().apply)(variables, x))


def keras(files: list[Path], images: Images) -> Scores:
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    import keras as library

    model = library.models.load_model(files[0])
    return np.asarray(library.ops.convert_to_numpy(model(images.transpose(0, 2, 3, 1).astype(np.float32))))


def gluon(files: list[Path], images: Images) -> Scores:
    from polybn_mxnet.compat import mxnet

    symbol, arrays = sorted(files, key=lambda file: file.suffix)
    network = mxnet.gluon.SymbolBlock.imports(str(symbol), ["data"], str(arrays))
    return network(mxnet.nd.array(images, dtype="uint8")).asnumpy()


SCORE: dict[str, Callable[[list[Path], Images], Scores]] = {
    "onnx": onnx,
    "safetensors": safetensors,
    "pt": pt,
    "flax": flax,
    "keras": keras,
    "gluon": gluon,
}
LIBRARIES = {
    "onnx": ("onnx", "onnxruntime"),
    "safetensors": ("torch", "safetensors"),
    "pt": ("torch",),
    "flax": ("flax", "msgpack"),
    "keras": ("keras", "h5py"),
    "gluon": ("mxnet",),
}
"""The libraries that exporting to a format, and scoring images with it, need."""
