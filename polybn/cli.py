"""The command line, ``polybn``: from its commands to their exit codes."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator
from inspect import cleandoc
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from polybn import dispatch
from polybn.bench.command import bench
from polybn.commands.agree import agree
from polybn.commands.check import check
from polybn.commands.convert import convert
from polybn.commands.dialects import dialects
from polybn.commands.inspect import inspect
from polybn.console import err, folded, out, shown, whole
from polybn.lenet.commands.compare import compare
from polybn.lenet.commands.data import data
from polybn.lenet.commands.export import export
from polybn.lenet.commands.predict import predict
from polybn.lenet.commands.train import train
from polybn.lenet.errors import CheckpointError, DivergenceError
from polybn.spec import Backend, BackendError, DomainError, DTypeError, ShapeError, traits_of
from polybn.statistics.command import stats
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
    "with [bold]--norm none[/bold]; [bold]polybn compare runs[/bold] then draws what batch norm gains.\n\n"
    "A file that a command is told to write takes the place of one that is there, as a whole; files that it "
    "reads are never replaced.",
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


def info() -> None:
    """List the backends with their versions and devices, or why one cannot run here; a bug report begins with this."""
    out.print(f"polybn {__version__}, Python {sys.version.split()[0]}")
    found = dispatch.backends()
    table = Table(whole("backend", *found), "runs here", folded("versions and device, or why not"))
    for name, reason in found.items():
        if reason is not None:
            table.add_row(name, "no", reason)
            continue
        table.add_row(name, Text("yes", "green"), ", ".join(_facts(dispatch.backend(name))))
    out.print(table)


def _facts(backend: Backend) -> Iterator[str]:
    yield from (f"{key} {value}" for key, value in backend.describe().items())
    traits = traits_of(backend)
    if traits.devices is not None:
        option = " (--device)" if hasattr(backend, "compile") else ""
        yield f"sees {', '.join(traits.devices())}{option}"
    if traits.several_devices:
        yield "trains on several devices (--devices)"
    if traits.native_norm:
        yield "has a batch norm of its own (--norm native)"


_COMMANDS: tuple[Callable[..., None], ...] = (
    *(train, compare, predict, data, export),
    *(info, stats, bench, check, agree, dialects, inspect, convert),
)


def _help(command: Callable[..., None]) -> str:
    """Return a command's docstring with a line for each paragraph, which the terminal's width then breaks."""
    paragraphs = cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(p if p.startswith("[dim]") else p.replace("\n", " ") for p in paragraphs)


for _command in _COMMANDS:
    # A name without an option gets an error of its own, which says which option takes it.
    app.command(help=_help(_command), context_settings={"allow_extra_args": _command is check})(_command)


def main() -> None:
    """Run the command line; show errors that a user can fix as one sentence, without a traceback."""
    for stream in (sys.stdout, sys.stderr):  # file names may hold bytes that no encoding can show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = _in_words
    try:
        app()
    except EXPECTED as error:
        err.print(Text.assemble(("error: ", "bold red"), _words(error)))
        sys.exit(1 if isinstance(error, DivergenceError) else 2)


def _in_words(message: Warning | str, *_: object, **__: object) -> str:
    """Show a warning without its place in the code, which tells nothing to who types a command."""
    return f"warning: {message}\n"


def _words(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name in ("hypothesis", "ml_dtypes"):
        return f"polybn: this command needs {error.name}: {sys.executable} -m pip install hypothesis ml_dtypes"
    known = isinstance(error, OSError) and error.strerror and error.filename is not None
    said = f"{error.strerror}: {error.filename}" if known else f"{error}"  # type: ignore[attr-defined]
    return "\n".join(map(shown, said.split("\n")))
