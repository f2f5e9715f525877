"""Files of other frameworks: their batch norms are found, with every bit, and converted to others."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polybn import dialects, inspection, model_files
from polybn.inspection import words as inspection_words
from polybn.model_files import Model, ModelFileError, Norm, errors, gluon, npz, safetensors, writing
from polybn.model_files.left_out import left_out
from polybn.spec import DomainError
from tests.support import models
from tests.support.command import Polybn
from tests.support.models import missing, states

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(bool(missing(needed)), reason=f"{missing(needed)} not installed"))
    for kind, needed in models.LIBRARIES.items()
]


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norms_are_found_with_every_bit(kind: str, tmp_path: Path) -> None:
    made = models.MAKERS[kind](tmp_path)
    model = model_files.read(made.path)
    assert sorted(norm.name for norm in model.norms) == sorted(made.states)
    if kind in ("keras_whole", "keras2"):
        assert [norm.name for norm in model.norms] == list(made.states)  # as in the network, not by the alphabet
    for norm in model.norms:
        assert norm.dialect == made.dialect
        assert norm.state.keys() == made.states[norm.name].keys()
        for name, array in made.states[norm.name].items():
            assert norm.state[name].dtype == array.dtype
            assert norm.state[name].tobytes() == array.tobytes()
            assert norm.state[name].shape == (array.shape if array.ndim == 0 else (array.size,))
    if made.options:
        assert {norm.name: dict(norm.options) for norm in model.norms}[next(iter(made.states))] == made.options


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "orbax" not in str(kind.values[0])])  # a folder
@pytest.mark.parametrize("name", ["model", "model.bin", "model.onnx", "model.msgpack", "model.safetensors"])
def test_a_file_is_known_under_any_name(kind: str, name: str, tmp_path: Path) -> None:
    made = models.MAKERS[kind](tmp_path)
    want = model_files.read(made.path)
    model = model_files.read(made.path.rename(tmp_path / name))
    assert model.format == want.format
    assert [norm.name for norm in model.norms] == [norm.name for norm in want.norms]


@pytest.mark.parametrize(
    "start", [b"\x08\x01\x12\xf4\x03\x0a\x01a\x12", b"\x08\x04\x12\x20\x0a\x10input", b"\x81\x01\x02\x03\x04"]
)
def test_what_begins_much_like_onnx_or_flax_is_not_taken_for_it(start: bytes, tmp_path: Path) -> None:
    """A TensorFlow SavedModel, a Core ML model, and a mapping of numbers."""
    (tmp_path / "model.bin").write_bytes(start + bytes(99))
    with pytest.raises(ModelFileError, match=r"model\.bin must be one of \.safetensors, "):
        model_files.read(tmp_path / "model.bin")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_can_be_inspected(kind: str, tmp_path: Path) -> None:
    """A trained layer has statistics without faults."""
    findings = inspection.inspect(model_files.read(models.MAKERS[kind](tmp_path).path))
    assert [finding for finding in findings if finding.level == "error"] == []


def test_weights_alone_do_not_say_whether_gamma_is_missing(tmp_path: Path) -> None:
    if missing(models.LIBRARIES["keras_weights"]):
        pytest.skip("keras is not installed")
    model = model_files.read(models.keras_weights(tmp_path).path)
    (last,) = [norm for norm in model.norms if norm.name == "last"]
    assert last.lacks.startswith("gamma or beta is missing")
    with pytest.raises(DomainError, match=r"the state of last must be whole; got one where gamma or beta is missing"):
        writing.convert_norms(model, dialects.PYTORCH)


def keras_weights(path: Path, **layers: dict[int, float]) -> None:
    """Write the weights of batch norms as Keras 3 does, each filled with one number."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for place, (name, weights) in enumerate(layers.items()):
            group = file.create_group(f"layers/batch_normalization{f'_{place}' if place else ''}/vars")
            group.attrs["name"] = name
            for number, value in weights.items():
                group[str(number)] = np.full(3, value, np.float32)


THREE, FOUR = {0: 2.0, 1: 5.0, 2: 7.0}, {0: 3.0, 1: 4.0, 2: 5.0, 3: 7.0}


@pytest.mark.parametrize(("word", "own"), [("scale", "bias"), ("center", "weight")])
@pytest.mark.parametrize("layer", ["", "a"])
def test_an_option_says_whether_gamma_or_beta_is_absent(word: str, own: str, layer: str, tmp_path: Path) -> None:
    """It is not about a layer that has both."""
    keras_weights(tmp_path / "m.weights.h5", a=THREE, whole=FOUR)
    model = model_files.read(tmp_path / "m.weights.h5")
    options = {layer: {word: False, "epsilon": 0.25}}
    made, whole = writing.convert_norms(model, dialects.PYTORCH, options=options).norms
    filled = {"weight": 1.0, "bias": 0.0, "running_mean": 5.0, "running_var": 7.0} | {own: 2.0}
    assert {name: made.state[name].tolist() for name in filled} == {name: [v] * 3 for name, v in filled.items()}
    assert made.options["eps"] == 0.25
    assert whole.state["weight"].tolist() == [3.0] * 3
    assert (word in whole.options, whole.options.get("eps")) == (False, None if layer else 0.25)


