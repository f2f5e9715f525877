"""``polybn export``: a trained network for another framework."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from polybn.console import check_place, out
from polybn.lenet import runs

Format = Literal["onnx", "safetensors", "pt", "flax", "keras", "gluon"]
USES: dict[str, str] = {
    "onnx": 'onnxruntime.InferenceSession("{0}").run(None, {{"images": images}})',
    "safetensors": 'net.load_state_dict(safetensors.torch.load_file("{0}"))',
    "pt": 'net.load_state_dict(torch.load("{0}", weights_only=True)["state_dict"])',
    "flax": 'variables = flax.serialization.msgpack_restore(open("{0}", "rb").read())',
    "keras": 'keras.models.load_model("{0}")',
    "gluon": 'mxnet.gluon.SymbolBlock.imports("{1}", ["data"], "{0}")',
}
"""For each format, the code that reads the files in a program."""


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, such as runs/numpy-spec-lr1-seed0.")],
    to: Annotated[
        Format,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="onnx, keras and gluon hold the whole network and take images of 0 to 255; safetensors, pt "
            "(for PyTorch) and flax hold its arrays.",
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The file to write. Default: the run's name and the format's ending."
        ),
    ] = None,
) -> None:
    """Write the trained network of a run in the file of another framework, and say how a program takes it.

    Labels are the same there, and scores to rounding: weights have the framework's own axes and names, and batch norm
    says what it means in the framework's own words. The file also holds a note, in JSON: how images are prepared, the
    names of the classes, the layers.

    [dim]polybn export runs/numpy-spec-lr1-seed0 --to onnx
    polybn export runs/numpy-spec-lr1-seed0 --to keras --out lenet.keras[/dim]
    """
    from polybn.lenet import exports

    if target is not None:
        check_place("export", "--out", target)
    target, ending = target or Path(run.resolve().name or "lenet"), exports.FORMATS[to]
    check_place("export", "--out", target.with_name(target.name.removesuffix(ending) + ending))
    loaded = runs.load(run)
    files = exports.export(loaded, target, to)
    files.sort(key=lambda file: file.suffix == ".json")
    out.print(f"Epoch {len(loaded.epochs)} of {run} is in {' and '.join(map(str, files))}. In a program:")
    out.print(f"    {USES[to].format(*files)}")
