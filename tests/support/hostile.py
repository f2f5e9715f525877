"""Files that are damaged, or made to do harm: to run code, to fill memory, to read other files, to never end."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CANARY = "polybn-canary"
"""A file that appears where code in a model file was run."""
HUGE = 2**40


class Bad:
    """Unpickled, it makes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


def _safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {
        f"bn.running_{name}": {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]} for name in ("mean", "var")
    }


def _zip(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array))
    return buffer.getvalue()


def _claims(shape: tuple[int, ...]) -> bytes:
    """Return the header of an array that is not there."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(8)


def _npz(member: bytes, kind: int = zipfile.ZIP_STORED) -> bytes:
    return _zip({f"bn.running_{name}.npy": member for name in ("mean", "var")}, kind)


def _many_members(count: int) -> bytes:
    """Return an archive whose end claims a list of members of a gibibyte."""
    data = bytearray(_zip({"a.npy": _npy(np.ones(3))}))
    struct.pack_into("<HHI", data, len(data) - 14, count & 0xFFFF, count & 0xFFFF, 2**30)
    return bytes(data)


def _before_the_file() -> bytes:
    """Return an archive whose first member begins before its first byte."""
    data = bytearray(_npz(_npy(np.ones(3))))
    (place,) = struct.unpack_from("<I", data, len(data) - 6)
    struct.pack_into("<I", data, len(data) - 6, place + 100)
    return bytes(data)


def _keras(**options: object) -> bytes:
    """Return a batch norm of three channels with other options."""

    def build(file: Any) -> None:
        for number in range(4):
            file.create_dataset(f"layers/batch_normalization/vars/{number}", data=np.ones(3, "f4"))

    layer = {"class_name": "BatchNormalization", "config": {"name": "bn", **options}}
    model = {"class_name": "Sequential", "config": {"layers": [layer]}}
    return _zip({"config.json": json.dumps(model).encode(), "model.weights.h5": _hdf5(build)})


def _torch_zip(pickled: bytes, kind: int = zipfile.ZIP_STORED) -> bytes:
    return _zip({"m/data.pkl": pickled, "m/version": b"3\n", "m/byteorder": b"little"}, kind)


def _torch_legacy(content: bytes, keys: object = (), data: bytes = b"") -> bytes:
    """Return a file as PyTorch before 1.6 wrote it: pickles in a row, and the bytes of tensors."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    before = (0x1950A86A20F9469CFC6C, 1001, system)
    pickles = [*(pickle.dumps(part, protocol=2) for part in before), content, pickle.dumps(list(keys), protocol=2)]  # type: ignore[call-overload]
    return b"".join((*pickles, data))


def _claims_storage() -> bytes:
    """Return tensors of PyTorch whose values would take four tebibytes."""
    import torch

    class Storage:
        pass

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, (HUGE,), (1,), False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", HUGE, None) if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({f"bn.running_{name}": Tensor() for name in ("mean", "var")})
    return _torch_legacy(buffer.getvalue(), ["0"], struct.pack("<q", HUGE) + bytes(64))


def _hdf5(build: Callable[[Any], None]) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        build(file)
    return buffer.getvalue()


def _circle(file: Any) -> None:
    file.create_group("a/b")
    file["a/b/c"] = file["a"]


def _huge_dataset(file: Any) -> None:
    for name in ("moving_mean", "moving_variance"):
        file.create_dataset(f"bn/{name}", (HUGE,), "f4", chunks=(1024,))


def _four_huge_vectors(file: Any) -> None:
    for number in range(4):
        file.create_dataset(f"layers/bn/vars/{number}", (HUGE,), "f4", chunks=(1024,))


