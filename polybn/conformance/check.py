"""Check an adapter for everything that the kit knows, and report the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from polybn.conformance import expected
from polybn.conformance.adapter import Info
from polybn.conformance.adapters import resolve
from polybn.conformance.finding import IDS, Finding, demand_known, find, title_of
from polybn.conformance.report import Report, versions
from polybn.conformance.subject import UnusableError, prepare, why_useless

if TYPE_CHECKING:
    import os

    from polybn.conformance.adapter import Adapter

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called before each check with its title, how many checks are done, and how many there are."""
NOTHING = "Nothing was checked"


def check(
    adapter: Adapter | str,
    *,
    profile: str = "dev",
    only: Iterable[str] | None = None,
    xfail: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    dtypes: Iterable[str] | None = None,
    seed: int | None = None,
) -> Report:
    """Check a batch norm against the specification, and grade its accuracy.

    Whatever the adapter does, a report is returned, with two exceptions: an adapter that ends the process, and one that
    hangs in compiled code. The command ``polybn check`` runs the adapter in a child process and reports these, too.

    Parameters
    ----------
    adapter : Adapter or str
        An object with four methods, see :class:`polybn.conformance.adapter.Adapter`; or a name that
        :func:`polybn.conformance.resolve` takes.
    profile : {"dev", "ci", "nightly"}
        How much to try: 50, 300 or 20,000 random cases per property. "ci" always draws the same ones.
    only : iterable of str, optional
        Ids of what to check; everything by default.
    xfail : path, optional
        A file of expected failures, lines of ``property-id  # reason, url``. An entry that does not fail is an
        error of the report.
    progress : callable, optional
        Called as ``progress(what, done, total)`` before each check.
    dtypes : iterable of str, optional
        Check these only, of those that the adapter declares.
    seed : int, optional
        The seed of the random cases; the seed of a report repeats its check.

    Returns
    -------
    Report

    Raises
    ------
    DomainError
        If the profile, an id, a dtype, or a line of ``xfail`` does not exist or is not well-formed.

    Examples
    --------
    >>> from polybn import conformance
    >>> conformance.check("polybn-numpy", only=["P15", "P39"]).ok
    True
    """
    only = None if only is None else list(only)
    wanted, reasons = chosen(only), {} if xfail is None else expected.read(xfail)
    source = adapter if isinstance(adapter, str) else None
    made = resolve(adapter) if isinstance(adapter, str) else adapter
    start, findings = time.perf_counter(), list[Finding]()
    try:
        subject = prepare(made, profile, dtypes=dtypes, seed=seed, source=source)
    except UnusableError as error:
        return report_of(Setting(Info(type(made).__name__, "unknown version"), profile), [], str(error))
    useless = why_useless(subject)
    wanted = fitting(wanted, subject.info) if only is None else wanted
    for done, name in enumerate([] if useless else wanted):
        if progress is not None:
            progress(title_of(name), done, len(wanted))
        findings.append(find(subject, name))
    setting = Setting(subject.info, profile, subject.seed, time.perf_counter() - start, reasons)
    return report_of(setting, findings, useless)


class Setting(NamedTuple):
    """How a check was made."""

    info: Info
    profile: str
    seed: int = 0
    seconds: float = 0.0
    reasons: dict[str, str] = {}  # noqa: RUF012 (never written to)
    """The reasons of expected failures, by id."""


def report_of(setting: Setting, findings: Sequence[Finding], useless: str = "", missing: Sequence[str] = ()) -> Report:
    """Make a report; ``useless`` says why nothing could be checked, ``missing`` lists ids that were not reached."""
    reasons = {} if useless else setting.reasons
    results, errors = expected.judge([finding.result for finding in findings], reasons)
    errors += [f"{NOTHING}: {useless}"] if useless else []
    return Report(
        info=setting.info,
        profile=setting.profile,
        seed=setting.seed,
        seconds=setting.seconds,
        versions=versions(),
        conventions=tuple(f.convention for f in findings if f.convention is not None),
        results=tuple(results),
        grades=tuple(f.grade for f in findings if f.grade is not None),
        errors=tuple(errors),
        notes=tuple(dict.fromkeys(f.note for f in findings if f.note)),
        missing=tuple(missing),
        unasked=len({*fitting(list(IDS), setting.info)} - {result.id for result in results} - {*missing}),
    )


def chosen(only: Iterable[str] | None) -> list[str]:
    """Return the ids to check, in their order; refuse those that do not exist."""
    if only is None:
        return list(IDS)
    wanted = list(only)
    for name in wanted:
        demand_known("only", name)
    return [name for name in IDS if name in wanted]


def fitting(wanted: list[str], info: Info) -> list[str]:
    """Leave out the grades of dtypes that are not declared, or not chosen."""
    return [name for name in wanted if not name.startswith("grade-") or name.removeprefix("grade-") in info.dtypes]
