"""A trained LeNet in files of other frameworks: equal labels, scores within bounds, and the same bits back."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polybn import dialects, model_files
from polybn.lenet import exports, fashion_mnist, networks, training
from polybn.lenet.exports import layouts, trained
from polybn.lenet.runs import Run
from polybn.model_files import archives, safetensors
from polybn.model_files.errors import ModelFileError
from polybn.spec import DomainError
from tests.support import export_record, exported, models
from tests.support import reference_lenet as reference
from tests.support.command import Polybn
from tests.support.training_worker import slice_of_sample

DATA = slice_of_sample(train=503, test=97)


def needs(*libraries: str) -> pytest.MarkDecorator:
    missing = [library for library in libraries if importlib.util.find_spec(library) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


FORMATS = [pytest.param(name, marks=needs(*exported.LIBRARIES[name])) for name in exports.FORMATS]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """Train with and without batch norm for so few steps that running statistics are far from the batch's."""
    options: dict[str, Any] = {"data": DATA, "epochs": 2, "batch_size": 127, "seed": 5}
    norms = {"spec": networks.lenet(), "none": networks.lenet(None)}
    return {name: training.train(network, "numpy", **options) for name, network in norms.items()}


def exact(run: Run) -> tuple[reference.Values, reference.Values]:
    """Return the scores of the test images, and the bounds of float32's errors."""
    network, images = exports.trained.of_run(run).network, DATA.test_images

    def measure(rounded: reference.Rounded) -> reference.Named:
        return {"logits": reference.forward(network, run.state, images, training=False, rounded=rounded).logits}

    return measure(reference.exact)["logits"], reference.allowed(measure)["logits"]


@pytest.fixture(scope="module")
def right(runs: dict[str, Run]) -> dict[str, tuple[reference.Values, reference.Values]]:
    return {name: exact(run) for name, run in runs.items()}


@pytest.mark.parametrize("norm", ["spec", "none"])
@pytest.mark.parametrize("format", FORMATS)
def test_another_framework_gives_the_same_labels_and_scores_within_the_bound(
    format: str,
    norm: str,
    runs: dict[str, Run],
    right: dict[str, tuple[reference.Values, reference.Values]],
    tmp_path: Path,
) -> None:
    files = exports.export(runs[norm], tmp_path / "lenet", format)
    scores = exported.SCORE[format](files, DATA.test_images)
    exactly, allowed = right[norm]
    assert (scores.argmax(axis=1) == exactly.argmax(axis=1)).all()
    assert np.max(abs(scores - exactly) / allowed) <= 1


@pytest.mark.parametrize("norm", ["spec", "none"])
@pytest.mark.parametrize("format", FORMATS)
def test_what_comes_back_has_the_same_bits(format: str, norm: str, runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs[norm]
    network, state = exports.load(exports.export(run, tmp_path / "lenet", format)[-1])
    assert network == trained.of_run(run).network
    assert {name: array.tobytes() for name, array in state.items()} == {k: v.tobytes() for k, v in run.state.items()}
    assert {name: array.shape for name, array in state.items()} == {k: v.shape for k, v in run.state.items()}
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in state.values())


@needs("keras", "h5py")
def test_a_file_of_an_early_keras_3_comes_back_too(runs: dict[str, Run], tmp_path: Path) -> None:
    (file,) = exports.export(runs["spec"], tmp_path / "lenet", "keras")
    models.remove_names(file)
    _, state = exports.load(file)
    assert {name: array.tobytes() for name, array in state.items()} == {
        name: array.tobytes() for name, array in runs["spec"].state.items()
    }