def _outer_storage(file: Any) -> None:
    for name in ("moving_mean", "moving_variance"):
        file.create_dataset(f"bn/{name}", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def _virtual(file: Any) -> None:
    import h5py

    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    for name in ("moving_mean", "moving_variance"):
        file.create_virtual_dataset(f"bn/{name}", layout)


def _outer_link(file: Any) -> None:
    import h5py

    file["bn"] = h5py.ExternalLink("/etc/passwd", "/")
    file["soft"] = h5py.SoftLink("/soft")


def _onnx(dims: list[int], change: Callable[[Any], None] = lambda model: None, inputs: int = 5) -> bytes:
    import onnx

    names = ["scale", "B", "mean", "var"]
    node = onnx.helper.make_node("BatchNormalization", ["x", *names][:inputs], ["y"])
    tensors = [onnx.TensorProto(name=name, data_type=1, dims=dims, raw_data=bytes(12)) for name in names]
    graph = onnx.helper.make_graph([node], "g", [], [], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)])
    change(model)
    data: bytes = model.SerializeToString()
    return data


def _outer_data(model: Any) -> None:
    for tensor in model.graph.initializer:
        tensor.data_location = 1
        tensor.external_data.add(key="location", value="/etc/passwd")


def _deep(model: Any) -> None:
    graph = model.graph
    for _ in range(24):
        node = graph.node.add(op_type="If")
        graph = node.attribute.add(name="then_branch", type=5).g
        graph.name = "g"


def _fills_memory(model: Any) -> None:
    import onnx

    del model.graph.initializer[:]
    for name in ("scale", "B", "mean", "var"):
        model.graph.node.add(op_type="ConstantOfShape", input=["shape"], output=[name])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([HUGE]), "shape"))


def _in_a_circle(model: Any) -> None:
    model.graph.node[0].input[0] = "y"
    model.graph.node.add(op_type="Conv", input=["y", "scale"], output=["x"])


def _gluon(count: int, *rest: bytes) -> bytes:
    return struct.pack("<3Q", 0x112, 0, count) + b"".join(rest)


def _array(*shape: int, flag: int = 0) -> bytes:
    return struct.pack(f"<Iii{len(shape)}q3i", 0xF993FAC9, 0, len(shape), *shape, 1, 0, flag)


def _msgpack_array(shape: list[int], dtype: str) -> bytes:
    import msgpack

    packed = msgpack.packb((shape, dtype, bytes(8)))
    tree = {"params": {"bn": {"scale": msgpack.ExtType(1, packed)}}}
    data: bytes = msgpack.packb(tree)
    return data


