"""``polybn convert``: batch norms under other names, and folded into other layers of ONNX models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polybn import model_files
from polybn.commands.convert import USES
from polybn.model_files import fold, gluon, note, reading, safetensors, writing
from tests.support import models
from tests.support.command import Polybn
from tests.support.models import missing, states

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


# Folding.


@pytest.mark.skipif(bool(missing(("onnx", "onnxruntime", "torch"))), reason="onnx, onnxruntime or torch is missing")
def test_a_folded_model_computes_the_same_without_batch_norms(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    path = models.onnx(tmp_path).path
    folded = reading.fold(path)
    assert (folded.into, folded.kept) == ([("bn", "Conv_0"), ("last", "Gemm_3")], [])
    onnx.checker.check_model(folded.model)
    assert [node.op_type for node in folded.model.graph.node] == ["Conv", "Flatten", "Gemm"]
    onnx.save(folded.model, tmp_path / "folded.onnx")
    x = models.batches(13, 3, 5, 5)[0]
    before, after = (
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for file in (path, tmp_path / "folded.onnx")
    )
    assert abs(before - after).max() < 1e-5 * abs(before).max()


@pytest.mark.skipif(bool(missing(("onnx", "torch"))), reason="onnx or torch is missing")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda graph: graph.node.insert(1, _relu("a", "r")), "Conv before it has other users"),
        (
            lambda graph: setattr(graph.node[0], "op_type", "Relu"),
            "what comes before it is Relu, neither Conv nor Gemm",
        ),
        (lambda graph: graph.node[1].attribute.append(_training()), "it normalizes by the statistics of the batch"),
        (lambda graph: graph.initializer.remove(graph.initializer[0]), "Conv before it shares its weights, or"),
        (lambda graph: graph.node.remove(graph.node[0]), "it comes first"),
        (lambda graph: _fill(graph, "bn.running_var", -9), "its variance and eps are not above 0"),
        (lambda graph: graph.node.append(_branches("a")), "Conv before it has other users"),
        (lambda graph: graph.node.append(_branches("conv.bias")), "Conv before it shares its weights, or"),
        (lambda graph: graph.output.add(name="conv.weight"), "Conv before it shares its weights, or"),
        (
            lambda graph: graph.input.add(name="conv.weight"),
            "it or Conv before it has weights that callers may replace",
        ),
        (lambda graph: graph.input.add(name="bn.bias"), "it or Conv before it has weights that callers may replace"),
    ],
)
def test_what_cannot_be_folded_stays_and_is_named(change: Callable[[Any], Any], why: str, tmp_path: Path) -> None:
    model = model_files.onnx.parse(models.onnx(tmp_path).path.read_bytes())
    change(model.graph)
    folded = fold.fold(model)
    assert folded.into == [("last", "Gemm_3")]
    assert [(name, reason[: len(why)]) for name, reason in folded.kept] == [("bn", why)]


@pytest.mark.skipif(bool(missing(("onnx", "torch"))), reason="onnx or torch is missing")
def test_what_a_folded_batch_norm_alone_has_used_is_removed(tmp_path: Path) -> None:
    """ONNX Runtime warns of each tensor that nothing uses."""
    import onnx

    model = model_files.onnx.parse(models.onnx(tmp_path).path.read_bytes())
    graph, make = model.graph, onnx.helper.make_node
    graph.node.insert(0, make("Identity", ["last.bias"], ["i"]))
    graph.node[5].input[2], graph.node[2].input[2] = "i", "j"
    graph.initializer.extend([onnx.numpy_helper.from_array(np.ones(3), "kept")])
    graph.node.append(make("Identity", ["bn.running_mean"], ["used"]))
    graph.output.add(name="used")
    graph.initializer.extend([onnx.numpy_helper.from_array(np.array([7]), "size")])
    graph.node.insert(0, make("ConstantOfShape", ["size"], ["j"]))
    folded = fold.fold(model)
    assert folded.kept == []
    names = {tensor.name for tensor in graph.initializer}
    assert names == {"conv.weight", "conv.bias", "fc.weight", "fc.bias", "bn.running_mean", "bn.bias", "kept"}
    assert [node.op_type for node in graph.node] == ["Conv", "Flatten", "Gemm", "Identity"]


@pytest.mark.skipif(bool(missing(("onnx", "torch"))), reason="onnx or torch is missing")
def test_weights_that_callers_may_replace_are_seen_through_identities(tmp_path: Path) -> None:
    import onnx

    model = model_files.onnx.parse(models.onnx(tmp_path).path.read_bytes())
    model.graph.node.insert(0, onnx.helper.make_node("Identity", ["bn.bias"], ["i"]))
    model.graph.node[2].input[2] = "i"
    model.graph.input.add(name="bn.bias")
    ((name, why),) = fold.fold(model).kept
    assert (name, "weights that callers may replace" in why) == ("bn", True)


@pytest.mark.skipif(bool(missing(("onnx", "torch"))), reason="onnx or torch is missing")
@pytest.mark.parametrize(("shape", "fits"), [((11,), True), ((1, 11), True), ((1,), True), ((11, 1), False)])
def test_a_bias_that_is_not_one_number_for_each_channel_stays(
    shape: tuple[int, ...], fits: bool, tmp_path: Path
) -> None:
    model = model_files.onnx.parse(models.onnx(tmp_path).path.read_bytes())
    _fill(model.graph, "fc.bias", 3, shape)
    kept = [] if fits else [("last", "Gemm before it adds more than a number for each channel")]
    assert fold.fold(model).kept == kept


def _fill(graph: Any, name: str, value: float, shape: tuple[int, ...] = (7,)) -> None:
    import onnx

    (tensor,) = [tensor for tensor in graph.initializer if tensor.name == name]
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(shape, value, np.float32), name))


def _branches(name: str) -> Any:
    import onnx

    graph = onnx.helper.make_graph([_relu(name, "r")], "branch", [], [])
    return onnx.helper.make_node("If", ["condition"], ["z"], then_branch=graph, else_branch=graph)


def _relu(x: str, y: str) -> Any:
    import onnx

    return onnx.helper.make_node("Relu", [x], [y])


def _training() -> Any:
    import onnx

    return onnx.helper.make_attribute("training_mode", 1)


# The command.


def test_a_folder_that_is_named_as_a_file_keeps_its_ending_in_the_suggestion(polybn_: Polybn, tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", states("bn.running_mean", "bn.running_var"))
    (tmp_path / "a.npz").mkdir()
    err = polybn_("convert", "a.safetensors", "a.npz", "--to", "keras3").err
    assert "OUTPUT must name a file; got a.npz, a folder (try a.npz/batch-norms.npz)" in err


def save(path: Path, state: dict[str, Any]) -> None:
    path.write_bytes(safetensors.encode(state, {}))


def test_each_ending_has_the_code_that_reads_it() -> None:
    assert {*USES} == {*writing.ENDINGS}


def test_convert_says_what_it_did_and_what_is_not_exact(polybn_: Polybn, tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", states("bn.running_mean", "bn.running_var"))
    code, out, err = polybn_("convert", "a.safetensors", "b.npz", "--to", "keras3")
    assert (code, err) == (0, "")
    first, made, second, third, fourth, *use = out.splitlines()
    assert first == "1 batch norm, from pytorch to keras3, in b.npz: bn/moving_mean, ..."
    assert made == "Make the layers with scale=False, center=False."
    assert second.startswith("bn: keras3 goes on with the biased variance where pytorch kept the unbiased one.")
    assert second.endswith(
        "of values per channel in a training batch, the variance becomes the one that keras3 would have kept."
    )
    assert third.startswith(
        "bn: The file does not say eps. Unless the model was made with another, make the layers with "
    )
    assert third.endswith("epsilon=1e-05, the default of pytorch: keras3 takes 0.001.")
    assert fourth.startswith("bn: The file does not say momentum.")
    assert fourth.endswith("momentum=0.9 to train on, the default of pytorch: keras3 takes 0.99.")
    assert use[0] == "In a program, numpy.load('b.npz') has the arrays by name:"
    assert "docs/model-files.md" in use[1]
    with np.load(tmp_path / "b.npz") as arrays:
        assert sorted(arrays) == ["bn/moving_mean", "bn/moving_variance"]


def test_what_is_said_once_is_in_the_file_from_then_on(polybn_: Polybn, tmp_path: Path) -> None:
    """Of each layer its own, in the words of any framework, and a text of others under the same key does no harm."""
    arrays = states(*(f"{layer}.running_{which}" for layer in ("a", "b") for which in ("mean", "var")))
    told = note.content("pytorch", {"a": {"momentum": 0.03, "eps": 0.002}})
    (tmp_path / "a.safetensors").write_bytes(safetensors.encode(arrays, {"polybn": json.dumps(told)}))
    assert polybn_("convert", "a.safetensors", "b.safetensors", "--to", "keras3", "--count", "7").code == 0
    first, second = model_files.read(tmp_path / "b.safetensors").norms
    assert (first.name, dict(first.options)) == ("a", {"momentum": 0.97, "epsilon": 0.002})
    assert (second.name, dict(second.options)) == ("b", {})
    _, out, _ = polybn_("inspect", "b.safetensors")
    assert re.search(r" eps +momentum ", out)
    assert re.search(r" 0\.002 +0\.97 ", out)
    assert " not said " in out
    for text in ("pytorch", "7", "{"):
        (tmp_path / "c.safetensors").write_bytes(safetensors.encode(arrays, {"polybn": text}))
        assert [norm.options for norm in model_files.read(tmp_path / "c.safetensors").norms] == [{}, {}]


def test_one_count_for_several_layers_is_said(polybn_: Polybn, tmp_path: Path) -> None:
    """Layers whose feature maps differ have different counts; a file does not tell them."""
    save(tmp_path / "a.safetensors", states(*(f"{n}.running_{which}" for n in "abc" for which in ("mean", "var"))))
    convert = ("convert", "a.safetensors", "b.npz", "--to", "keras3")
    last = polybn_(*convert, "--count", "64", "--count", "b=32").out.splitlines()[-3]
    assert last.startswith("--count 64 was taken for 2 layers. It is images times places, so ")
    assert last.endswith("need their own: --count a=N.")
    for counts in ((), ("a=64", "b=64", "c=32"), ("a=64", "b=64", "32")):
        options = [word for count in counts for word in ("--count", count)]
        assert "was taken for" not in polybn_(*convert, *options).out


def test_an_option_says_what_the_file_does_not(polybn_: Polybn, tmp_path: Path) -> None:
    names = ("gamma", "beta", "moving_mean", "moving_var")
    (tmp_path / "net.params").write_bytes(gluon.encode(states(*(f"bn_{name}" for name in names))))
    code, _, err = polybn_("convert", "net.params", "b.npz", "--to", "pytorch")
    assert code == 2
    assert "in 'bn', options must have fix_gamma where gamma is not 1; got none" in err
    options = ("--option", "fix_gamma=False", "--option", "eps=0.25")
    code, out, err = polybn_("convert", "net.params", "b.npz", "--to", "pytorch", *options)
    assert (code, err) == (0, "")
    lines = ["Make the layers with eps=0.25.", "A file in .npz does not hold these numbers; one in .safetensors does."]
    assert out.splitlines()[1:3] == lines
    assert "does not say eps" not in out
    assert "does not say momentum" in out


@pytest.mark.parametrize(("fixed", "gamma"), [("False", 3.0), ("True", 1.0), (None, 3.0)])
@pytest.mark.parametrize(("to", "word"), [("pytorch", "weight"), ("gluon", "gamma"), ("mxnet_native", "gamma")])
def test_gluon_can_be_told_whether_gamma_counts(
    to: str, word: str, fixed: str | None, gamma: float, polybn_: Polybn, tmp_path: Path
) -> None:
    """Its files do not say it: gamma is in them even of layers with scale=False."""
    names = ("gamma", "beta", "running_mean", "running_var")
    (tmp_path / "net.params").write_bytes(gluon.encode({f"1.{name}": np.full(4, 3, np.float32) for name in names}))
    options = () if fixed is None else ("--option", f"fix_gamma={fixed}")
    code, _, err = polybn_("convert", "net.params", "b.npz", "--to", to, *options)
    assert (code, err) == (0, "")
    with np.load(tmp_path / "b.npz") as arrays:
        assert arrays[f"1.{word}"].tolist() == [gamma] * 4


def test_options_differ_from_layer_to_layer(polybn_: Polybn, tmp_path: Path) -> None:
    arrays = ("weight", "bias", "running_mean", "running_var")
    names = [f"{layer}.{array}" for layer in ("a", "b.1", "c", "d") for array in arrays]
    save(tmp_path / "a.safetensors", states(*names))
    options = ("--option", "eps=0.25", "--option", "b.1.eps=5e-1", "--option", "c.momentum=0.5", "--option", "c.eps=1")
    code, out, err = polybn_("convert", "a.safetensors", "b.safetensors", "--to", "keras3", *options)
    assert (code, err) == (0, "")
    lines = [
        "Make b.1 with epsilon=0.5.",
        "Make c with momentum=0.5, epsilon=1.",
        "Make the other layers with epsilon=0.25.",
    ]
    assert out.splitlines()[1:4] == lines
    assert "does not hold" not in out
    written = {norm.name: norm.options for norm in model_files.read(tmp_path / "b.safetensors").norms}
    assert written == {
        "a": {"epsilon": 0.25},
        "d": {"epsilon": 0.25},
        "b.1": {"epsilon": 0.5},
        "c": {"momentum": 0.5, "epsilon": 1},
    }


SWITCHES = {
    "keras3": "scale=False, center=False",
    "flax_nnx": "use_scale=False, use_bias=False",
    "pytorch": "affine=False",
    "polybn": "scale=False, shift=False",
    "chainer": "use_gamma=False, use_beta=False",
}


@pytest.mark.parametrize("target", SWITCHES)
def test_a_layer_without_gamma_and_beta_is_to_be_made_without(target: str, polybn_: Polybn, tmp_path: Path) -> None:
    """It would learn them otherwise."""
    statistics = [f"{layer}.running_{which}" for layer in "ab" for which in ("mean", "var")]
    save(tmp_path / "a.safetensors", states("a.weight", "a.bias", *statistics))
    convert = ("convert", "a.safetensors", "b.npz", "--from", "mlx", "--to", target)
    first, second, *_ = polybn_(*convert).out.splitlines()[1:]
    assert first == f"Make b with {SWITCHES[target]}."
    assert not second.startswith(("Make", "A file in"))
    lines = sorted(polybn_(*convert, "--option", "eps=0.5").out.splitlines()[1:3])
    assert re.fullmatch(r"Make a with \w+=0\.5\.", lines[0])
    assert re.fullmatch(rf"Make b with \w+=0\.5, {SWITCHES[target]}\.", lines[1])


def test_an_axis_that_is_not_the_usual_one_is_said_and_kept(polybn_: Polybn, tmp_path: Path) -> None:
    names = [f"{layer}/moving_{which}" for layer in "abc" for which in ("mean", "variance")]
    told = note.content("keras3", {"a": {"axis": 1}, "b": {"axis": -1}, "c": {"axis": -1}})
    (tmp_path / "a.safetensors").write_bytes(
        safetensors.encode(
            states(*names, *(f"{n}/{w}" for n in "abc" for w in ("gamma", "beta"))), {"polybn": json.dumps(told)}
        )
    )
    out = polybn_("convert", "a.safetensors", "b.safetensors", "--to", "flax_linen").out
    assert out.splitlines()[1] == "Make a with axis=1."
    assert not out.splitlines()[2].startswith("Make")
    axes = {norm.name: dict(norm.options) for norm in model_files.read(tmp_path / "b.safetensors").norms}
    assert axes == {"a": {"axis": 1}, "b": {"axis": -1}, "c": {"axis": -1}}


def test_a_momentum_of_none_can_be_said(polybn_: Polybn, tmp_path: Path) -> None:
    """It is PyTorch's average over all batches, and stays one where the target has that, too."""
    save(tmp_path / "a.safetensors", states(*(f"{n}.running_{which}" for n in "ab" for which in ("mean", "var"))))
    convert = ("convert", "a.safetensors", "b.safetensors", "--option", "a.momentum=None", "--option", "b.momentum=0.5")
    code, out, err = polybn_(*convert, "--to", "pytorch_sync")
    assert (code, err) == (0, "")
    assert "Make a with momentum=None" in out
    found = model_files.read(tmp_path / "b.safetensors").norms
    assert [dict(norm.options) for norm in found] == [{"momentum": None}, {"momentum": 0.5}]
    code, out, err = polybn_("inspect", "b.safetensors")
    assert (code, err) == (0, "")
    assert " None " in out
    assert "With momentum=None, pytorch averages over all batches" in polybn_(*convert, "--to", "keras3").out
    code, _, err = polybn_("convert", "a.safetensors", "b.npz", "--to", "keras3", "--option", "eps=None")
    assert (code, err.count("\n")) == (2, 1)


