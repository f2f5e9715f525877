"""``polybn bench``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from polybn.console import check_folder, check_place, named, progress, words_beside, write


def bench(
    against: Annotated[
        str, typer.Option(help="What times are divided by. Default: pytorch if installed, else numpy.")
    ] = "",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Time only this backend or peer; may be given several times."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds, after one that warms up.")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Time less, in about a minute.")] = False,
    grow: Annotated[bool, typer.Option("--grow", help="Also time sizes over four decades.")] = False,
    busy: Annotated[bool, typer.Option("--busy", help="Also time LeNet beside two busy processes.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each contender. Default: its own.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds after which a hanging contender is ended.")] = 120,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this file; - prints them.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(metavar="DIR", help="Also draw pictures into this folder.")] = None,
) -> None:
    """Time batch norm and LeNet's training step on every backend and every other library here, each in its own process.

    Contenders run one at a time, in a new order each round. Tables show ratios of two times of the same round: the
    median, and in brackets the quartiles. What is divided by runs in a second process, too: its row "again" shows the
    noise.

    [dim]polybn bench --quick[/dim]
    """
    from polybn.bench import tables
    from polybn.bench.contenders import discover, fastest
    from polybn.bench.record import Record, facts
    from polybn.bench.rounds import Plan, run
    from polybn.bench.tasks import tasks
    from polybn.lenet.pictures import new_figure

    if json_out is not None:
        check_place("bench", "--json", json_out)
    if pictures is not None:
        check_folder("bench", "--pictures", pictures)
        new_figure()  # fails before the first round without matplotlib
    out = words_beside(json_out)
    contenders = discover()
    known = [contender.name for contender in contenders]
    for name in filter(None, [against, *(only or [])]):
        if name not in known:
            raise typer.BadParameter(f"{name!r} cannot be timed here; these can: {', '.join(known)}")
    against = against or ("pytorch" if "pytorch" in known else known[0])
    wanted = only or (fastest(known) if quick else known)
    chosen = [contender for contender in contenders if contender.name in (against, *wanted)]
    jobs = tasks(quick, grow)
    plan = Plan(jobs, chosen, against, rounds, limit=limit, threads=threads, with_busy=busy)
    if quick:
        plan = replace(plan, rounds=min(rounds, 3), block=0.02, limit=min(limit, 30))
    record = Record(against, facts(plan.rounds, threads), dict(chosen))
    with progress(out) as bar:
        task = bar.add_task("starting", total=len(jobs) + busy, completed=-1)
        run(plan, lambda words: bar.update(task, description=words, advance=1, refresh=True), record)
    for title, lines in tables.tables(record).items():
        out.print(f"{title}: medians of time over {against}'s\n{tables.plain(lines)}")
    failed = [row for row in record.rows if row.cannot and not row.cannot.startswith("NotImplementedError")]
    for words in dict.fromkeys(f"{row.contender} was left out: {row.cannot}" for row in failed):
        out.print(words)
    if json_out is not None:
        write(json_out, record.dumps())
        out.print(f"Figures written to {named(json_out)}")
    if pictures is not None:
        from polybn.bench.pictures import save

        out.print("Pictures: " + ", ".join(map(str, save(record, pictures))))
