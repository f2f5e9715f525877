"""``polybn check``: check a batch norm against the specification."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polybn import dispatch
from polybn.atomic import write_atomic
from polybn.commands.checking import Checking
from polybn.console import check_place, hint, named, out, progress, words_beside, write
from polybn.spec import DomainError

if TYPE_CHECKING:
    from polybn.conformance.grades import Letter
    from polybn.conformance.report import Report

INTERRUPTED = 130
"""The exit code after Ctrl-C, the same as in shells."""


def check(
    context: typer.Context,
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
        bool, typer.Option("--jit", help="With --backend: call it inside its library's jit, as user programs do.")
    ] = False,
    new_adapter: Annotated[
        Path | None,
        typer.Option(metavar="FILE.py", help="Instead, write an adapter that runs, for you to fill in."),
    ] = None,
    profile: Annotated[
        Literal["dev", "ci", "nightly"],
        typer.Option(help="Random cases per property: dev 50, ci 300 and always the same ones, nightly 20,000."),
    ] = "dev",
    xfail: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Expected failures, one per line: ID  # reason, url. Entries that pass are errors.",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DTYPE",
            help="Check only this dtype of x: float16, bfloat16, float32 or float64; may be given several times.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Check only this, such as P7; may be given several times.")
    ] = None,
    list_ids: Annotated[bool, typer.Option("--list", help="Instead, list everything that can be checked.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the most important sentence, and the verdict.")
    ] = False,
    at_least: Annotated[
        Literal["S", "K", "T", "N", "F", "O"] | None,
        typer.Option(help="Also fail if the grade of a dtype is worse than this; S is the best.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of an earlier report, to draw the same cases.")] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=1,
            help="The time limit of each check; with --peers, of each library.",
            show_default=False,
        ),
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write everything as JSON; - prints it.")
    ] = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write one HTML page, with pictures.")
    ] = None,
    junit_out: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML, for CI services.")
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Instead, compare the accuracy of every library that is installed here.")
    ] = False,
    into: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="With --peers: put the table into a Markdown file, after <!-- peers -->."),
    ] = None,
) -> None:
    """Check a batch norm against the specification, property by property, and grade its accuracy.

    The report begins with the one sentence that the author of the batch norm needs. The exit code is 1 if something
    failed unexpectedly, or if a grade is worse than --at-least. The batch norm runs in a process of its own, so it may
    crash, exit or hang. Files are written while the check goes on; Ctrl-C keeps what was found.

    Grades say which algorithm could have made errors as large as these: S, within 4 units in the last place at any
    mean; K, free of kappa, so the mean does not matter; T, two passes, sums in a tree; N, two passes, sums in any
    order; F, Welford's or Chan's first-order recurrence; O, one pass.

    [dim]polybn check --new-adapter my_adapter.py
    polybn check --adapter my_adapter:MyBatchNorm --html report.html
    polybn check --backend numpy
    polybn check --adapter pytorch --dtype float32 --xfail known.txt
    polybn check --backend numpy --only P7 --only P22
    polybn check --backend numpy --at-least K
    polybn check --backend jax --jit --only grade-float32
    polybn check --peers --json peers.json[/dim]
    """
    if list_ids:
        _list()
        return
    if new_adapter is not None:
        _write_skeleton(new_adapter)
        return
    if peers:
        _compare_peers(json_out, into or [], limit)
        return
    from polybn.conformance.adapters.here import sources
    from polybn.conformance.apart import Order
    from polybn.conformance.check import chosen
    from polybn.conformance.expected import read

    order = Order(
        _source(backend, adapter, context.args, jit=jit),
        profile,
        tuple(dtype) if dtype else None,
        seed,
        limit,
        not only,
    )
    files = _files(json_out, html_out, junit_out, *sources(order.source), *filter(None, [xfail]))
    words = words_beside(*files)
    report = Checking(chosen(only or None), read(xfail) if xfail else {}, files, words, quiet=quiet).run(order)
    worse = [] if at_least is None else _worse(report, at_least)
    for line in worse:
        words.print(line)
    if report.missing:
        raise typer.Exit(INTERRUPTED)
    if worse or not report.ok:
        raise typer.Exit(1)


def _list() -> None:
    from polybn.conformance import IDS
    from polybn.conformance.finding import clause_of, title_of

    for name in IDS:
        out.print(f"{name:<27} {title_of(name)} [{clause_of(name)}]")


def _write_skeleton(path: Path) -> None:
    from polybn.conformance import skeleton

    module = path.stem
    if path.suffix != ".py" or not module.isidentifier():
        raise DomainError(f"polybn check: --new-adapter must name a Python module; got {path} (my_adapter.py is one)")
    if path.exists():
        raise DomainError(f"polybn check: --new-adapter must name a new file; got {path}, which exists (it is kept)")
    check_place("check", "--new-adapter", path)
    write_atomic(path, skeleton.text(module).encode())
    place = "" if path.parent == Path() else f"cd {path.parent} && "
    out.print(f"Written to {path}. Fill it in, and check it:\n{place}polybn check --adapter {module}:MyBatchNorm")


def _files(
    json_out: Path | None, html_out: Path | None, junit_out: Path | None, *read: Path
) -> dict[Path, Callable[[Report], str]]:
    """Return the files to write; refuse paths that cannot be written before the checks begin, not after them."""
    from polybn.conformance import html, junit

    if html_out is not None and find_spec("matplotlib") is None:
        raise ImportError('polybn check: --html needs matplotlib for its pictures: pip install "polybn[plot]"')
    wanted: dict[str, tuple[Path | None, Callable[[Report], str]]] = {
        "--json": (json_out, lambda report: report.to_json()),
        "--html": (html_out, html.page),
        "--junit": (junit_out, junit.document),
    }
    asked = {option: path for option, (path, _) in wanted.items() if path is not None}
    for option, path in asked.items():
        check_place("check", option, path, *read)
    if len({*asked.values()}) < len(asked):
        raise DomainError(
            f"polybn check: {', '.join(asked)} must name different files; got {', '.join(map(str, asked.values()))} "
            "(each is written whole)"
        )
    return {path: text for path, text in wanted.values() if path is not None}


def _source(backend: str | None, adapter: str | None, words: Sequence[str] = (), *, jit: bool) -> str:
    """Return the name of the adapter to check; ``words`` are arguments without an option, of which there are none."""
    for option, name in (("", next(iter(words), None)), ("--backend", backend), ("--adapter", adapter)):
        if name is not None and (meant := _option_of(name) or option or "--adapter") != option:
            got = f"{option} {name}" if option else f"{name} alone"
            raise DomainError(
                f"polybn check: --backend must take a backend, and --adapter an adapter; got {got} "
                f"({hint('check', meant, name)})"
            )
    if (backend is None) == (adapter is None):
        both = "both" if backend is not None else "neither"
        raise DomainError(
            f"polybn check: one of --backend and --adapter must be given; got {both} "
            "(to begin an adapter: polybn check --new-adapter my_adapter.py)"
        )
    if jit and backend is None:
        raise DomainError(f"polybn check: --jit must come with --backend; got --adapter {adapter}")
    return str(adapter) if backend is None else f"polybn-{backend}{'-jit' if jit else ''}"


def _option_of(name: str) -> str:
    """Return the option that takes a name, or nothing if the name is unknown."""
    from polybn.conformance.adapters import ADAPTERS

    if name in dispatch.installed():
        return "--backend"
    return "--adapter" if ":" in name or name in ADAPTERS else ""


def _worse(report: Report, letter: Letter) -> list[str]:
    from polybn.conformance.grades import LETTERS, at_least

    if not report.grades:
        return [f"No dtype was graded, so none is of class {letter} or better."]
    return [
        f"{grade.dtype} must be of class {letter}, {LETTERS[letter]}, or better; got {grade.letter} (see --at-least)."
        for grade in report.grades
        if not at_least(grade.letter, letter)
    ]


def _compare_peers(json_out: Path | None, into: list[Path], limit: float | None) -> None:
    from polybn.conformance import peers

    if json_out is not None:
        check_place("check", "--json", json_out, *into)
    pages = dict[Path, str]()
    for file in into:
        check_place("check", "--into", file)
        pages[file] = file.read_text(encoding="utf-8")
        peers.check_page(file, pages[file])
    words, measured = words_beside(json_out), list[peers.Peer]()
    with progress(words) as bar:
        names = peers.everyone()
        task = bar.add_task(names[0], total=len(names))
        for comes, peer in zip([*names[1:], ""], peers.run(names, limit or peers.LIMIT), strict=True):
            measured.append(peer)
            bar.update(task, advance=1, description=comes, refresh=True)
    text = peers.to_json(measured)
    record = json.loads(text)
    words.print(peers.to_markdown(record))
    filled = [(path, peers.fill(page, record)) for path, page in pages.items()]
    for path, content in [(json_out, text), *filled]:
        if path is not None:
            write(path, content)
            words.print(f"Written to {named(path)}")
