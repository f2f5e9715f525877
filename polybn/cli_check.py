"""``polybn check``: hold a batch norm against the specification."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from polybn.atomic import write_atomic
from polybn.spec import DomainError

if TYPE_CHECKING:
    from polybn.conformance.grades import Letter
    from polybn.conformance.report import Report

out = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
err = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
STYLES = {"pass": "green", "fail": "bold red", "expected failure": "yellow", "not certified": "magenta"}


def check(
    backend: Annotated[
        str | None, typer.Option(help="Check a backend of PolyBN; polybn info lists them.", show_default=False)
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|package.module:Class",
            help="Check any batch norm through its adapter: your own, or one that comes with polybn, such as pytorch.",
            show_default=False,
        ),
    ] = None,
    jit: Annotated[
        bool, typer.Option("--jit", help="With --backend jax: call it inside jax.jit, as in a user's own program.")
    ] = False,
    profile: Annotated[
        Literal["dev", "ci", "nightly"],
        typer.Option(help="50, 300 or 20,000 random cases a property; ci always draws the same ones."),
    ] = "dev",
    xfail: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Expected failures, a line each: ID  # reason, url. Entries that pass are errors.",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="Check this dtype of x only; may be given several times.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Check this only, such as P7; may be given several times.")
    ] = None,
    at_least: Annotated[
        Literal["S", "K", "T", "N", "F", "O"] | None,
        typer.Option(help="Also fail if the grade of a dtype is worse than this; S is the best.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the cases of an earlier report again.")] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write everything as JSON.")
    ] = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write one HTML page, with pictures.")
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Instead, compare the accuracy of every library that is installed here.")
    ] = False,
    into: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="With --peers: put the table between the marks of a Markdown file."),
    ] = None,
) -> None:
    """Check a batch norm against the specification, property by property, and grade its accuracy.

    The exit code is 1 if something failed that was not expected to, or if a grade is worse than --at-least.

    Grades say which algorithm could have made errors as large as these: S, within 4 units in the last place at any
    mean; K, free of kappa, so the mean does not matter; T, two passes, sums in a tree; N, two passes, sums in any
    order; F, Welford's or Chan's first-order recurrence; O, one pass.

    [dim]polybn check --backend numpy
    polybn check --adapter my_package.batch_norm:MyAdapter --html report.html
    polybn check --adapter pytorch --dtype float32 --xfail known.txt
    polybn check --backend numpy --only P7 --only P22
    polybn check --backend numpy --at-least K
    polybn check --backend jax --jit --only grade-float32
    polybn check --peers --json peers.json[/dim]
    """
    if peers:
        _compare_peers(json_out, into or [])
        return
    from polybn import conformance

    source = _source(backend, adapter, jit=jit)
    if html_out is not None:
        _require_matplotlib()  # before the checks, not after them
    if adapter is not None:  # a command that was installed does not look where it is run, and there the adapter lies
        sys.path.insert(0, str(Path.cwd()))
    subject = conformance.resolve(source)
    with _bar() as bar:
        task = bar.add_task("")
        report = conformance.check(
            subject, profile=profile, only=only or None, xfail=xfail, dtypes=dtype or None, seed=seed, source=source,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )  # fmt: skip
    _show(report)
    for path, text in ((json_out, report.to_json), (html_out, report.to_html)):
        if path is not None:
            write_atomic(path, text().encode())
            out.print(f"Written to {path}")
    worse = [] if at_least is None else _worse(report, at_least)
    for line in worse:
        out.print(line)
    if worse or not report.ok:
        raise typer.Exit(1)


def _source(backend: str | None, adapter: str | None, *, jit: bool) -> str:
    """Name the adapter of what is to be checked."""
    from polybn.conformance.adapters import ADAPTERS

    if (backend is None) == (adapter is None):
        both = "both" if backend is not None else "neither"
        raise DomainError(
            f"polybn check: one of --backend and --adapter must be given; got {both} (what shall be checked?)"
        )
    name = str(adapter) if backend is None else f"polybn-{backend}"
    if not jit:
        return name
    if backend is None or f"{name}-jit" not in ADAPTERS:
        given = f"--adapter {adapter}" if backend is None else f"--backend {backend}"
        raise DomainError(f"polybn check: --jit must come with --backend jax; got {given} (no other compiles calls)")
    return f"{name}-jit"


def _worse(report: Report, letter: Letter) -> list[str]:
    from polybn.conformance.grades import LETTERS, at_least

    if not report.grades:
        return [f"No dtype was graded, so none is of class {letter} or better."]
    return [
        f"{grade.dtype} must be of class {letter}, {LETTERS[letter]}, or better; got {grade.letter} (see --at-least)."
        for grade in report.grades
        if not at_least(grade.letter, letter)
    ]


def _compare_peers(json_out: Path | None, into: list[Path]) -> None:
    from polybn.conformance import peers
    from polybn.conformance.adapters import ADAPTERS

    measured = []
    with _bar() as bar:
        task = bar.add_task("", total=len(ADAPTERS))
        for peer in peers.run():
            measured.append(peer)
            bar.update(task, advance=1, description=peer.adapter)
    text = peers.to_json(measured)
    record = json.loads(text)
    out.print(peers.to_markdown(record))
    filled = [(path, peers.fill(path.read_text(encoding="utf-8"), record)) for path in into]
    for path, content in [(json_out, text), *filled]:
        if path is not None:
            write_atomic(path, content.encode())
            out.print(f"Written to {path}")


def _require_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        raise ImportError('polybn check: --html needs matplotlib for its pictures: pip install "polybn[plot]"')


def _bar() -> Progress:
    return Progress(
        BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"),
        console=err, transient=True, disable=not err.is_terminal,
    )  # fmt: skip


def _show(report: Report) -> None:
    table = Table(
        "id", "result", "cases", "error / bound", "what it says", title=report.info.name, title_justify="left"
    )
    for result in report.results:
        judged = result.status in ("pass", "fail", "not certified") and result.cases
        table.add_row(
            result.id,
            Text(result.status, STYLES.get(result.status, "dim")),
            f"{result.cases - result.vacuous:,}" if judged else "",
            f"{result.share:.2g}" if result.share else "exact" if result.exact else "",
            result.title,
        )
    out.print(table)
    for result in report.failures:
        if result.reproducer:
            out.print(Text.assemble((f"\nTo repeat {result.id}:", "bold")))
            out.print(result.reproducer)
    out.print(f"\n{report}")