def test_pytorch_is_told_how_many_batches_there_were(runs: dict[str, Run]) -> None:
    told = trained.of_run(runs["spec"])
    assert told.steps == 2 * -(-503 // 127)
    layers = layouts.to_layers(told.network, told.state, layouts.Layout(dialects.PYTORCH), told.steps)
    assert layers["norm1"]["num_batches_tracked"] == told.steps


@pytest.mark.parametrize("form", FORMATS)
def test_every_export_says_momentum_and_eps(runs: dict[str, Run], form: str, tmp_path: Path) -> None:
    files = exports.export(runs["spec"], tmp_path / "lenet", form)
    norms = model_files.read(max(files, key=lambda file: file.stat().st_size)).norms
    assert len(norms) == 4
    for norm in norms:
        options = dialects.convert_options(norm.options, norm.dialect, "polybn").options
        assert norm.options
        assert (options["momentum"], options["eps"]) == (0.9, 1e-5), norm


def test_the_note_says_what_a_program_needs_to_know(runs: dict[str, Run]) -> None:
    note = json.loads(trained.of_run(runs["spec"]).note)
    assert note["images"] == "uint8, 1 x 28 x 28 (channels, height, width), divided by 255 before the first layer"
    assert note["classes"] == list(fashion_mnist.CLASSES)
    assert note["epochs"] == 2
    assert note["test_accuracy"] == runs["spec"].epochs[-1].test_accuracy


OTHER = networks.Network(
    (1, 28, 28),
    (
        networks.BatchNorm("spec", 0.8, 0.3),
        networks.MaxPool(4),
        networks.Convolution(3, 2),
        networks.BatchNorm("spec", 0.7, 0.01),
        networks.Dense(10),
        networks.BatchNorm("spec", 0.5, 1e-3),
    ),
)
"""A network with options that are no framework's defaults, and batch norm in all places."""


@pytest.mark.parametrize("format", [p for p in FORMATS if p.values[0] in ("onnx", "keras", "gluon")])
def test_a_whole_network_keeps_the_options_of_its_batch_norms(format: str, tmp_path: Path) -> None:
    run = training.train(OTHER, data=DATA, epochs=1, learning_rate=0.1)
    files = exports.export(run, tmp_path / "other", format)
    right, allowed = exact(run)
    assert np.max(abs(exported.SCORE[format](files, DATA.test_images) - right) / allowed) <= 1
    assert exports.load(files[-1])[0] == OTHER


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed")
def test_onnx_says_momentum_and_eps_in_its_own_words(tmp_path: Path) -> None:
    import onnx

    run = training.train(OTHER, data=DATA, epochs=1, learning_rate=0.1)
    (file,) = exports.export(run, tmp_path / "other", "onnx")
    nodes = [node for node in onnx.load(file).graph.node if node.op_type == "BatchNormalization"]
    said = [{attribute.name: round(attribute.f, 6) for attribute in node.attribute} for node in nodes]
    assert said == [{"momentum": m, "epsilon": eps} for m, eps in ((0.8, 0.3), (0.7, 0.01), (0.5, 0.001))]


# Names and errors.


@pytest.mark.parametrize("name", ["lenet", "lenet.safetensors"])
def test_the_ending_is_put_to_the_name_once(name: str, runs: dict[str, Run], tmp_path: Path) -> None:
    assert exports.export(runs["spec"], tmp_path / name, "safetensors") == [tmp_path / "lenet.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["lenet.safetensors"]


def test_a_name_with_dots_keeps_them(runs: dict[str, Run], tmp_path: Path) -> None:
    assert exports.export(runs["spec"], tmp_path / "lr0.5", "safetensors") == [tmp_path / "lr0.5.safetensors"]


def test_an_unknown_format_is_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(DomainError, match=r"format must be one of onnx, safetensors, .*; got 'caffe'"):
        exports.export(runs["spec"], tmp_path / "lenet", "caffe")
    with pytest.raises(DomainError, match=r"path must end in one of \.onnx, .*; got .*lenet\.bin"):
        exports.load(tmp_path / "lenet.bin")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "text"])
