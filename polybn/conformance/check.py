"""Hold an adapter to everything the kit knows, and write down what came of it."""

from __future__ import annotations

import difflib
import secrets
import time
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from polybn.conformance import conventions, expected, grades, reproducer, stateful
from polybn.conformance.adapter import Info
from polybn.conformance.properties import PROPERTIES, Property
from polybn.conformance.properties.property import UNTRACKED
from polybn.conformance.report import Report, Result, versions
from polybn.conformance.runner import CallError, KitAdapterError, run
from polybn.conformance.trial import PROFILES, Profile, Tried, attempt
from polybn.spec import DomainError

if TYPE_CHECKING:
    import os

    from polybn.conformance.adapter import Adapter
    from polybn.conformance.conventions import Convention
    from polybn.conformance.grades import Grade

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told, before each part: what comes, how many parts are done, and how many there are."""

GRADES = ("float16", "bfloat16", "float32", "float64")
IDS = (
    *(f"convention-{name}" for name in conventions.NAMES),
    *(prop.id for prop in PROPERTIES),
    stateful.ID,
    *(f"grade-{dtype}" for dtype in GRADES),
)
"""Of everything there is to check, in this order."""


class Subject(NamedTuple):
    """Who is checked, and how thoroughly."""

    adapter: Adapter
    info: Info
    profile: Profile
    seed: int
    source: str | None
    """What makes the adapter again, for reproducers."""
    shrink: bool = True


class Finding(NamedTuple):
    """A result, with what it was drawn from."""

    result: Result
    convention: Convention | None = None
    grade: Grade | None = None


def check(
    adapter: Adapter,
    *,
    profile: str = "dev",
    only: Iterable[str] | None = None,
    xfail: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    dtypes: Iterable[str] | None = None,
    seed: int | None = None,
    source: str | None = None,
    fail_fast: bool = False,
) -> Report:
    """Check a batch norm against the specification, and grade its accuracy.

    Parameters
    ----------
    adapter : Adapter
        Four methods, see :class:`polybn.conformance.adapter.Adapter`.
    profile : {"dev", "ci", "nightly"}
        How much to try: 50, 300 or 20,000 random cases a property; "ci" always the same ones.
    only : iterable of str, optional
        Ids of what to check; everything by default.
    xfail : path, optional
        A file of expected failures, lines of ``property-id  # reason, url``. An entry that matches nothing, or
        that does not fail, is an error.
    progress : callable, optional
        Called as ``progress(what, done, total)`` before each part.
    dtypes : iterable of str, optional
        Check these only, of those that the adapter declares.
    seed : int, optional
        Draws the cases; that of a report repeats it.
    source : str, optional
        What makes the adapter in reproducers, as :func:`polybn.conformance.resolve` takes it; by default its class.
    fail_fast : bool, default False
        Stop at the first failure, and do not look for a smaller case.

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
    >>> conformance.check(conformance.resolve("polybn-numpy"), only=["P15", "P39"]).ok
    True
    """
    wanted = _chosen(only)
    reasons = {} if xfail is None else expected.read(xfail)
    subject = prepare(adapter, profile, dtypes=dtypes, seed=seed, source=source, shrink=not fail_fast)
    start, findings = time.perf_counter(), list[Finding]()
    for done, name in enumerate(wanted):
        if progress is not None:
            progress(title_of(name), done, len(wanted))
        findings.append(find(subject, name))
        if fail_fast and findings[-1].result.status == "fail" and name not in reasons:
            break
    results, errors = expected.judge([finding.result for finding in findings], reasons, IDS)
    return Report(
        info=subject.info,
        profile=profile,
        seed=subject.seed,
        seconds=time.perf_counter() - start,
        versions=versions(),
        conventions=tuple(f.convention for f in findings if f.convention is not None),
        results=tuple(results),
        grades=tuple(f.grade for f in findings if f.grade is not None),
        errors=tuple(errors),
    )


def prepare(
    adapter: Adapter,
    profile: str = "dev",
    *,
    dtypes: Iterable[str] | None = None,
    seed: int | None = None,
    source: str | None = None,
    shrink: bool = True,
) -> Subject:
    """Put together who is checked, and how; the arguments are those of :func:`check`.

    Raises
    ------
    DomainError
        If the profile or a dtype does not exist.
    """
    if profile not in PROFILES:
        raise DomainError(
            f"polybn.conformance.check: profile must be one of {', '.join(PROFILES)}; got {profile!r} "
            "(it says how many random cases to try)"
        )
    info = adapter.info()
    unknown = [d for d in info.dtypes if d not in GRADES]
    chosen = info.dtypes if dtypes is None else tuple(dtypes)
    undeclared = [d for d in chosen if d not in info.dtypes]
    if unknown or undeclared or not chosen:
        rule = (
            f"among {', '.join(GRADES)}"
            if unknown
            else f"among those that {info.name} declares, {', '.join(info.dtypes)}"
        )
        raise DomainError(
            f"polybn.conformance.check: dtypes must be {rule}; got {', '.join(unknown or undeclared) or 'none'} "
            "(see polybn.conformance.Info.dtypes)"
        )
    drawn = PROFILES[profile].seed
    number = seed if seed is not None else drawn if drawn is not None else secrets.randbits(32)
    source = reproducer.source_of(adapter) if source is None else source
    return Subject(adapter, info._replace(dtypes=chosen), PROFILES[profile], number, source, shrink)


def title_of(name: str) -> str:
    """Return the title of what an id stands for.

    Parameters
    ----------
    name : str
        One of :data:`IDS`.
    """
    kind, _, rest = name.partition("-")
    if kind == "convention":
        return f"The {rest} that is declared is the one that is seen."
    if kind == "grade":
        return f"The accuracy in {rest} is that of a class of algorithms."
    return stateful.TITLE if name == stateful.ID else _property(name).title


def find(subject: Subject, name: str) -> Finding:
    """Check one thing.

    Parameters
    ----------
    subject : Subject
        See :func:`prepare`.
    name : str
        One of :data:`IDS`.
    """
    start = time.perf_counter()
    kind, _, rest = name.partition("-")
    with warnings.catch_warnings():
        # Libraries warn of overflow where overflow is what is tested; what must not warn listens for itself.
        warnings.simplefilter("ignore")
        if kind == "convention":
            finding = _convention(subject, name, rest)
        elif kind == "grade":
            finding = _grade(subject, name, rest)
        elif name == stateful.ID and not subject.info.tracks:
            finding = Finding(Result(name, title_of(name), "S4 S5 S7", "not applicable", UNTRACKED))
        elif name == stateful.ID:
            tried = stateful.attempt(
                subject.adapter, subject.info, subject.profile, subject.seed, shrink=subject.shrink
            )
            finding = Finding(_told(subject, name, "S4 S5 S7", tried))
        else:
            finding = Finding(_property_result(subject, _property(name)))
    return finding._replace(result=finding.result._replace(seconds=time.perf_counter() - start))


def _chosen(only: Iterable[str] | None) -> list[str]:
    if only is None:
        return list(IDS)
    wanted = list(only)
    for name in wanted:
        if name not in IDS:
            near = difflib.get_close_matches(name, IDS, 3) or [*IDS[:3], "..."]
            raise DomainError(
                f"polybn.conformance.check: only must name what there is to check; got {name!r} "
                f"(such as {', '.join(near)}; see polybn.conformance.IDS)"
            )
    return [name for name in IDS if name in wanted]


def _property(name: str) -> Property:
    return next(prop for prop in PROPERTIES if prop.id == name)


def _property_result(subject: Subject, prop: Property) -> Result:
    why = prop.why_not(subject.info)
    if prop.slow and not subject.profile.slow:
        why = "it takes long: the profiles ci and nightly check it"
    if why is not None:
        return Result(prop.id, prop.title, prop.clause, "not applicable", why)
    tried = attempt(prop, subject.adapter, subject.info, subject.profile, subject.seed, shrink=subject.shrink)
    return _told(subject, prop.id, prop.clause, tried)


def _told(subject: Subject, name: str, clause: str, tried: Tried) -> Result:
    title = title_of(name)
    result = Result(name, title, clause, "pass", "", tried.cases, tried.vacuous, tried.share)
    if tried.error is not None:
        words = "; ".join(filter(None, (str(tried.error), tried.words)))
        text = reproducer.program(subject.source, title, tried.calls, tried.error)
        return result._replace(status="fail", words=words, reproducer=text)
    if not tried.certified:
        return result._replace(status="not certified", words=tried.words or "no case was judged")
    return result._replace(worst=reproducer.as_data(tried.worst))


def _convention(subject: Subject, name: str, rest: str) -> Finding:
    why = conventions.why_not(subject.info, rest)
    if why is not None:
        return Finding(Result(name, title_of(name), "S4", "not applicable", why))
    found = conventions.detect_one(subject.adapter, subject.info, rest)
    result = Result(name, title_of(name), found.clause, "pass" if found.ok else "fail", "", 1)
    if not found.ok:
        words = f"{rest}: declared {found.declared!r}, seen {found.seen!r} ({found.explanation})"
        result = result._replace(words=words)
    return Finding(result, convention=found)


def _grade(subject: Subject, name: str, dtype: str) -> Finding:
    if dtype not in subject.info.dtypes:
        return Finding(
            Result(name, title_of(name), "S2 S3", "not applicable", f"{dtype} is not declared, or not chosen")
        )
    try:
        found = grades.grade(subject.adapter, subject.info, dtype, run)
    except (CallError, KitAdapterError) as error:
        return Finding(Result(name, title_of(name), "S2 S3", "fail", str(error)))
    held = found.letter != "-"
    words = "" if held else "no class of algorithms allows errors as large as these: " + _worst_row(found)
    result = Result(name, title_of(name), "S2 S3", "pass" if held else "fail", words, len(found.rows))
    return Finding(result, grade=found)


def _worst_row(found: Grade) -> str:
    rows = [row for row in found.rows if any(ratio is not None and not ratio <= 1 for ratio in row.ratio.values())]
    return "; ".join(f"{row.family}, m = {row.m}: error {row.error:.3g}" for row in rows[:3])