@pytest.mark.parametrize("said", [{}, {"scale": True}, {"scale": False, "center": False}])
def test_without_such_an_option_it_is_asked_for(said: dict[str, bool], tmp_path: Path) -> None:
    keras_weights(tmp_path / "m.weights.h5", **{"a b": THREE})
    model = model_files.read(tmp_path / "m.weights.h5")
    with pytest.raises(DomainError, match=r"takes --option 'a b\.scale=False' or --option 'a b\.center=False'$"):
        writing.convert_norms(model, dialects.PYTORCH, options={"a b": said})
    (row,) = inspection_words.table(model, [])
    assert row[4:6] == ("not said", "not said")


def test_the_command_that_is_asked_for_works(polybn_: Polybn) -> None:
    keras_weights(Path("m.weights.h5"), a=THREE)
    said = polybn_("convert", "m.weights.h5", "a.npz", "--to", "keras3")
    words = shlex.split(said.err)
    assert polybn_("convert", "m.weights.h5", "a.npz", "--to", "keras3", *words[-5:-3]).code == 0
    assert sorted(np.load("a.npz")) == ["a/beta", "a/moving_mean", "a/moving_variance"]


def test_an_option_of_gamma_is_refused_where_the_file_has_both(tmp_path: Path) -> None:
    keras_weights(tmp_path / "m.weights.h5", whole=FOUR)
    with pytest.raises(DomainError, match=r"options must be in the words of keras3 .*; got 'scale'"):
        writing.convert_norms(
            model_files.read(tmp_path / "m.weights.h5"), dialects.PYTORCH, options={"": {"scale": False}}
        )


@pytest.mark.parametrize("lost", range(3))
def test_weights_with_a_gap_are_damaged_and_no_statistics_are_guessed(lost: int, tmp_path: Path) -> None:
    left = {number: value for number, value in FOUR.items() if number != lost}
    keras_weights(tmp_path / "m.weights.h5", a=left)
    (norm,) = model_files.read(tmp_path / "m.weights.h5").norms
    numbers = ", ".join(map(str, left))
    assert (norm.state, norm.lacks) == (
        {}, f"its weights are numbered {numbers}, so that one is lost: save the model again",
    )  # fmt: skip


# Names.


@pytest.mark.parametrize(
    ("names", "layer", "dialect"),
    [
        (("a.running_mean", "a.running_var"), "a", "pytorch"),
        (("a.b.weight", "a.b.bias", "a.b.running_mean", "a.b.running_var"), "a.b", "pytorch"),
        (("running_mean", "running_var", "weight", "bias"), "", "pytorch"),
        (("a.gamma", "a.running_mean", "a.running_var"), "a", "polybn"),
        (("a/gamma:0", "a/moving_mean:0", "a/moving_variance:0"), "a", "keras3"),
        (("bn_gamma", "bn_beta", "bn_moving_mean", "bn_moving_var"), "bn", "mxnet_native"),
        (("params.a.scale", "batch_stats.a.mean", "batch_stats.a.var"), "a", "flax_linen"),
        (("params/x/a/bias", "batch_stats/x/a/mean", "batch_stats/x/a/var"), "x/a", "flax_linen"),
        (("batch_stats/x/a/mean", "batch_stats/x/a/var"), "x/a", "flax_linen"),
        (("batch_stats.a.mean", "batch_stats.a.var"), "a", "flax_linen"),
    ],
)
def test_names_tell_the_dialect(names: tuple[str, ...], layer: str, dialect: str) -> None:
    arrays = states(*names)
    (norm,) = model_files.names.find(model_files.tensors.from_arrays(arrays))
    assert (norm.name, norm.dialect, len(norm.state)) == (layer, dialect, len(names))


@pytest.mark.parametrize(
    "names",
    [
        ("a.weight", "a.bias"),
        ("a.running_mean",),
        ("image.mean", "image.var"),
        ("a.running_mean", "b.running_var"),
        ("arunning_mean", "arunning_var"),
    ],
)
def test_other_names_are_left_alone(names: tuple[str, ...]) -> None:
    assert model_files.names.find(model_files.tensors.from_arrays(states(*names))) == []


def test_arrays_of_other_sizes_do_not_belong_together() -> None:
    arrays = states("a.running_mean", "a.running_var") | states("a.weight", size=3)
    assert model_files.names.find(model_files.tensors.from_arrays(arrays)) == []


def test_a_mean_of_images_is_no_batch_norm() -> None:
    arrays = {name: np.zeros((3, 4), np.float32) for name in ("a.running_mean", "a.running_var")}
    assert model_files.names.find(model_files.tensors.from_arrays(arrays)) == []


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    header = b'{"a.running_mean":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},'
    header += b'"a.running_var":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
    data = np.array([0x3FC0, 0xC2F7], "<u2").tobytes() + np.array([4, 9], "<f4").tobytes()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    (norm,) = model_files.read(tmp_path / "a.safetensors").norms
    assert norm.state["running_mean"].tolist() == [1.5, -123.5]


# Conversion.


