"""Structs passed by value, field by field: at the place of each field in C++, Python wrote its value.

Emulated only. The fields fill the whole struct.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import polybn
from polybn.conformance.strategies import sample
from polybn.lenet.program import compile

cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed; test_cupy_kernels.py runs this emulated")
if "emulated" not in cupy.__version__:
    pytest.skip("it asks the emulation for offsets", allow_module_level=True)

Value = int | float | tuple[int, ...]
Fields = dict[str, Value]
Captured = dict[str, bytes]
SHAPE = (7, 3, 4000, 2)
AXES = 31
PLAN = {"tile_channels": "channels", "chunks": "chunks", "rounds": "rounds", "members": "members"}


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keep the arguments of each kernel's last launch by its name, and its tiling under "tiling"."""
    from polybn_cupy import launch, plan

    seen: Any = {}
    original = launch.kernel

    def kernel(file: str, expression: str) -> Any:
        compiled, name = original(file, expression), expression.partition("<")[0]

        class Spy:
            resident = compiled.resident

            def __call__(self, blocks: int, arguments: bytes, **options: Any) -> None:
                nonlocal seen
                seen[name] = arguments
                seen |= {f"{what} of {name}": seen.get(what) for what in ("tiling", "mail")}
                compiled(blocks, arguments, **options)

        return Spy()

    def keep(what: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def make_and_keep(*args: Any, **options: Any) -> Any:
            seen[what] = make(*args, **options)
            return seen[what]

        return make_and_keep

    monkeypatch.setattr(launch, "kernel", kernel)
    monkeypatch.setattr(launch, "mail", keep("mail", launch.mail))
    monkeypatch.setattr(plan, "divide", keep("tiling", plan.divide))
    monkeypatch.setattr(plan, "stretch", keep("tiling", plan.stretch))
    return seen


def offsets(file: str, name: str, paths: list[str]) -> list[int]:
    """Ask the compiler for the offsets of the fields, and last, for the size of the struct."""
    from polybn_cupy.sources import OPTIONS, source

    lines = [f"    at[{i}] = __builtin_offsetof({name}, {path});\n" for i, path in enumerate(paths)]
    body = "".join(lines) + f"    at[{len(paths)}] = sizeof({name});\n"
    code = source(file) + "\n__global__ void ask(long long* at) {\n" + body + "}\n"
    module = cupy.cuda.Module()
    module.load(cupy.cuda.compiler.compile_using_nvrtc(code, OPTIONS, name_expressions=("ask",))[0])
    answer = cupy.zeros(len(paths) + 1, np.int64)
    module.get_function("ask")((1,), (1,), (answer,))
    found: list[int] = answer.get().tolist()
    return found


def check(file: str, name: str, arguments: bytes, fields: Fields) -> None:
    """Compare each field, and assert that there is nothing between or behind the fields."""
    at = offsets(file, name, list(fields))
    end = 0
    for (path, value), offset in zip(fields.items(), at, strict=False):
        assert offset == end, f"{path} begins at byte {offset}, and what is before it ends at {end}"
        values = value if isinstance(value, tuple) else (value,)
        end += 8 * len(values)
        read = struct.unpack_from(f"<{len(values)}{'d' if isinstance(value, float) else 'q'}", arguments, offset)
        assert read == values, path
    assert at[-1] == end == len(arguments)


def padded(values: tuple[int, ...]) -> tuple[int, ...]:
    return values + (0,) * (AXES - len(values))


def geometry(captured: Captured, kernel: str, prefix: str, sizes: tuple[int, ...], *, inner: bool) -> Fields:
    tiling: Any = captured[f"tiling of {kernel}"]
    fields: Fields = {"channels": 3, "count": 7 * 8000, "axes": len(sizes), "size": padded(sizes), "wide": 0}
    fields |= {name: getattr(tiling, field) for name, field in PLAN.items()}
    fields |= {"channels_inner": int(inner), "row": sizes[-1], **division(sizes[-1])}
    return {f"{prefix}g.{name}": value for name, value in fields.items()}


def division(row: int) -> dict[str, int]:
    """Return the smallest shift, and its multiplier, that divide by ``row`` below 2^31."""
    shift = next(shift for shift in range(31) if 2 << shift >= row)
    return {"magic": (2 ** (32 + shift) + row - 1) // row, "shift": shift}


def array(name: str, a: Any, strides: tuple[int, ...], channel: int) -> Fields:
    pointer = 0 if a is None else a.data.ptr
    return {f"{name}.data": pointer, f"{name}.channel_stride": channel, f"{name}.stride": padded(strides)}


def vector(name: str, a: Any, stride: int = 1) -> Fields:
    return {f"{name}.data": 0 if a is None else a.data.ptr, f"{name}.stride": 0 if a is None else stride}


def pointers(**arrays: Any) -> Fields:
    return {name: 0 if a is None else a.data.ptr for name, a in arrays.items()}


def group(captured: Any, kernel: str, prefix: str) -> Fields:
    from polybn_cupy import launch

    return {
        f"{prefix}group.mail": captured[f"mail of {kernel}"].data.ptr,
        f"{prefix}group.barriers": launch.barriers().data.ptr,
    }


def call(*, training: bool) -> tuple[Any, ...]:
    """Arrays whose fields all differ, so that confusion shows: gamma of stride 2, dy in NHWC, a mask of stride 0."""
    case = sample(1, "float32", SHAPE, training=training)
    arrays = [cupy.array(a) for a in case.arrays().values() if a is not None]
    arrays[1] = cupy.array(np.repeat(arrays[1].get(), 2))[::2]
    dy = cupy.array(np.ascontiguousarray(case.dy.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    where = cupy.array(np.arange(7 * 3 * 4000).reshape(7, 3, 4000, 1) % 5 > 0)
    result, pullback = polybn.batch_norm_vjp(
        *arrays, training=training, momentum=0.75, eps=0.125, where=where, running_variance="unbiased"
    )
    return arrays, where, dy, result, pullback


JOINED, APART = (24000, 2, 1), 8000
MASKED = (12000, 1, 0), 4000


def test_forward(captured: Captured) -> None:
    (x, gamma, beta, mean, var), where, _, result, pullback = call(training=True)
    sizes = (7, 4000, 2)
    fields = geometry(captured, "forward", "", sizes, inner=False)
    fields |= array("x[0]", x, JOINED, APART) | array("y", result.y, JOINED, APART)
    assert where.strides == (12000, 4000, 1, 1)
    fields |= array("where", where, *MASKED) | group(captured, "forward", "")
    fields |= (
        vector("gamma", gamma, 2) | vector("beta", beta) | vector("running_mean", mean) | vector("running_var", var)
    )
    kept = pullback._residuals
    fields |= pointers(
        new_mean=result.running_mean, new_var=result.running_var, normalizers=kept.normalizers, count=kept.counts,
        mean=None, m2=None, low=None,
    )  # fmt: skip
    fields |= {"eps": 0.125, "momentum": 0.75, "share": 0.25, "unbiased": 1}
    check("forward.cu", "ForwardArguments", captured["forward"], fields)
    moments = polybn.moments(x)
    empty = array("where", None, (), 0) | array("y", None, (), 0)
    empty |= {
        f"{name}.{part}": 0 for name in ("gamma", "beta", "running_mean", "running_var") for part in ("data", "stride")
    }
    last = geometry(captured, "forward", "", (7, 8000), inner=False) | array("x[0]", x, (24000, 1), 8000)
    changed: Fields = {name: empty.get(name, value) for name, value in (fields | last).items()}
    changed |= pointers(
        new_mean=None, new_var=None, normalizers=None, count=moments.count, mean=moments.mean, m2=moments.m2,
        low=moments.low,
    )  # fmt: skip
    changed |= {"eps": 0.0, "momentum": 1.0, "share": 0.0, "unbiased": 0}
    check("forward.cu", "ForwardArguments", captured["forward"], changed)


def test_inference(captured: Captured) -> None:
    (x, gamma, beta, mean, var), where, _, result, pullback = call(training=False)
    fields = geometry(captured, "inference", "", (7, 4000, 2), inner=False)
    fields |= array("x[0]", x, JOINED, APART) | array("y", result.y, JOINED, APART) | array("where", where, *MASKED)
    fields |= (
        vector("gamma", gamma, 2) | vector("beta", beta) | vector("running_mean", mean) | vector("running_var", var)
    )
    kept = pullback._residuals.normalizers
    fields |= pointers(new_mean=result.running_mean, new_var=result.running_var, normalizers=kept)
    check("inference.cu", "InferenceArguments", captured["inference"], fields | {"eps": 0.125})


LAST = (24000, 6, 3), 1
"""The strides of dy."""


def operands(captured: Captured, kernel: str, arrays: dict[str, Any], where: Any, gamma: Any, pullback: Any) -> Fields:
    fields = geometry(captured, kernel, "in.", (7, 4000, 2), inner=False)
    for path, (a, strides) in arrays.items():
        fields |= array(f"in.{path}", a, *strides)
    fields |= array("in.where", where, *MASKED) | group(captured, kernel, "in.") | vector("in.gamma", gamma, 2)
    kept = pullback._residuals
    return fields | {"in.normalizers": kept.normalizers.data.ptr} | vector("in.counts", kept.counts)


@pytest.mark.parametrize("training", [True, False])
def test_backward_and_second(captured: Captured, training: bool) -> None:
    (x, gamma, *_), where, dy, _, pullback = call(training=training)
    gradients, second = pullback.vjp(dy)
    near = JOINED, APART
    arrays = {"input[0]": (x, near), "input[1]": (dy, LAST), "output[0]": (gradients.x, near)}
    fields = operands(captured, "backward", arrays, where, gamma, pullback)
    fields |= pointers(
        dgamma=gradients.gamma, dbeta=gradients.beta, dmean=gradients.running_mean, dvar=gradients.running_var
    )
    check("backward.cu", "BackwardArguments", captured["backward"], fields | {"training": int(training)})
    cotangents = gradients._replace(gamma=cupy.array(np.ones(6, np.float32))[::2])
    found = second(cotangents)
    del arrays["output[0]"]
    arrays |= {"input[2]": (gradients.x, near), "output[0]": (found.dy, LAST), "output[1]": (found.x, near)}
    fields = operands(captured, "second", arrays, where, gamma, pullback)
    for name, a, stride in zip("bcef", cotangents[1:], (2, 1, 1, 1), strict=True):
        fields |= vector(name, a, stride)
    fields |= pointers(of_gamma=found.gamma, of_mean=found.running_mean, of_var=found.running_var)
    check("second.cu", "SecondArguments", captured["second"], fields | {"training": int(training)})


def test_merge_and_fold(captured: Captured) -> None:
    case = sample(2, "float32", (5, 3, 4), training=False)
    x, *vectors = (cupy.array(a) for a in case.arrays().values() if a is not None)
    a, b = polybn.moments(x), polybn.moments(x)
    merged = polybn.merge_moments(a, b)
    fields: Fields = {"channels": 3}
    for letter, part in (("a", a), ("b", b)):
        for name, value in part._asdict().items():
            fields |= vector(f"{name}_{letter}", value)
    check("vectors.cu", "MergeArguments", captured["merge"], fields | pointers(**merged._asdict()))
    affine = polybn.fold(*vectors, eps=0.125)
    fields = {"channels": 3}
    for name, value in zip(("gamma", "beta", "running_mean", "running_var"), vectors, strict=True):
        fields |= vector(name, value)
    check("vectors.cu", "FoldArguments", captured["fold"], fields | pointers(**affine._asdict()) | {"eps": 0.125})


def source(
    shape: tuple[int, ...], x: Any, read: Any, *, size: int = 1, sigmoid: bool = False, images: Any = None
) -> Fields:
    """Return the fields of a Map."""
    fields: Fields = {"channels": shape[0], "size": size, "sigmoid": int(sigmoid)}
    for name, side in zip(("height", "width"), shape[1:], strict=True):  # a number below 2^31, and its inverse in 2^32
        inverse = (2**32 - 1) // side
        fields[name] = side + ((inverse - 2**32 if inverse >= 2**31 else inverse) << 32)
    pixels, order, progress = images or (None, None, None)
    fields |= pointers(x=x, dx=read.dx, kept=read._kept, images=pixels, order=order, progress=progress)
    return {f"in.{name}": value for name, value in fields.items()}


def made(*shape: int) -> Any:
    return cupy.zeros(shape, np.float32)


def test_layers_with_weights(captured: Captured) -> None:
    from polybn_cupy import layers
    from polybn_cupy.tasks import cut, patch

    x = made(6, 2, 14, 16)
    read = layers.Source((2, 14, 16), 6, size=2, sigmoid=True, wanted=True)
    values = {"weight": made(5, 2, 3, 3), "bias": made(5)}
    layer: Any = layers.Convolution(values, read, 6, kernel=3)
    of_map = source((2, 7, 8), x, read, size=2, sigmoid=True)
    layer.forward(x, training=True)
    rest = pointers(**values, dy=None, y=layer._y, partials=layer._partials)
    numbers: Fields = {"n": 6, "features": 5}
    cuts = {"forward": cut(2, 7, 5, 5, 6, 3), "spread": cut(5, 5, 2, 7, 8, 3)}
    for name, divided in cuts.items():
        numbers |= {f"{name}.{field}": getattr(divided, field) for field in ("stage", "pitch", "shares", "blocks")}
    weigh = patch(6, (2, 7, 8), 5, 3)
    numbers |= {"spread_blocks": 6, "slices": 6, "together": 1, "channels_each": 2, "features_each": 5}
    numbers |= {"pieces": weigh.pieces, "pitch": weigh.pitch, "dy_pitch": 8}
    check("convolution.cu", "Convolution", captured["convolve"], of_map | numbers | rest)
    dy = made(6, 5, 5, 6)
    layer.backward(dy)
    check("convolution.cu", "Convolution", captured["pull"], of_map | numbers | rest | {"dy": dy.data.ptr})
    values = {"weight": made(5, 112), "bias": made(5)}
    layer = layers.Dense(values, read, 6, last=False)
    of_map = source((2, 7, 8), x, read, size=2, sigmoid=True)
    layer.forward(x, training=True)
    rest = pointers(**values, dy=None, y=layer._y, partials=layer._partials)
    numbers = dict(zip(("n", "features", "slices", "spread_blocks"), (6, 5, 1, 4), strict=True))
    check("dense.cu", "Dense", captured["multiply"], of_map | numbers | rest)
    dy = made(6, 5)
    layer.backward(dy)
    check("dense.cu", "Dense", captured["multiply_back"], of_map | numbers | rest | {"dy": dy.data.ptr})
    (update,) = layer.updates
    table, each = update.pack(), layers.DESCENT_BYTES
    assert len(table) == -(-5 * 113 // 256) * each
    descent = {"first": 256, "rows": 5, "columns": 112, "slices": 1, "shares": 1}
    check("network.cu", "Descent", table[each : 2 * each], descent | pointers(**values, gradient=layer._partials))


def test_many_slices_are_shared() -> None:
    """Eight threads divide the sum of 128 slices, so a block has 32 elements, and the last one fewer."""
    from polybn_cupy import layers

    table = layers.Update(made(7, 9), None, made(128, 7, 9), 128).pack()
    assert [struct.unpack_from("<5q", table, at) for at in range(0, len(table), layers.DESCENT_BYTES)] == [
        (0, 7, 9, 128, 8), (32, 7, 9, 128, 8),
    ]  # fmt: skip


def test_a_pool(captured: Captured) -> None:
    from polybn_cupy import layers

    x, read = made(6, 2, 14, 16), layers.Source((2, 14, 16), 6, size=2, sigmoid=True, wanted=True)
    pool: Any = layers.Pool(read, 6)
    pool.forward(x, training=True)
    of_map = source((2, 7, 8), x, read, size=2, sigmoid=True)
    check("network.cu", "Pool", captured["pool"], of_map | {"n": 6} | pointers(dy=None, y=pool._y))
    dy = made(6, 2, 7, 8)
    pool.backward(dy)
    check("network.cu", "Pool", captured["unpool"], of_map | {"n": 6} | pointers(dy=dy, y=pool._y))


def test_batches(captured: Captured) -> None:
    from polybn.lenet import networks
    from polybn_cupy import layers

    network = networks.lenet()
    program: Any = compile(network, polybn.backend("cupy"), networks.initial_state(network, 0), batch_size=2)
    random = np.random.default_rng(0)
    data = program.place(random.integers(0, 256, (2, 1, 28, 28), np.uint8), random.integers(0, 10, 2, np.uint8))
    list(program.train_epoch(data, np.arange(2), learning_rate=0.1))
    chain = program._chains[2]
    sizes: Fields = {"n": 2, "classes": 10}
    last = chain._layers[-1]
    rest = pointers(logits=last._y, gradient=chain._gradient, scores=data.scores, found=chain._found)
    given = pointers(labels=data.labels, order=data.order, progress=data.trained)
    batch = sizes | given | rest
    of_last = {f"batch.{name}": value for name, value in batch.items()}
    of_last |= source((84, 1, 1), chain._layers[-2]._outputs.y, last._source, sigmoid=True)
    of_last |= pointers(**last._values, partials=last._partials)
    check("network.cu", "Last", captured["conclude"], of_last)
    descents: Fields = {"each": chain._updates.data.ptr, "n": 2, "found_blocks": 1}
    descents |= pointers(found=chain._found, losses=data.losses, rate=program._rate, progress=data.trained)
    check("network.cu", "Descents", captured["descend"], descents)
    updates = [update for layer in chain._layers for update in layer.updates]
    assert chain._updates.get().tobytes() == b"".join(update.pack() for update in updates)
    assert len(updates) == 5 + 2 * 4
    images, read = layers.Images(data.images, data.order, data.trained), chain._layers[0]._source
    of_map = source((1, 28, 28), None, read, images=images)
    assert struct.unpack("<11q", read.pack(images)) == tuple(of_map.values())
    program.logits(data)
    check("network.cu", "Batch", captured["deliver"], batch | pointers(progress=data.scored))


def test_the_loss_of_a_network_without_a_last_dense_layer(captured: Captured) -> None:
    from polybn.lenet import networks

    network = networks.Network((1, 3, 3), (networks.Dense(4), networks.Sigmoid()))
    program: Any = compile(network, polybn.backend("cupy"), networks.initial_state(network, 0), batch_size=2)
    data = program.place(np.zeros((2, 1, 3, 3), np.uint8), np.zeros(2, np.uint8))
    list(program.train_epoch(data, np.arange(2), learning_rate=0.1))
    chain = program._chains[2]
    rest = pointers(logits=chain._layers[-1]._y, gradient=chain._gradient, scores=data.scores, found=chain._found)
    given = pointers(labels=data.labels, order=data.order, progress=data.trained)
    check("network.cu", "Batch", captured["judge"], {"n": 2, "classes": 4} | given | rest)