def test_the_words_of_the_file_may_be_those_of_any_dialect(polybn_: Polybn, tmp_path: Path) -> None:
    """Names that several dialects share, and a state that can only be read with its momentum."""
    save(tmp_path / "a.safetensors", states("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"))
    assert polybn_("convert", "a.safetensors", "b.npz", "--to", "equinox_batch", "--option", "momentum=0.5").code == 0
    code, out, _ = polybn_("inspect", "b.npz")
    assert code == 0
    assert "statistics cannot be told from the file: equinox_batch stores " in out
    code, out, err = polybn_("convert", "b.npz", "c.npz", "--from", "equinox_batch", "--to", "pytorch")
    assert (code, err) == (0, "") or "options must have momentum" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("b.npz",), "--to must name a dialect; got none"),
        (("b.npz", "--to", "keras"), "--to must name a dialect; got 'keras' (did you mean keras3"),
        (("b.npz", "--to", "flax"), "got 'flax' (did you mean flax_linen or flax_nnx? all are "),
        (("b.npz", "--to", "mxnet"), "got 'mxnet' (did you mean mxnet_native or mxnet_cudnn or gluon? all are "),
        (("b.npz", "--to", "PyTorch"), "got 'PyTorch' (did you mean pytorch? all are "),
        (("b.npz", "--to", "torch"), "got 'torch' (did you mean pytorch or pytorch_sync or d2l_torch? all are "),
        (("b.npz", "--to", "kears3"), "got 'kears3' (did you mean keras3? all are "),
        (("b.npz", "--to", ""), "got '' (all are "),
        (("b.npz", "--to", "keras3", "--count", "b=64"), "got 'b' (did you mean bn? polybn inspect lists them)"),
        (("b.npz", "--to", "keras3", "--count", "nb=64"), "got 'nb' (did you mean bn? polybn inspect lists them)"),
        (("b.npz", "--to", "keras3", "--option", "bN.eps=1"), "got 'bN' (did you mean bn? polybn inspect lists them)"),
        (("b.npz", "--to", "keras3", "--option", "x.eps=1"), "got 'x' (polybn inspect lists them)"),
        (("b.txt", "--to", "keras3"), "OUTPUT must end in .safetensors, .npz, .msgpack, .params; got b.txt (it "),
        (("b", "--to", "keras3"), "got b (it picks the format; try b.safetensors)"),
        (("a.onnx", "--to", "keras3"), "got a.onnx (it picks the format; try a-2.safetensors)"),
        ((".", "--to", "keras3"), "OUTPUT must name a file; got ., a folder (try batch-norms.safetensors)"),
        ((".", "--fold"), "OUTPUT must name a file; got ., a folder (try folded.onnx)"),
        (("none/b.npz", "--to", "keras3"), "OUTPUT must lie in a folder that exists; got none/b.npz (mkdir -p none)"),
        (("b.npz", "--to", "keras3", "--count", "1"), "--count must be N or LAYER=N, N of 2 or more; got '1'"),
        (("b.npz", "--to", "keras3", "--count", "x=y"), "--count must be N or LAYER=N, N of 2 or more; got 'x=y'"),
        (
            ("b.npz", "--to", "keras3", "--count", "bn=64", "--count", "bn=32"),
            "--count must be said once of the layer bn; got 'bn=32' after 64",
        ),
        (
            ("b.npz", "--to", "keras3", "--count", "64", "--count", "32"),
            "--count must be said once of all layers that are not named; got '32' after 64",
        ),
        (
            ("b.npz", "--to", "keras3", "--option", "eps"),
            "--option must be [LAYER.]WORD=NUMBER, or WORD=True, False or None; got 'eps'",
        ),
        (
            ("b.npz", "--to", "keras3", "--option", "eps='a'"),
            "--option must be [LAYER.]WORD=NUMBER, or WORD=True, False or None; got ",
        ),
        (
            ("b.npz", "--to", "keras3", "--option", "eps=1", "--option", "eps=2"),
            "--option must give a word once; got 'eps=2' after 1",
        ),
        (
            ("b.npz", "--to", "keras3", "--option", "epsilon=1"),
            "polybn.convert: in 'bn', options must be in the words of pytorch (momentum, eps, axis); got 'epsilon' "
            "(did you mean eps? ",
        ),
        (("b.npz", "--to", "keras3", "--option", "mometum=1"), "got 'mometum' (did you mean momentum? "),
        (
            ("b.npz", "--to", "keras3", "--option", "fix_gamma=False"),
            "got 'fix_gamma' (only mxnet_native, mxnet_cudnn, ",
        ),
        (
            ("b.onnx", "--fold", "--to", "keras3"),
            "--fold must stand alone; got --to, --from, --count or --option as well",
        ),
        (
            ("b.onnx", "--fold", "--option", "eps=1"),
            "--fold must stand alone; got --to, --from, --count or --option as well",
        ),
        (
            ("a.safetensors", "--to", "keras3"),
            "OUTPUT must be another file than those that are read; got a.safetensors (it",
        ),
        (
            ("a.safetensors", "--fold"),
            "OUTPUT must end in .onnx; got a.safetensors (--fold writes a whole model; try a.onnx)",
        ),
        (("b.npz", "--fold"), "OUTPUT must end in .onnx; got b.npz (--fold writes a whole model; try b.onnx)"),
        (("b.onnx", "--fold"), "a.safetensors must be an ONNX model; got another file"),
    ],
)
def test_convert_refuses_in_one_sentence(
    arguments: tuple[str, ...], words: str, polybn_: Polybn, tmp_path: Path
) -> None:
    save(tmp_path / "a.safetensors", states("bn.running_mean", "bn.running_var"))
    code, out, err = polybn_("convert", "a.safetensors", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