def test_a_file_is_carried_to_every_dialect_and_back(tmp_path: Path) -> None:
    state = states("running_mean", "running_var", "weight", "bias")
    model = Model("safetensors", [Norm("a.bn", "pytorch", state)], 4)
    for target, ending in (("keras3", ".npz"), ("flax_linen", ".msgpack"), ("gluon", ".params"), ("onnx15", ".npz")):
        if ending == ".msgpack" and missing(("msgpack",)):
            continue
        made = writing.convert_norms(model, dialects.DIALECTS[target], counts={"": 7})
        writing.write(made.norms, tmp_path / f"{target}{ending}")
        again = model_files.read(tmp_path / f"{target}{ending}")
        assert [norm.dialect for norm in again.norms] == [target]
        back = writing.convert_norms(again, dialects.PYTORCH, counts={"": 7}).norms[0]
        for name, array in state.items():
            assert np.allclose(back.state[name], array, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ending", writing.ENDINGS)
@pytest.mark.parametrize("name", dialects.DIALECTS)
def test_layers_without_gamma_and_beta_are_read_back(name: str, ending: str, tmp_path: Path) -> None:
    """From what the file says of itself, and everywhere if it is said which dialect is meant."""
    if ending == ".msgpack" and missing(("msgpack",)):
        pytest.skip("msgpack is not installed")
    whole = Norm("a", "pytorch", states("running_mean", "running_var", "weight", "bias"))
    bare = Norm("b.c", "pytorch", states("running_mean", "running_var"))
    made = writing.convert_norms(
        Model("safetensors", [whole, bare], 6), name, options={"": {"momentum": 0.25, "eps": 0.5}}
    ).norms
    writing.write(made, tmp_path / f"a{ending}")
    for first in ((), (name,)) if ending in (".safetensors", ".msgpack") else ((name,),):
        found = model_files.read(tmp_path / f"a{ending}", first=first).norms
        assert {norm.name.replace("/", "."): len(norm.state) for norm in found} == {
            norm.name: len(norm.state) for norm in made
        }
        assert ending != ".safetensors" or {norm.dialect for norm in found} == {name}
        left = model_files.read(tmp_path / f"a{ending}", first=first).left_out
        assert [each for each in left if each.level == "warning"] == []


@pytest.mark.skipif(bool(missing(("keras", "h5py"))), reason="keras or h5py is missing")
@pytest.mark.parametrize("named", [True, False])
def test_weights_of_keras_without_gamma_and_beta_are_known_by_their_group(named: bool, tmp_path: Path) -> None:
    """A layer normalization has two vectors, too, and is none."""
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    import keras

    plain = {"center": False, "scale": False}
    layers = [keras.layers.BatchNormalization(**plain, name=f"bn{number}") for number in (1, 2)]
    net = keras.Sequential([keras.Input((5,)), *layers, keras.layers.LayerNormalization(name="other")])
    net.save_weights(tmp_path / "a.weights.h5")
    if not named:
        models.without_names(tmp_path / "a.weights.h5")
    found = model_files.read(tmp_path / "a.weights.h5").norms
    assert [norm.name for norm in found] == (
        ["bn1", "bn2"] if named else ["batch_normalization", "batch_normalization_1"]
    )
    assert [list(norm.state) for norm in found] == [["moving_mean", "moving_variance"]] * 2
    assert [norm.lacks for norm in found] == ["", ""]


@pytest.mark.parametrize("ending", writing.ENDINGS)
@pytest.mark.parametrize("name", dialects.DIALECTS)
def test_what_is_written_in_a_dialect_is_read_back(name: str, ending: str, tmp_path: Path) -> None:
    """Also under names that several dialects share, if it is said which is meant."""
    if ending == ".msgpack" and missing(("msgpack",)):
        pytest.skip("msgpack is not installed")
    state = states("running_mean", "running_var", "weight", "bias")
    model = Model("safetensors", [Norm("block.bn", "pytorch", state, {"momentum": 0.25, "eps": 0.002})], 4)
    (made,) = writing.convert_norms(model, dialects.DIALECTS[name]).norms
    writing.write([made], tmp_path / f"a{ending}")
    (found,) = model_files.read(tmp_path / f"a{ending}").norms
    (meant,) = model_files.read(tmp_path / f"a{ending}", first=(name,)).norms
    assert meant.dialect == name
    for norm in (found, meant):
        assert {own: array.ravel().tolist() for own, array in norm.state.items()} == {
            own: array.ravel().tolist() for own, array in made.state.items()
        }
    assert ending != ".safetensors" or meant.options == made.options
    inspection.inspect(Model("any", [meant], 4))


@pytest.mark.skipif(bool(missing(("mxnet",))), reason="mxnet is missing")
def test_gluon_itself_loads_a_layer_that_had_no_gamma_and_beta(tmp_path: Path) -> None:
    """Gluon keeps both whatever a layer is made with, and asks for both."""
    from polybn_mxnet.compat import mxnet as mx

    model = Model("safetensors", [Norm("bn", "pytorch", states("running_mean", "running_var"))], 2)
    made = writing.convert_norms(model, "gluon").norms
    writing.write(made, tmp_path / "a.params")
    block = mx.gluon.nn.HybridSequential()
    block.bn = mx.gluon.nn.BatchNorm(center=False, scale=False, in_channels=5)
    block.load_parameters(str(tmp_path / "a.params"))
    assert {own: value.tolist() for own, value in made[0].state.items()} == {
        own: getattr(block.bn, own).data().asnumpy().tolist()
        for own in ("gamma", "beta", "running_mean", "running_var")
    }
    assert made[0].state["gamma"].tolist() == [1] * 5


def test_only_what_was_said_is_in_the_file(tmp_path: Path) -> None:
    """Neither writing nor reading takes a default for a fact."""
    state = states("running_mean", "running_var")
    model = Model("safetensors", [Norm("a", "pytorch", state), Norm("b", "pytorch", state)], 4)
    said = {"": {"momentum": 0.25}, "b": {"eps": 0.002}}
    made = writing.convert_norms(model, dialects.KERAS3, options=said)
    assert [norm.options for norm in made.norms] == [{"momentum": 0.75}, {"momentum": 0.75, "epsilon": 0.002}]
    unsaid = [layers for sentence, layers in made.notes if sentence.startswith("The file does not say eps")]
    assert unsaid == [("a",)]
    writing.write(made.norms, tmp_path / "a.safetensors")
    assert [norm.options for norm in model_files.read(tmp_path / "a.safetensors").norms] == [
        norm.options for norm in made.norms
    ]
    with pytest.raises(DomainError, match=r"options must name layers of the model, a, b; got 'c'"):
        writing.convert_norms(model, dialects.KERAS3, options={"c": {"eps": 0.5}})


def test_an_operator_that_would_ignore_gamma_is_told_not_to() -> None:
    model = Model("safetensors", [Norm("a", "pytorch", states("running_mean", "running_var", "weight", "bias"))], 4)
    assert writing.convert_norms(model, dialects.MXNET_NATIVE).norms[0].options == {"fix_gamma": False}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("mlx", "eps=1e-05, the default of pytorch and of mlx, is right"),
        ("pytorch", "eps=1e-05, the default of pytorch, is right"),
    ],
)
def test_an_eps_that_nothing_says_is_spoken_of_even_if_both_take_the_same(target: str, words: str) -> None:
    model = Model("safetensors", [Norm("a", "pytorch", states("running_mean", "running_var"))], 2)
    notes = [sentence for sentence, _ in writing.convert_norms(model, dialects.DIALECTS[target]).notes]
    assert any(f"The file does not say eps: {words} unless the model was made with another." in note for note in notes)