def test_a_damaged_export_is_one_sentence(format: str, damage: str, runs: dict[str, Run], tmp_path: Path) -> None:
    file = exports.export(runs["spec"], tmp_path / "lenet", format)[-1]
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(999), "text": b"hello " * 9}[damage])
    with pytest.raises(ModelFileError, match=r"^polybn\.exports\.load: .*lenet.* must .*; got ") as caught:
        exports.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("conv1.weight", lambda array: array[:2]),
        ("norm1.weight", lambda array: array[:1]),
        ("dense3.bias", lambda array: array.astype(np.float64)),
    ],
)
def test_arrays_that_do_not_fit_the_network_are_refused(
    name: str, change: Any, runs: dict[str, Run], tmp_path: Path
) -> None:
    (file,) = exports.export(runs["spec"], tmp_path / "lenet", "safetensors")
    data = file.read_bytes()
    tensors = safetensors.read(io.BytesIO(data), len(data))
    arrays = {each: tensors.read(each) for each in tensors.shapes}
    layer = name.partition(".")[0]
    if layer == "norm1":
        arrays |= {each: change(array) for each, array in arrays.items() if each.startswith("norm1.") and array.ndim}
    arrays[name] = change(tensors.read(name))
    file.write_bytes(safetensors.encode(arrays, tensors.metadata))
    with pytest.raises(ModelFileError, match=rf"lenet\.safetensors must hold {layer}\.\w+ as float32 of shape"):
        exports.load(file)


@needs("onnx")
def test_an_export_of_onnx_reads_no_other_file(runs: dict[str, Run], tmp_path: Path) -> None:
    import onnx

    (file,) = exports.export(runs["spec"], tmp_path / "lenet", "onnx")
    onnx.save(onnx.load(file), file, save_as_external_data=True, size_threshold=0, location="other")
    with pytest.raises(ModelFileError, match=r"must hold the values of .* itself; got a reference to another file"):
        exports.load(file)


@pytest.mark.parametrize("format", [p for p in FORMATS if p.values[0] in ("keras", "pt")])
def test_an_export_cannot_expand_without_bounds(
    format: str, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = exports.export(runs["spec"], tmp_path / "lenet", format)[-1]
    monkeypatch.setattr(archives, "MOST_LISTED", 9)
    with pytest.raises(ModelFileError, match="must list its members in at most 9 bytes"):
        exports.load(file)


def test_a_damaged_symbol_is_blamed_itself(runs: dict[str, Run], tmp_path: Path) -> None:
    symbol, arrays = exports.export(runs["spec"], tmp_path / "lenet", "gluon")
    symbol.write_text("{oops")
    with pytest.raises(ModelFileError, match=r"lenet-symbol\.json must be what polybn export writes; got JSON"):
        exports.load(arrays)


def test_a_file_of_another_origin_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    file.write_bytes(safetensors.encode({"w": np.zeros(2, np.float32)}, {}))
    with pytest.raises(ModelFileError, match=r"must hold the note that `polybn export` writes; got none"):
        exports.load(file)


# The record.


def test_the_record_has_every_format_with_equal_labels_and_bits() -> None:
    rows = json.loads(export_record.RECORD.read_text(encoding="utf-8"))["rows"]
    assert [row["format"] for row in rows] == [None, *exports.FORMATS]
    assert [(row["differ"], row["same_bits"]) for row in rows] == [(0, True)] * len(rows)
    assert all(row["share"] <= 1 for row in rows)


# The command.


def test_export_names_its_files_and_their_use(polybn_: Polybn, tmp_path: Path) -> None:
    training.train(networks.lenet(), data=DATA, epochs=1, out=tmp_path / "runs" / "mine")
    code, out, err = polybn_("export", "runs/mine", "--to", "gluon")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "Epoch 1 of runs/mine is in mine-0000.params and mine-symbol.json. In a program:",
        '    mxnet.gluon.SymbolBlock.imports("mine-symbol.json", ["data"], "mine-0000.params")',
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine-0000.params", "mine-symbol.json", "runs"]


def test_export_refuses_what_is_no_run(polybn_: Polybn) -> None:
    code, out, err = polybn_("export", "nowhere", "--to", "onnx")
    assert (code, out) == (2, "")
    assert err.startswith("error: polybn: nowhere must hold a checkpoint; got no such directory")


def test_a_missing_library_is_one_sentence_with_what_installs_it(
    polybn_: Polybn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.train(networks.lenet(), data=DATA, epochs=1, out=tmp_path / "run")
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = polybn_("export", "run", "--to", "onnx")
    assert code == 2
    assert err.startswith("error: polybn: ONNX files need the library onnx; got ")
    assert err.endswith("(pip install onnx)\n")
    assert err.count("\n") == 1
