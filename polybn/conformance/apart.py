"""Check an adapter in a process of its own, so that an adapter that exits or hangs does not end the check.

The child sends each finding as soon as it has it. If the child dies, or is silent for too long, the check that it was
making has failed, and another child makes the rest.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from ctypes import c_int
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from polybn.conformance.adapter import Info
from polybn.conformance.check import fitting
from polybn.conformance.finding import Finding, clause_of, find, title_of
from polybn.conformance.guard import Printed, silenced
from polybn.conformance.inside import Noting, noted
from polybn.conformance.result import Cause, Result
from polybn.conformance.subject import Subject, UnusableError, make, prepare, why_useless
from polybn.interrupts import held
from polybn.spec import DomainError, DTypeError

STARTING = 120.0
"""Seconds that a child may take to import a library and to make the adapter; a short time limit shortens it, too."""
MOMENT = 0.25
"""Seconds between two looks at the child."""


class Order(NamedTuple):
    """What to check, and how thoroughly; see the arguments of :func:`polybn.conformance.check`."""

    source: str
    profile: str
    dtypes: tuple[str, ...] | None
    seed: int | None
    seconds: float | None = None
    """The time limit of each check; None for the profile's."""
    everything: bool = False
    """Whether everything is checked, so that grades of dtypes that are not declared are left out."""


class Begun(NamedTuple):
    """The child is ready to check."""

    info: Info
    seed: int
    seconds: float
    useless: str
    """Why nothing can be checked; empty if something can."""


def examine(order: Order, wanted: Sequence[str]) -> Iterator[Begun | Finding]:
    """Yield what the adapter declares, then a finding for each wanted id, even if the child dies."""
    rest, begun = list(wanted), None
    starting = STARTING if order.seconds is None else min(STARTING, _patience(order.seconds))
    while begun is None or rest:
        with _child(order if begun is None else order._replace(seed=begun.seed), rest) as (process, pipe, note):
            message = _next(process, pipe, starting)
            if isinstance(message, Exception):
                raise message
            if not isinstance(message, Begun):
                info = Info(order.source, "unknown version") if begun is None else begun.info
                where = f", in {method}" if (method := noted(note)) else " when it was imported and made"
                yield Begun(info, order.seed or 0, 0.0, f"{order.source} {message[1]}{where}")
                return
            if begun is None:
                begun = message
                rest = fitting(rest, begun.info) if order.everything else rest  # as the child does
                yield begun
            if begun.useless:
                return
            while rest:
                message = _next(process, pipe, _patience(begun.seconds))
                if not isinstance(message, Finding):
                    cause, words = message
                    yield _lost(rest.pop(0), cause, ", in ".join(filter(None, (words, noted(note)))))
                    break
                rest.pop(0)
                yield message


def _patience(seconds: float) -> float:
    """Return how long to wait for a child whose own time limit usually ends what takes so many seconds."""
    return seconds * 3 + 30


def _lost(name: str, cause: Cause, words: str) -> Finding:
    result = Result(name, title_of(name), clause_of(name), "fail", f"the adapter {words}", cause=cause)
    return Finding(result)


@contextlib.contextmanager
def _child(order: Order, wanted: Sequence[str]) -> Iterator[tuple[BaseProcess, Connection, c_int]]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks that libraries' threads hold
    ours, theirs = context.Pipe(duplex=False)
    note = context.RawValue(c_int, 0)
    process = context.Process(target=_work, args=(order, list(wanted), theirs, note), daemon=True)
    with held():
        process.start()
    theirs.close()
    try:
        yield process, ours, note
    finally:
        process.kill()
        process.join()
        ours.close()


def _next(process: BaseProcess, pipe: Connection, seconds: float) -> Any:
    """Return the child's next message, or a cause and words about its end."""
    waited = 0.0
    while not pipe.poll(MOMENT):
        waited += MOMENT
        if waited >= seconds:
            return "time", f"did not return within {seconds:g} s, and could not be interrupted"
        if not process.is_alive() and not pipe.poll():
            return "died", _end_of(process)
    try:
        return pipe.recv()
    except EOFError:
        process.join(5)
        return "died", _end_of(process)


def _end_of(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code < 0:
        return f"ended the process by signal {signal.Signals(-code).name}"
    return f"ended the process with exit status {code}"


def _work(order: Order, wanted: list[str], pipe: Connection, note: c_int) -> None:
    """Check in the child; the parent handles an interruption from the keyboard."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # drop what compiled code prints
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        with silenced(Printed()):
            subject = _subject(order)
            subject = subject._replace(adapter=Noting(subject.adapter, note))
        pipe.send(Begun(subject.info, subject.seed, subject.profile.seconds, why_useless(subject)))
    except UnusableError as error:
        pipe.send(Begun(Info(order.source, "unknown version"), 0, 0.0, str(error)))
        return
    except (DomainError, DTypeError, ImportError) as error:
        pipe.send(error)
        return
    for name in fitting(wanted, subject.info) if order.everything else wanted:
        try:
            pipe.send(find(subject, name))
        except KeyboardInterrupt:
            pipe.send(_lost(name, "raised", "raised KeyboardInterrupt"))
    pipe.close()


def _subject(order: Order) -> Subject:
    """Make the adapter, and what is to be checked."""
    subject = prepare(make(order.source), order.profile, dtypes=order.dtypes, seed=order.seed, source=order.source)
    if order.seconds is None:
        return subject
    return subject._replace(profile=subject.profile._replace(seconds=order.seconds))