@pytest.mark.parametrize("ending", writing.ENDINGS)
def test_big_endian_arrays_are_written_as_what_they_are(ending: str, tmp_path: Path) -> None:
    if ending == ".msgpack" and missing(("msgpack",)):
        pytest.skip("msgpack is not installed")
    state = {name: np.arange(1, 4, dtype=">f4") for name in ("scale", "bias", "mean", "var")}
    path = tmp_path / f"a{ending}"
    writing.write([Norm("a", "flax_linen", state)], path)
    if ending == ".msgpack":
        (norm,) = model_files.read(path).norms
        assert {name: array.tolist() for name, array in norm.state.items()} == {name: [1, 2, 3] for name in state}
    else:
        with path.open("rb") as file:
            flat = {".safetensors": safetensors.read, ".params": gluon.read}.get(ending)
            tensors = flat(file, path.stat().st_size) if flat else npz.read(file)
            assert all(tensors.read(name).tolist() == [1, 2, 3] for name in tensors.shapes)


def test_a_count_belongs_to_a_layer() -> None:
    state = {"running_mean": np.ones(3), "running_var": np.full(3, 12.0)}
    model = Model("safetensors", [Norm("a", "pytorch", state), Norm("b", "pytorch", state)], 4)
    made = writing.convert_norms(model, dialects.KERAS3, counts={"": 3, "b": 4})
    assert [norm.state["moving_variance"].tolist() for norm in made.norms] == [[8.0] * 3, [9.0] * 3]
    with pytest.raises(DomainError, match=r"counts must name layers of the model, a, b; got 'c'"):
        writing.convert_norms(model, dialects.KERAS3, counts={"c": 4})


def test_options_are_said_in_the_words_of_the_target() -> None:
    state = {"running_mean": np.ones(3), "running_var": np.ones(3)}
    model = Model("Keras", [Norm("a", "pytorch", state, {"momentum": 0.3, "eps": 1e-3})], 2)
    options = writing.convert_norms(model, dialects.KERAS3).norms[0].options
    assert options == {"momentum": 0.7, "epsilon": 1e-3}


@pytest.mark.parametrize("key", ["attrs", "attr", "param"])
def test_symbols_of_every_age_are_read(key: str, tmp_path: Path) -> None:
    arrays = states("bn_gamma", "bn_beta", "bn_moving_mean", "bn_moving_var")
    (tmp_path / "net-0000.params").write_bytes(gluon.encode(arrays))
    nodes: list[Any] = [{"op": "null", "name": name} for name in ("x", *arrays)]
    nodes.append({"op": "BatchNorm", "inputs": [[n, 0, 0] for n in range(5)], key: {"eps": "0.5"}})
    (tmp_path / "net-symbol.json").write_text(json.dumps({"nodes": nodes}))
    assert model_files.read(tmp_path / "net-0000.params").norms[0].options["eps"] == 0.5
    (tmp_path / "net-symbol.json").write_text("{oops")
    with pytest.raises(ModelFileError, match=r"net-symbol\.json must be an undamaged symbol of MXNet; got JSON"):
        model_files.read(tmp_path / "net-0000.params")