REFUSED: dict[str, Callable[[], bytes]] = {
    "empty.safetensors": lambda: b"",
    "cut-header.safetensors": lambda: _safetensors(_entry([3], 0, 12))[:40],
    "cut-data.safetensors": lambda: _safetensors(_entry([3], 0, 12), bytes(7)),
    "long-header.safetensors": lambda: struct.pack("<Q", 2**63) + b"{}",
    "huge-shape.safetensors": lambda: _safetensors(_entry([HUGE], 0, 12), bytes(12)),
    "negative-place.safetensors": lambda: _safetensors(_entry([3], -12, 0), bytes(12)),
    "other-shape.safetensors": lambda: _safetensors(_entry([5], 0, 12), bytes(12)),
    "deep.safetensors": lambda: _safetensors(b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    "twice.safetensors": lambda: _safetensors(
        json.dumps(_entry([3], 0, 12)).replace("running_var", "running_mean").encode(), bytes(12)
    ),
    "not-a-dict.safetensors": lambda: _safetensors(b'{"a": 7}'),
    "runs-code.pt": lambda: pickle.dumps({"bn.weight": Bad()}),
    "runs-code.bin": lambda: pickle.dumps(Bad(), protocol=4),
    "runs-code-in-zip.pt": lambda: _torch_zip(pickle.dumps({"a": Bad()}, protocol=2)),
    "runs-code-legacy.pt": lambda: _torch_legacy(pickle.dumps({"a": Bad()}, protocol=2)),
    "cut-legacy.pt": lambda: _torch_legacy(b""),
    "claims-legacy.pt": _claims_storage,
    "packed.pt": lambda: _torch_zip(bytes(2**20), zipfile.ZIP_DEFLATED),
    "cut.pt": lambda: _torch_zip(pickle.dumps({}, protocol=2))[:-40],
    "program.pt": lambda: _zip({"m/data.pkl": b"", "m/constants.pkl": b""}),
    "runs-code.npz": lambda: _npz(_npy(np.array([Bad()], dtype=object))),
    "claims.npz": lambda: _npz(_claims((1000,))),
    "bomb.npz": lambda: _npz(_claims((3,)) + bytes(2**28), zipfile.ZIP_DEFLATED),
    "cut.npz": lambda: _npz(_npy(np.ones(3)))[:-30],
    "list-of-a-gibibyte.npz": lambda: _many_members(9),
    "before-the-file.npz": _before_the_file,
    "text-as-eps.keras": lambda: _keras(epsilon="0.001"),
    "nothing-as-momentum.keras": lambda: _keras(momentum=None),
    "two-axes.keras": lambda: _keras(axis=[1, 2]),
    "long-eps.keras": lambda: _keras(epsilon=10**400),
    "config-bomb.keras": lambda: _zip({"config.json": bytes(2**24), "model.weights.h5": b""}, zipfile.ZIP_DEFLATED),
    "no-weights.keras": lambda: _zip({"config.json": b"{}"}),
    "no-hdf5.keras": lambda: _zip({"config.json": b"{}", "model.weights.h5": b"hello"}),
    "other.zip": lambda: _zip({"a.txt": b"hello"}),
    "cut.h5": lambda: _hdf5(_huge_dataset)[:700],
    "circle.h5": lambda: _hdf5(_circle),
    "huge.weights.h5": lambda: _hdf5(_four_huge_vectors),
    "other-file.h5": lambda: _hdf5(_outer_storage),
    "virtual.h5": lambda: _hdf5(_virtual),
    "cut.msgpack": lambda: _msgpack_array([2], "float32")[:-3],
    "long-list.msgpack": lambda: b"\xdd\xff\xff\xff\xff",
    "deep.msgpack": lambda: b"\x81\xa1a" * 2000 + b"\xc0",
    "huge-shape.msgpack": lambda: _msgpack_array([HUGE], "float32"),
    "objects.msgpack": lambda: _msgpack_array([1], "object"),
    "many.params": lambda: _gluon(2**60),
    "huge-shape.params": lambda: _gluon(1, _array(HUGE)),
    "twice.params": lambda: _gluon(
        2, *[_array(1) + bytes(4)] * 2, struct.pack("<Q", 2), *[struct.pack("<Q", 1) + b"a"] * 2
    ),
    "negative-shape.params": lambda: _gluon(1, _array(-3, -4)),
    "cut.params": lambda: _gluon(2, _array(3), bytes(12)),
    "other-dtype.params": lambda: _gluon(1, _array(3, flag=99)),
    "cut.onnx": lambda: _onnx([3])[:-20],
    "no-graph.onnx": lambda: b"",
    "huge-shape.onnx": lambda: _onnx([HUGE]),
    "other-shape.onnx": lambda: _onnx([5]),
    "other-file.onnx": lambda: _onnx([3], _outer_data),
    "deep.onnx": lambda: _onnx([3], _deep),
    "few-inputs.onnx": lambda: _onnx([3], inputs=3),
    "text.txt": lambda: b"hello " * 99,
}
"""Files that are refused, by name."""
HARMLESS: dict[str, Callable[[], bytes]] = {
    "circle.onnx": lambda: _onnx([3], _in_a_circle),
    "fills-memory.onnx": lambda: _onnx([3], _fills_memory),
    "huge.h5": lambda: _hdf5(_huge_dataset),
    "other-protocol.pt": lambda: _torch_zip(b"\x80\x1c}."),
    "nan-as-eps.keras": lambda: _keras(epsilon=float("nan")),
    "links.h5": lambda: _hdf5(_outer_link),
    "claims-much.npz": lambda: _npz(_claims((HUGE,))),
}
"""Files that lie about what is not read: they are read, and nothing happens."""


def place(name: str, folder: Path) -> Path:
    """Write one of the files."""
    (folder / name).write_bytes((REFUSED | HARMLESS)[name]())
    return folder / name
