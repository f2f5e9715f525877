"""Check one thing about an adapter and say in words what was found, even if the adapter fails or hangs."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from polybn.conformance import conventions, dialects, grades, reproducer, stateful, varying
from polybn.conformance.advice import tells
from polybn.conformance.cases import DTYPES
from polybn.conformance.guard import OutOfTime, Printed, silenced, time_limit
from polybn.conformance.properties import PROPERTIES, Property, affine_faults, gradient_faults, lengths
from polybn.conformance.properties.compare import close
from polybn.conformance.properties.property import UNTRACKED
from polybn.conformance.result import Cause, Result
from polybn.conformance.runner import CallError, KitAdapterError, Recorder, Violation, run
from polybn.conformance.trial import Tried, attempt
from polybn.near import near
from polybn.spec import DomainError

if TYPE_CHECKING:
    from polybn.conformance.adapter import Info
    from polybn.conformance.convention import Convention
    from polybn.conformance.grades import Grade
    from polybn.conformance.subject import Subject

GRADES = tuple(DTYPES)
IDS = (
    *(f"convention-{name}" for name in conventions.NAMES),
    *(prop.id for prop in PROPERTIES),
    stateful.ID,
    *(f"grade-{dtype}" for dtype in GRADES),
)
"""The ids of everything that can be checked, in this order."""
OF_GRADES = {"momentum", "running_variance", "flushes", "trains_by", "axes", "ranks", "dtypes"}
"""The conventions that a grade depends on."""
OF_LENGTHS = {"P1", "P2", "P3", "P4"}
"""Properties of lattice calls with many numbers of values."""
VARIES = "The same call gives different results, so nothing can be said of what is declared"


class Finding(NamedTuple):
    """A result, and the convention or the grade that it sums up."""

    result: Result
    convention: Convention | None = None
    grade: Grade | None = None
    note: str = ""
    """A remark that is no failure, such as that the adapter prints."""


def demand_known(option: str, name: str, *, function: str = "check") -> None:
    """Refuse an id that does not exist, with those that may be meant."""
    if name not in IDS:
        raise DomainError(
            f"polybn.conformance.{function}: {option} must name what there is to check; got {name!r} "
            f"(such as {', '.join(near(name, IDS) or [*IDS[:3], '...'])}; see polybn.conformance.IDS)"
        )


def title_of(name: str) -> str:
    """Return the title of a check."""
    kind, _, rest = name.partition("-")
    if kind == "convention":
        return f"What is declared about {rest.replace('_', ' ')} is what is seen."
    if kind == "grade":
        return f"The accuracy in {rest} is that of a class of algorithms."
    return stateful.TITLE if name == stateful.ID else property_of(name).title


def clause_of(name: str) -> str:
    """Return the clauses of the specification that a check follows from."""
    kind, _, rest = name.partition("-")
    if kind == "convention":
        return conventions.clause_of(rest)
    if kind == "grade":
        return "S2 S3"
    return "S4 S5 S7" if name == stateful.ID else property_of(name).clause


def property_of(name: str) -> Property:
    """Return the property with an id."""
    return next(prop for prop in PROPERTIES if prop.id == name)


def find(subject: Subject, name: str) -> Finding:
    """Check one of :data:`IDS`; a failure that comes from a wrong declaration is marked as an echo of it."""
    start, printed = time.perf_counter(), Printed()
    # Libraries warn about overflows that are tested on purpose. A property that forbids warnings records them itself.
    with warnings.catch_warnings(), silenced(printed):
        warnings.simplefilter("ignore")
        finding = _found(subject, name)
        if finding.result.status == "fail" and finding.convention is None and not tells(finding.result):
            finding = _marked(subject, finding)
    prints = f"The adapter prints while it is checked, first {printed.first!r}." if printed.first else ""
    seconds = time.perf_counter() - start
    return finding._replace(result=finding.result._replace(seconds=seconds), note=finding.note or prints)


def _found(subject: Subject, name: str) -> Finding:
    """Check one thing within the time limit; an error of the kit itself is not counted against the adapter."""
    recorder, blank = Recorder(subject.adapter), Result(name, title_of(name), clause_of(name), "not certified")
    limit = subject.profile.seconds
    try:
        with time_limit(limit):
            return _look(subject, recorder, blank)
    except OutOfTime:
        hangs = recorder.inside and time.monotonic() - recorder.since > limit / 2
        if hangs:
            words = f"{subject.info.name}.{recorder.inside} did not return within {limit / 2:g} s"
            return Finding(blank._replace(status="fail", words=words, cause="time"))
        return Finding(blank._replace(words=f"not finished after {limit:g} s; nothing was wrong until then"))
    except Exception as error:  # an error of the adapter would be a CallError or a KitAdapterError
        words = f"the kit itself failed here, which is no fault of yours: {type(error).__name__}: {error}"
        return Finding(blank._replace(words=words))


def _look(subject: Subject, recorder: Recorder, blank: Result) -> Finding:
    kind, _, rest = blank.id.partition("-")
    if kind == "convention":
        return _convention(subject, recorder, blank, rest)
    if kind == "grade":
        return _grade(subject, recorder, blank, rest)
    why = _why_not(subject, blank.id)
    if why is not None:
        return Finding(blank._replace(status="not applicable", words=why))
    return Finding(_told(subject, blank, _tried(subject, recorder, subject.info, blank.id)))


def _why_not(subject: Subject, name: str) -> str | None:
    if name == stateful.ID:
        return None if subject.info.tracks else UNTRACKED
    prop = property_of(name)
    if prop.slow and not subject.profile.slow:
        return "it takes long: the profiles ci and nightly check it"
    return prop.why_not(subject.info)


def _applies(info: Info, name: str) -> bool:
    return name == stateful.ID or property_of(name).why_not(info) is None


def _tried(subject: Subject, recorder: Recorder, info: Info, name: str) -> Tried:
    profile, seed, shrink = subject.profile, subject.seed, subject.shrink
    if name == stateful.ID:
        return stateful.attempt(recorder, info, profile, seed, shrink=shrink)
    return attempt(property_of(name), recorder, info, profile, seed, shrink=shrink)


def _told(subject: Subject, blank: Result, tried: Tried) -> Result:
    result = blank._replace(status="pass", cases=tried.cases, vacuous=tried.vacuous, share=tried.share)
    if tried.error is not None:
        words = "; ".join(filter(None, (str(tried.error), tried.words)))
        usual, where = _explained(subject, blank.id, tried)
        words = ": ".join(filter(None, (_context(blank.id, tried.error), usual, where, words)))
        # A fault that has a name is no matter of roundings, however small the case that shows it.
        cause = "unstable" if tried.unstable else "" if usual else cause_of(tried.error)
        text = reproducer.program(subject.source, f"{result.title} {words}", tried.calls, tried.error)
        if text and not reproducer.repeats(text, subject.adapter, subject.source, tried.outcomes):
            text = f"{reproducer.NOT_REPEATED}\n{text}"
        return result._replace(status="fail", words=words, reproducer=text, cause=cause)
    if not tried.certified:
        some = f"in {tried.vacuous:,} of {tried.cases:,} cases, " if tried.cases and tried.words else ""
        return result._replace(status="not certified", words=some + (tried.words or "no case was judged"))
    return result._replace(worst=reproducer.as_data(tried.worst))


def _context(name: str, error: BaseException) -> str:
    """Say what was called, if the words of a wrong result do not."""
    return property_of(name).context if name != stateful.ID and type(error) is Violation else ""


def _explained(subject: Subject, name: str, tried: Tried) -> tuple[str, str]:
    """Say what usual fault an exact answer shows, or else at which lengths it is wrong, as far as it can be seen."""
    if name not in OF_LENGTHS or type(tried.error) is not Violation:
        return "", ""
    info = subject.info._replace(dtypes=(tried.calls[-1].arrays["x"].dtype,))  # other dtypes may have other kernels
    try:
        if _varies(subject):
            return "", ""
        usual = _usual(subject, name, info)
        return usual, "" if usual else lengths.said(property_of(name).check, subject.adapter, info)
    except (OutOfTime, Exception):  # other calls may hang or raise, which is no reason to forget this one
        return "", ""


def _usual(subject: Subject, name: str, info: Info) -> str:
    """Say what usual fault the results have that a property is about; nothing if they have none."""
    if name == "P3":
        return gradient_faults.said(subject.adapter, info)
    return affine_faults.said(subject.adapter, info, training=name == "P1") if name in ("P1", "P4") else ""


def cause_of(error: BaseException) -> Cause:
    """Return what kind of failure an error is."""
    if isinstance(error, Violation) and close(error.got, error.expected):
        return "bits"
    return "contract" if isinstance(error, KitAdapterError) else "raised" if isinstance(error, CallError) else ""


def _convention(subject: Subject, recorder: Recorder, blank: Result, rest: str) -> Finding:
    why = conventions.why_not(subject.info, rest)
    if why is not None:
        return Finding(blank._replace(status="not applicable", words=why))
    found = conventions.detect_one(recorder, subject.info, rest)
    if not found.known:
        return Finding(blank._replace(words="it could not be seen: other results are not as they should be"))
    if found.ok:
        idle = found.name == "flushes" and found.seen != found.declared
        word = dialects.TRAITS["flushes"] if subject.info.of_backend else "flushes"
        note = f"{word}=True is declared, but subnormal numbers were kept: without it, bounds are narrower."
        return Finding(blank._replace(status="pass", cases=1), found, note=note if idle else "")
    if _varies(subject):
        return Finding(blank._replace(status="fail", words=VARIES, cases=1, cause="unstable"))
    declared = "" if subject.info.of_backend else f"declared {found.declared!r}; "
    words = f"{found.advice} ({declared}{found.explanation})"
    return Finding(blank._replace(status="fail", words=words, cases=1, cause="convention"), found)


def _grade(subject: Subject, recorder: Recorder, blank: Result, dtype: str) -> Finding:
    if dtype not in subject.info.dtypes:
        return Finding(blank._replace(status="not applicable", words=f"{dtype} is not declared, or not chosen"))
    if subject.info.trains_by == "running":
        return Finding(blank._replace(status="not applicable", words="training does not normalize by the batch"))
    wrong = {name: value for name, value in corrections(subject).items() if name in OF_GRADES}
    if wrong:
        words = f"there is no grade while a convention is declared wrongly: {dialects.declare(subject.info, wrong)}"
        return Finding(blank._replace(words=words))
    try:
        found = grades.grade(recorder, subject.info, dtype, run)
    except (CallError, KitAdapterError) as error:
        return Finding(blank._replace(status="fail", words=str(error), cause=cause_of(error)))
    held = found.letter != "-"
    words = "" if held else f"no class of algorithms allows errors as large as these: {_worst(found)}"
    return Finding(blank._replace(status="pass" if held else "fail", words=words, cases=len(found.rows)), grade=found)


def _worst(found: Grade) -> str:
    rows = [row for row in found.rows if any(ratio is not None and not ratio <= 1 for ratio in row.ratio.values())]
    return "; ".join(f"{row.offender} of {row.family}, m = {row.m}" for row in rows[:3])


def corrections(subject: Subject) -> dict[str, Any]:
    """Return the fields to declare, with the values that were seen, where the declaration is wrong."""
    if "corrections" not in subject.memo:
        found = conventions.detect(subject.adapter, subject.info)
        if not all(c.ok for c in found) and _varies(subject):
            found = []
        subject.memo["corrections"] = {name: value for c in found for name, value in c.correction}
    made: dict[str, Any] = subject.memo["corrections"]
    return made


def _varies(subject: Subject) -> bool:
    """Return whether the same call gives different results, so that what one call shows may be chance."""
    if "varies" not in subject.memo:
        subject.memo["varies"] = varying.varies(subject.adapter, subject.info)
    return bool(subject.memo["varies"])


def _marked(subject: Subject, finding: Finding) -> Finding:
    """Mark a failure that disappears with true declarations as an echo of the wrong ones."""
    result, name = finding.result, finding.result.id
    if result.cause == "time" or name.startswith("grade-"):
        return finding
    try:
        with time_limit(subject.profile.seconds):
            wrong = corrections(subject)
            info = subject.info._replace(**wrong) if wrong else subject.info
            if not wrong or (_applies(info, name) and _tried(subject, Recorder(subject.adapter), info, name).error):
                return finding
    except (OutOfTime, Exception):  # not known to be an echo
        return finding
    reason = dialects.declare(subject.info, wrong)
    return finding._replace(result=result._replace(status="echo", reason=reason, reproducer=""))
