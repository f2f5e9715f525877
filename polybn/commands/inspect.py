"""``polybn inspect``: the statistics of a model's batch norms, and faults that they show."""

from __future__ import annotations

import json as writer
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from polybn.console import check_place, shown, words_beside, write

WIDE = 200
"""The largest width of the table, wide enough for whole names."""


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help=".safetensors, .pt or .pth (PyTorch), .keras or .h5 (Keras), .msgpack or a directory of Orbax (Flax), "
            ".params (MXNet), .onnx, .npz.",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option("--for", metavar="DIALECT", help="Where the model is to go; polybn dialects lists the names."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="DIALECT", help="The framework that wrote FILE, where its arrays' names do not tell."
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all statistics and findings, as JSON; - prints them.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the statistics, layer after layer: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """List the batch norms of a model with their statistics, and say what is wrong with them.

    The first line is the verdict. Errors are what makes inference wrong: a variance that is negative, NaN, an export in
    training mode. Warnings may be meant: statistics that training never changed, channels that are constant or blown
    up, a mean so far from 0 that float32 loses digits (by the error bounds of polybn check), a momentum that weighs the
    other value. The exit code is 1 if there are errors. No code in the file is run.

    [dim]polybn inspect model.onnx
    polybn inspect model.safetensors --for keras3
    polybn inspect model.keras --picture statistics.png --json statistics.json[/dim]
    """
    from polybn import dialects, inspection, model_files
    from polybn.inspection import words

    if json is not None:
        check_place("inspect", "--json", json, file)
    if picture is not None:
        from polybn.lenet import pictures

        pictures.check_option("inspect", "--picture", picture, file)
    to = None if target is None else dialects.find(target, function="inspect", argument="--for")
    here = None if source is None else dialects.find(source, function="inspect", argument="--from")
    model = model_files.read(file, first=() if here is None else (here.name,))
    findings = inspection.inspect(model, to)
    if json is not None:
        report = {
            "file": file.name,
            "format": model.format,
            "findings": [finding._asdict() for finding in findings],
            "batch_norms": [words.to_plain(norm) for norm in model.norms],
        }
        write(json, writer.dumps(report, indent=1, allow_nan=False) + "\n")
    out = words_beside(json)
    out.print(shown(words.headline(file.name, model, findings)))
    if model.norms:
        table = Table(*words.HEADINGS, box=None)
        for row in words.table(model, findings):
            table.add_row(*map(shown, row))
        Console(stderr=out.stderr, width=WIDE, markup=False, emoji=False, highlight=False).print(table)
    for line in words.lines(findings):
        out.print(shown(line))
    if picture is not None and model.norms:
        from polybn.inspection.picture import draw

        draw(model, findings, picture)
    raise typer.Exit(1 if any(finding.level == "error" for finding in findings) else 0)
