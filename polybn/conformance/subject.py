"""What is checked: an adapter, its declaration, and how thoroughly to check it."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

from polybn.conformance import adapter as contract
from polybn.conformance import reproducer
from polybn.conformance.adapter import Info
from polybn.conformance.adapters import resolve
from polybn.conformance.cases import DTYPES
from polybn.conformance.dialects import whole
from polybn.conformance.guard import OutOfTime, time_limit
from polybn.conformance.lattice import lattice
from polybn.conformance.runner import CallError, KitAdapterError, guarded, run
from polybn.conformance.trial import PROFILES, Profile
from polybn.options import type_name
from polybn.spec import DomainError, DTypeError

if TYPE_CHECKING:
    from polybn.conformance.adapter import Adapter


class UnusableError(DTypeError):
    """An adapter that cannot be checked at all; the message says why."""


class Subject(NamedTuple):
    """An adapter to check, and how thoroughly to check it."""

    adapter: Adapter
    info: Info
    profile: Profile
    seed: int
    source: str | None
    """The name, or ``"module:Class"``, from which programs that repeat a failure make the adapter."""
    shrink: bool = True
    memo: dict[str, Any] = {}  # noqa: RUF012 (each subject that is prepared gets its own)
    """Facts about the adapter that are found out only once."""


def make(source: str) -> Adapter:
    """Make an adapter by name; an error that its own code raises is an :class:`UnusableError`."""
    try:
        return guarded(Info(source, ""), "__init__", lambda: resolve(source))
    except CallError as error:
        cause = error.__cause__
        if isinstance(cause, DomainError | DTypeError | ImportError):
            raise cause from None
        raise UnusableError(str(error)) from error


def prepare(
    adapter: Adapter,
    profile: str = "dev",
    *,
    dtypes: Iterable[str] | None = None,
    seed: int | None = None,
    source: str | None = None,
    shrink: bool = True,
) -> Subject:
    """Make a subject from the arguments of :func:`polybn.conformance.check`."""
    if profile not in PROFILES:
        raise DomainError(
            f"polybn.conformance.check: profile must be one of {', '.join(PROFILES)}; got {profile!r} "
            "(it says how many random cases to try)"
        )
    info = declaration(adapter)
    chosen = info.dtypes if dtypes is None else tuple(dtypes)
    undeclared = [d for d in chosen if d not in info.dtypes]
    if undeclared or not chosen:
        raise DomainError(
            f"polybn.conformance.check: dtypes must be among those that {info.name} declares, "
            f"{', '.join(info.dtypes)}; got {', '.join(undeclared) or 'none'} (see polybn.conformance.Info.dtypes)"
        )
    drawn = PROFILES[profile].seed
    number = seed if seed is not None else drawn if drawn is not None else secrets.randbits(32)
    source = reproducer.source_of(adapter) if source is None else source
    return Subject(adapter, info._replace(dtypes=chosen), PROFILES[profile], number, source, shrink, {})


def declaration(adapter: Adapter) -> Info:
    """Return the declaration of an adapter, or raise :class:`UnusableError` if it is not valid."""
    name = type(adapter).__name__
    try:
        info: object = guarded(Info(name, ""), "info", adapter.info)
    except (CallError, AttributeError) as error:
        raise UnusableError(str(error)) from error
    if not isinstance(info, Info):
        raise UnusableError(f"{name}.info must return a polybn.conformance.Info; got {type_name(info)}")
    for field, rule in _broken(info):
        raise UnusableError(f"{name}.info: {field} must be {rule}; got {getattr(info, field)!r}")
    try:
        info = whole(info)
    except DomainError as error:
        raise UnusableError(str(error)) from error
    methods = {
        "train": True,
        "infer": info.infers,
        "vjp": info.differentiates,
        "infer_vjp": info.differentiates_inference,
    }
    missing = [method for method, there in methods.items() if there and not callable(getattr(adapter, method, None))]
    if missing:
        raise UnusableError(f"{name} must have the methods that it declares; it lacks {', '.join(missing)}")
    return info


def _broken(info: Info) -> Iterable[tuple[str, str]]:
    """Yield the fields that break the rules of their documentation, each with its rule."""
    for field, hint in get_type_hints(Info, vars(contract)).items():
        value, words = getattr(info, field), get_args(hint)
        if words and all(isinstance(word, str) for word in words) and value not in words:
            yield field, f"one of {', '.join(map(repr, words))}"
        if hint in (str, bool) and not isinstance(value, hint):
            yield field, f"a {hint.__name__}"
    if not isinstance(info.dtypes, tuple) or not info.dtypes or not {*info.dtypes} <= {*DTYPES}:
        yield "dtypes", f"a tuple of dtypes among {', '.join(DTYPES)}"
    if (
        not isinstance(info.ranks, tuple)
        or not info.ranks
        or not all(type(r) is int and 2 <= r <= 32 for r in info.ranks)
    ):
        yield "ranks", "a tuple of ints of 2 or more"
    if info.max_kappa is not None and not (isinstance(info.max_kappa, int | float) and info.max_kappa >= 1):
        yield "max_kappa", "a number of 1 or more, or None"


def why_useless(subject: Subject) -> str:
    """Return why nothing can be checked, if no training call of any dtype and rank returns; else an empty string."""
    if "useless" not in subject.memo:
        limit = subject.profile.seconds
        try:
            with time_limit(limit):
                subject.memo["useless"] = _first_error(subject.adapter, subject.info)
        except OutOfTime:
            subject.memo["useless"] = f"{subject.info.name}.train did not return within {limit:g} s (--limit sets more)"
    return str(subject.memo["useless"])


def _first_error(adapter: Adapter, info: Info) -> str:
    first = ""
    for dtype, rank in itertools.product(info.dtypes, info.ranks):
        case = lattice(1, dtype, 3, (4, *(1,) * (rank - 2)), 1).case
        # Who serves the last axis only, and does not declare it yet, can be told so.
        for call in (case, case.moved(rank - 1)) if info.axes == "any" else (case,):
            try:
                run(adapter, info, call, gradients=False)
            except (CallError, KitAdapterError) as error:
                first = first or str(error)
            else:
                return ""
    return first
