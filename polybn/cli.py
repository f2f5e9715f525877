"""The command line: ``polybn train | compare | predict | data | info | check | bench``."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from polybn import atomic, cli_agree, cli_check, dispatch
from polybn.console import err, out
from polybn.lenet.commands.compare import compare
from polybn.lenet.commands.data import data
from polybn.lenet.commands.predict import predict
from polybn.lenet.commands.train import train
from polybn.lenet.errors import CheckpointError, DivergenceError
from polybn.spec import BackendError, DomainError, DTypeError, ShapeError
from polybn.version import __version__

TRAINING = (CheckpointError, DivergenceError)
EXPECTED = (BackendError, DomainError, DTypeError, ShapeError, *TRAINING, OSError, ImportError)

app = typer.Typer(
    name="polybn",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Batch normalization you can trust on any array.\n\n"
    "Begin with [bold]polybn train[/bold]: it trains LeNet on Fashion-MNIST and shows each epoch. Then train again "
    "with [bold]--norm none[/bold] and let [bold]polybn compare runs[/bold] draw what batch norm is good for.",
)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Hold the options that belong to no command."""


for _command in (train, compare, predict, data):
    app.command()(_command)


@app.command()
def info() -> None:
    """List the backends with their versions and devices, or why one cannot run here; a bug report begins with this."""
    out.print(f"polybn {__version__}, Python {sys.version.split()[0]}")
    table = Table("backend", "runs here", "versions and device, or why not")
    for name, reason in dispatch.backends().items():
        if reason is None:
            facts = ", ".join(f"{key} {value}" for key, value in dispatch.backend(name).describe().items())
            table.add_row(name, Text("yes", "green"), facts)
        else:
            table.add_row(name, "no", reason)
    out.print(table)


@app.command()
def bench(
    backend: Annotated[str, typer.Option(envvar="POLYBN_BACKEND", help="The backend to time.")] = "numpy",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; in each, every contender runs for 20 ms or 3 calls.")] = 9,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
    ] = None,
) -> None:
    """Time batch norm and LeNet's training step beside plain NumPy, and PyTorch where it is installed.

    All contenders run round by round, in another order each time, and the ratios are medians over the rounds: on a
    busy machine they hold where times do not. The row "again" is the backend against itself: its distance from 1 is
    the noise. JAX is timed inside and outside of jax.jit.

    [dim]polybn bench --backend numpy --rounds 15[/dim]
    """
    from polybn import bench as timing

    table = Table("task", "contender", "median ms", f"time / {backend}'s")
    rows = []
    for row in timing.run(backend, rounds=rounds):
        rows.append(row)
        if err.is_terminal:
            err.print(f"{row.task}: {row.contender} {row.milliseconds:.3f} ms, ratio {row.ratio:.2f}")
        table.add_row(row.task, row.contender, f"{row.milliseconds:.3f}", f"{row.ratio:.2f}")
    out.print(table)
    if json_out is not None:
        facts = {"polybn": __version__, **dispatch.backend(backend).describe()}
        figures = {"facts": facts, "timings": [row._asdict() for row in rows]}
        atomic.write_atomic(json_out, (json.dumps(figures, indent=2) + "\n").encode())
        out.print(f"Figures written to {json_out}")


app.command()(cli_check.check)
app.command()(cli_agree.agree)


def main() -> None:
    """Run the command line; errors that a user can mend are one sentence, without a traceback."""
    for stream in (sys.stdout, sys.stderr):  # a name may hold bytes that no encoding knows
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except EXPECTED as error:
        err.print(Text.assemble(("error: ", "bold red"), _words(error)))
        sys.exit(1 if isinstance(error, DivergenceError) else 2)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return f"{error}"


if __name__ == "__main__":
    main()