@pytest.mark.parametrize(
    ("ending", "dtype"), [(".params", "int16"), (".params", "longdouble"), (".safetensors", "longdouble")]
)
def test_a_dtype_that_a_format_lacks_is_refused(ending: str, dtype: str, tmp_path: Path) -> None:
    state = {"running_mean": np.ones(3, dtype), "running_var": np.ones(3, dtype)}
    words = rf"a\.running_mean must be of a dtype that {ending} has; got {np.dtype(dtype)}"
    with pytest.raises(ModelFileError, match=words):
        writing.write([Norm("a", "pytorch", state)], tmp_path / f"a{ending}")


def test_float8_is_refused_in_words(tmp_path: Path) -> None:
    header = b'{"a.running_mean":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},'
    header += b'"a.running_var":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[2,4]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ModelFileError, match=r"must hold 'a\.running_mean' in one of F16, .*; got 'F8_E4M3'"):
        model_files.read(tmp_path / "a.safetensors")


@pytest.mark.skipif(bool(missing(("torch",))), reason="torch is missing")
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_small_floats_of_pytorch_are_read_as_float32(dtype: str, tmp_path: Path) -> None:
    import torch

    state = {f"a.running_{name}": torch.tensor([1.5, 4]).to(getattr(torch, dtype)) for name in ("mean", "var")}
    torch.save(state, tmp_path / "a.pt")
    (norm,) = model_files.read(tmp_path / "a.pt").norms
    assert norm.state["running_mean"].tolist() == [1.5, 4]
    assert norm.state["running_mean"].dtype == np.float32


def test_an_axis_that_moves_is_said() -> None:
    state = {"moving_mean": np.ones(3), "moving_variance": np.ones(3)}
    model = Model("Keras", [Norm("a", "keras3", state, {"momentum": 0.9, "epsilon": 1e-3, "axis": -1})], 2)
    notes = writing.convert_norms(model, dialects.PYTORCH).notes
    assert ("The channel axis -1 becomes 1, the only one of pytorch: move the data's axis.", ("a",)) in notes


# Names that meet.


@pytest.mark.parametrize("ending", [".npz", ".msgpack"])
def test_layers_that_would_replace_each_other_are_not_written(ending: str, tmp_path: Path) -> None:
    if ending == ".msgpack" and missing(("msgpack",)):
        pytest.skip("msgpack is not installed")
    state = {name: np.ones(3) for name in ("scale", "bias", "mean", "var")}
    norms = [Norm(name, "flax_linen", state) for name in ("a/b", "a/b" if ending == ".npz" else "a.b")]
    with pytest.raises(ModelFileError, match="layers must have names that differ in the output"):
        writing.write(norms, tmp_path / f"a{ending}")
    assert list(tmp_path.iterdir()) == []


def test_layers_of_two_collections_keep_their_whole_names() -> None:
    one = states("params.a.running_mean", "params.a.running_var")
    two = states("state.a.running_mean", "state.a.running_var")
    norms = model_files.names.find(model_files.tensors.from_arrays(one | two))
    assert [norm.name for norm in norms] == ["params.a", "state.a"]


@pytest.mark.skipif(bool(missing(("onnx", "torch"))), reason="onnx or torch is missing")
def test_batch_norms_of_the_same_statistics_are_named_after_their_outputs(tmp_path: Path) -> None:
    model = model_files.onnx.parse(models.onnx(tmp_path).path.read_bytes())
    model.graph.node[4].input[3] = "bn_running_mean"
    model.graph.initializer.add().CopyFrom(model.graph.initializer[2])
    model.graph.initializer[-1].name = "bn_running_mean"
    assert [found.norm.name for found in model_files.onnx.find(model)] == ["b", "y"]


@pytest.mark.skipif(bool(missing(("onnx", "torch"))), reason="onnx or torch is missing")
def test_equal_tensors_that_an_exporter_shares_are_found(tmp_path: Path) -> None:
    """As those of PyTorch do: a node passes on the tensor that is kept, even into another graph."""
    import onnx

    model = model_files.onnx.parse(models.onnx(tmp_path).path.read_bytes())
    make, graph = onnx.helper.make_node, model.graph
    whole = model_files.onnx.find(model)[0].norm.state
    branch = onnx.helper.make_graph([make("BatchNormalization", ["a", *graph.node[1].input[1:]], ["z"])], "b", [], [])
    graph.node.insert(0, make("Identity", ["bn.bias"], ["i"]))
    graph.node.insert(1, make("Identity", ["i"], ["j"]))
    graph.node[3].input[2] = "j"
    branch.node[0].input[2] = "j"
    graph.node.append(make("If", ["c"], ["w"], then_branch=branch))
    first, _, inner = (found.norm for found in model_files.onnx.find(model))
    for norm in (first, inner):
        assert (norm.state["B"].tolist(), norm.lacks) == (whole["B"].tolist(), "")
    graph.node[0].input[0] = "j"
    assert model_files.onnx.find(model)[0].norm.lacks == "B is computed by the graph"
    graph.node[3].input[1] = "j"
    assert model_files.onnx.find(model)[0].norm.lacks == "scale and B are computed by the graph"


@pytest.mark.skipif(bool(missing(("flax", "orbax"))), reason="flax or orbax is missing")
def test_the_folder_of_a_checkpoint_manager_leads_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """To the only checkpoint in it, or to the name of the last one."""
    import orbax.checkpoint as ocp

    state = {"params": {"bn": states("scale", "bias")}, "batch_stats": {"bn": states("mean", "var")}}
    with ocp.CheckpointManager((tmp_path / "all").resolve()) as manager:
        manager.save(7, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        for folder in (tmp_path / "all", tmp_path / "all" / "7", tmp_path / "all" / "7" / "default"):
            capfd.readouterr()
            assert [norm.name for norm in model_files.read(folder).norms] == ["bn"]
            assert capfd.readouterr() == ("", "")
        manager.save(10, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
    last = re.escape(str(tmp_path / "all" / "10" / "default"))
    with pytest.raises(ModelFileError, match=rf"all must be one checkpoint; got 2 in it \(name one, such as {last}\)"):
        model_files.read(tmp_path / "all")


def test_a_folder_of_other_folders_is_no_checkpoint(tmp_path: Path) -> None:
    """Links are not followed, and nothing is looked for far below."""
    (tmp_path / "deep" / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "deep" / "a" / "b" / "c" / "_METADATA").touch()
    (tmp_path / "deep" / "link").symlink_to(tmp_path / "deep" / "a" / "b" / "c")
    with pytest.raises(ModelFileError, match=r"deep must hold _METADATA of Orbax; got a directory without"):
        model_files.read(tmp_path / "deep")


@pytest.mark.skipif(bool(missing(("torch",))), reason="torch is missing")
def test_a_torchscript_program_is_said_to_be_one(tmp_path: Path) -> None:
    import torch

    net = torch.jit.trace(torch.nn.BatchNorm1d(3).eval(), torch.ones(2, 3))
    torch.jit.save(net, tmp_path / "a.pt")
    with pytest.raises(ModelFileError, match=r"a\.pt must hold a state dict; got a TorchScript program \(save the mod"):
        model_files.read(tmp_path / "a.pt")


@pytest.mark.skipif(bool(missing(("keras", "h5py"))), reason="keras or h5py is missing")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Keras on NumPy computes on uninitialised memory for a shape
def test_batch_norms_in_wrappers_and_layers_of_the_users_own_are_found(tmp_path: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    import keras

    class Own(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.inner = keras.layers.BatchNormalization(name="inner")
            self.first, self.second = (keras.layers.BatchNormalization(name="same") for _ in range(2))

        def build(self, shape: Any) -> None:
            for layer in (self.inner, self.first, self.second):
                layer.build(shape)

        def call(self, x: Any) -> Any:
            return self.inner(x)

    wrapped = keras.layers.TimeDistributed(keras.layers.BatchNormalization(epsilon=0.5, name="inner"), name="wrapped")
    keras.Sequential([keras.Input((4, 3, 5)), wrapped, Own(name="own")]).save(tmp_path / "a.keras")
    found = {norm.name: norm.options.get("epsilon") for norm in model_files.read(tmp_path / "a.keras").norms}
    assert found == {"wrapped/inner": 0.5, "own/inner": None, "own/first": None, "own/second": None}


@pytest.mark.parametrize(
    ("attributes", "taken"),
    [({"fix_gamma": "False"}, 3.0), ({"fix_gamma": "0"}, 3.0), ({"fix_gamma": "true"}, 1.0), ({}, 1.0), (None, None)],
)
def test_gamma_is_taken_for_1_where_the_symbol_says_so(
    attributes: dict[str, str] | None, taken: float | None, tmp_path: Path
) -> None:
    names = ("gamma", "beta", "moving_mean", "moving_var")
    (tmp_path / "net-0000.params").write_bytes(
        gluon.encode({f"bn_{name}": np.full(4, 3, np.float32) for name in names})
    )
    if attributes is not None:
        nodes: list[Any] = [{"op": "null", "name": name} for name in ("x", *(f"bn_{name}" for name in names))]
        nodes.append({"op": "BatchNorm", "name": "bn", "inputs": [[n, 0, 0] for n in range(5)], "attrs": attributes})
        (tmp_path / "net-symbol.json").write_text(json.dumps({"nodes": nodes}))
    model = model_files.read(tmp_path / "net-0000.params")
    if taken is None:
        with pytest.raises(DomainError, match=r"options must have fix_gamma where gamma is not 1; got none"):
            writing.convert_norms(model, dialects.PYTORCH)
        return
    assert dict(model.norms[0].options) == {"momentum": 0.9, "eps": 1e-3, "axis": 1, "fix_gamma": taken == 1}
    assert writing.convert_norms(model, dialects.PYTORCH).norms[0].state["weight"].tolist() == [taken] * 4


def test_a_later_kind_is_refused_with_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(ModelFileError, match=r"a\.gguf must be one of \.safetensors, .*; got b'GGUF"):
        model_files.read(tmp_path / "a.gguf")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "orbax" not in str(kind.values[0])])  # a folder
def test_a_file_that_is_cut_off_is_said_to_be(kind: str, tmp_path: Path) -> None:
    """At every length where the file still shows its kind."""
    path = models.MAKERS[kind](tmp_path).path
    data, cut = path.read_bytes(), tmp_path / f"cut{path.suffix}"
    for length in (20, 100, *(len(data) * part // 8 for part in range(1, 8)), len(data) - 20, len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(ModelFileError, match=r"cut\.\w+ must .*; got .* \(it may be cut off\)$"):
            model_files.read(cut)


def test_safetensors_that_are_cut_off_are_said_to_be(tmp_path: Path) -> None:
    data = safetensors.encode(states("bn.running_mean", "bn.running_var", size=64), {"polybn": "{}"})
    for length in (9, 20, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "a.safetensors").write_bytes(data[:length])
        with pytest.raises(ModelFileError, match=r"a\.safetensors must hold .*; got .* \(it may be cut off\)$"):
            model_files.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("names", "layers", "word"),
    [
        (("bn/mean", "bn/var"), ["bn"], "--from flax_linen"),
        (("a.bn1.weight", "a.bn1.bias"), ["a.bn1"], "track_running_stats=False"),
        (("a.norm1.weight", "a.norm1.bias"), [], ""),
        (("fc.weight", "fc.bias", "bn.running_mean", "bn.running_var", "bn.weight", "bn.bias"), [], ""),
        (("params/bn/scale", "params/bn/bias", "batch_stats/bn/mean", "batch_stats/bn/var"), [], ""),
        (("a/mean", "b/var"), [], ""),
        (("bn.running_mean", "bn.running_var", "b.bn.weight", "b.bn.bias"), ["b.bn"], "track_running_stats"),
    ],
)
def test_what_may_be_a_batch_norm_is_not_left_out_without_a_word(
    names: tuple[str, ...], layers: list[str], word: str, polybn_: Polybn, tmp_path: Path
) -> None:
    arrays = states(*names) | states("whole.running_mean", "whole.running_var")
    (tmp_path / "a.safetensors").write_bytes(safetensors.encode(arrays, {}))
    found = inspection.inspect(model_files.read(tmp_path / "a.safetensors"))
    left = [finding for finding in found if finding.kind == "is left out"]
    assert [finding.norm for finding in left] == layers
    assert all(finding.level == "note" and word in finding.sentence for finding in left)
    out = polybn_("convert", "a.safetensors", "b.npz", "--to", "keras3").out
    assert [line.partition(":")[0] for line in out.splitlines() if ": Left out: " in line] == layers


BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
MISSING = "an array is missing"


@pytest.mark.parametrize(
    ("names", "kind", "why"),
    [
        (BN[:3], MISSING, "has weight, bias and running_mean, but no running_var; save all"),
        (("moving_mean",), MISSING, "has moving_mean, but no moving_variance; save all"),
        (
            (*BN[:3], "runing_var"),
            MISSING,
            "but no running_var; if it is a batch norm, rename runing_var to running_var",
        ),
        (
            ("gamma", "beta", "mean", "variance"),
            "arrays are missing",
            "but no moving_mean and no moving_variance; if it is a batch norm, rename mean to moving_mean and variance "
            "to moving_variance in the file",
        ),
        (("scale", "bias", "mean", "vra"), MISSING, "but no var; if it is a batch norm, rename vra to var"),
        (("scale", "bias"), "statistics are missing", "save all variables, not params alone"),
        (("gamma", "beta"), "statistics are missing", "has gamma and beta but no running statistics"),
    ],
)
@pytest.mark.parametrize(("layer", "between"), [("a/bn", "/"), ("a.bn1", "."), ("bn", "_")])
def test_a_batch_norm_with_missing_or_misspelt_arrays_needs_a_look(
    names: tuple[str, ...], kind: str, why: str, layer: str, between: str
) -> None:
    shapes = {f"{layer}{between}{name}": (5,) for name in names} | {"fc.weight": (5, 5), "fc.bias": (5,)}
    (left,) = left_out(shapes, [])
    assert (left.layer, left.kind, left.level) == (layer, kind, "warning")
    assert why in left.why


def test_a_batch_norm_without_a_telling_name_is_known_by_its_arrays() -> None:
    names = [f"downsample.1.{name}" for name in (*BN[:3], "runing_var")]
    assert [left.layer for left in left_out(dict.fromkeys(names, (5,)), [])] == ["downsample.1"]


@pytest.mark.parametrize(
    "names",
    [
        ("norm.weight", "norm.bias", "norm.eps"),
        ("state.0.exp_avg", "state.0.exp_avg_sq", "state.0.step"),
        ("image.mean",),
        ("codes.weight", "codes.bias", "codes.cluster_size"),
        ("observed.running_mean", "observed.running_var", "observed.count"),
    ],
)
def test_what_is_no_batch_norm_gets_no_word(names: tuple[str, ...]) -> None:
    shapes = dict.fromkeys(names, (5,))
    assert list(left_out(shapes, [place.layer for place in model_files.names.places(shapes)])) == []


def test_arrays_of_other_shapes_are_said_with_their_shapes() -> None:
    shapes = {f"bn.{name}": (8,) for name in BN[:4]} | {"bn.running_var": (5,), "bn.num_batches_tracked": ()}
    (left,) = left_out(shapes, [])
    assert left.kind == "arrays differ in shape"
    assert left.why == "its arrays must be of one shape; got weight, bias and running_mean [8]; running_var [5]"


@pytest.mark.parametrize(
    ("names", "read", "renamed"),
    [
        (("weihgt", *BN[1:4]), True, "weihgt to weight"),
        (("scale", *BN[1:4]), True, "scale to weight"),
        (("scale", "offset", *BN[2:4]), False, "scale to weight and offset to bias"),
        (("gama", "beta", "moving_mean", "moving_variance"), True, "gama to gamma"),
    ],
)
def test_a_misspelt_gamma_is_said_of_a_layer_that_is_read(names: tuple[str, ...], read: bool, renamed: str) -> None:
    """As if it had none, which is rarely meant."""
    tensors = model_files.tensors.from_arrays(states(*(f"bn.{name}" for name in names)))
    found = [norm.name for norm in model_files.names.find(tensors)]
    (left,) = left_out(tensors.shapes, found)
    assert (found, left.layer, left.level) == (["bn"] * read, "bn", "warning")
    assert f"rename {renamed} in the file" in left.why


@pytest.mark.skipif(bool(missing(("h5py",))), reason="h5py is not installed")
def test_a_keras_file_with_a_missing_array_says_so(tmp_path: Path) -> None:
    import h5py

    made = models.keras2(tmp_path)
    with h5py.File(made.path, "a") as file:
        del file["model_weights/bn_3/bn_3_1/moving_variance:0"]
    (left,) = model_files.read(made.path).left_out
    assert (left.layer, left.kind) == ("model_weights/bn_3/bn_3_1", MISSING)


def test_damage_is_in_the_first_line_of_both_commands(polybn_: Polybn, tmp_path: Path) -> None:
    whole = states(*(f"{layer}.{name}" for layer in ("a", "b") for name in BN[:4]))
    del whole["b.running_var"]
    np.savez(tmp_path / "a.npz", **whole)  # type: ignore[arg-type]
    out = polybn_("inspect", "a.npz").out
    assert out.startswith("a.npz (NumPy): 1 batch norm with 5 channels; 1 needs a look: an array is missing in b.\n")
    assert "warning: b: left out: it has weight, bias and running_mean, but no running_var;" in out
    out = polybn_("convert", "a.npz", "b.npz", "--to", "keras3").out
    assert out.startswith("1 batch norm, 1 left out, from pytorch to keras3, in b.npz: a/gamma, ...\n")
    del whole["a.running_var"]
    np.savez(tmp_path / "a.npz", **whole)  # type: ignore[arg-type]
    first = (
        "a.npz (NumPy, 6 arrays) holds no batch norm that is whole; 2 need a look: an array is missing in a and 1 more."
    )
    assert polybn_("inspect", "a.npz").out.startswith(first)
    assert "(NumPy); 'a' is left out: it has weight, " in polybn_("convert", "a.npz", "b.npz", "--to", "keras3").err


# Public models.


def onnx_data() -> Path:
    spec = importlib.util.find_spec("onnx")
    if spec is None:
        pytest.skip("onnx is not installed")
    return Path(str(spec.origin)).parent / "backend" / "test" / "data"


PAGE = (Path(__file__).parents[1] / "docs" / "model-files.md").read_text(encoding="utf-8")
FIRST_LINES = dict(re.findall(r"^\| `([\w/.-]+)` \| onnx \| (.*) \|$", PAGE, re.MULTILINE))
"""The first line of each model that comes with onnx, by its path."""


def test_the_page_has_first_lines() -> None:
    assert len(FIRST_LINES) == 6


@pytest.mark.parametrize("name", FIRST_LINES)
def test_the_page_shows_what_is_said_of_public_models(name: str, polybn_: Polybn) -> None:
    path = onnx_data() / name
    if not path.exists():
        pytest.skip("this version of onnx does not come with the model")
    code, out, _ = polybn_("inspect", str(path))
    assert code == 0
    first = out.splitlines()[0]
    assert first == f"{path.name} (ONNX): {FIRST_LINES[name]}"
    assert "densenet" not in name or f"```text\n{first}\n```" in PAGE


def test_what_a_library_itself_lacks_is_what_is_to_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_a_library.py").write_text("import its_other_half")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"library half_a_library; got No module .* \(pip install its_other_half\)"):
        errors.need("half_a_library", "its files", "half-a-library")
    with pytest.raises(ImportError, match=r"library no_library; got No module .* \(pip install no-library\)"):
        errors.need("no_library", "its files", "no-library")
