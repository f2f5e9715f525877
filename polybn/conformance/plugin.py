"""One line in a pytest suite makes a test of each property, convention and grade."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polybn.conformance import expected as expectations
from polybn.conformance.finding import IDS, demand_known, find, title_of
from polybn.conformance.subject import Subject, prepare, why_useless

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from polybn.conformance.adapter import Adapter


def parametrize(
    make: Callable[[], Adapter],
    *,
    profile: str = "ci",
    only: Iterable[str] | None = None,
    xfail: str | os.PathLike[str] | None = None,
    dtypes: Iterable[str] | None = None,
    source: str | None = None,
) -> Callable[[str], None]:
    """Make a pytest test of all the kit checks.

    Parameters
    ----------
    make : callable
        The adapter's class, or another callable that makes an adapter without arguments.
    profile : {"dev", "ci", "nightly"}
        How much to try. The default draws the same cases in every process and every run.
    only : iterable of str, optional
        Ids of what to check; everything by default.
    xfail : path, optional
        Expected failures, as :func:`polybn.conformance.check` reads them. They become strict ``xfail`` marks.
    dtypes : iterable of str, optional
        Check these only.
    source : str, optional
        How reproducers make the adapter: a name, or ``"module:Class"``.

    Returns
    -------
    callable
        A test with one parameter; assign it to a name that begins with ``test_``. A check that does not apply or could
        not be certified is skipped, with the reason.

    Raises
    ------
    DomainError
        If ``only`` or ``xfail`` names a check that does not exist.

    Examples
    --------
    >>> from polybn import conformance
    >>> test_numpy = conformance.parametrize(lambda: conformance.resolve("polybn-numpy"), dtypes=["float32"])
    """
    import pytest

    reasons = {} if xfail is None else expectations.read(xfail)
    subject = prepare(make(), profile, dtypes=dtypes, source=source)
    ids = names_of(subject, only)
    for name in ids:
        demand_known("only", name, function="parametrize")

    def mark(name: str) -> Any:
        if name not in reasons:
            return pytest.param(name, id=name)
        strict = pytest.mark.xfail(reason=reasons[name], strict=True, raises=pytest.fail.Exception)
        return pytest.param(name, id=name, marks=strict)

    @pytest.mark.parametrize("what", [mark(name) for name in ids])
    def test(what: str) -> None:
        judge(subject, what, expected=what in reasons)

    test.__doc__ = f"{subject.info.name} agrees with the specification of batch normalization."
    return test


def names_of(subject: Subject, only: Iterable[str] | None = None) -> list[str]:
    """List the ids of what there is to check of an adapter."""
    names = IDS if only is None else only
    return [name for name in names if not name.startswith("grade-") or name[6:] in subject.info.dtypes]


def judge(subject: Subject, what: str, *, expected: bool = False) -> None:
    """Check one thing inside of a pytest test: fail or skip it in words. A failure may be expected."""
    import pytest

    useless = why_useless(subject)
    if useless:
        pytest.fail(f"Nothing was checked: {useless}", pytrace=False)
    result = find(subject, what).result
    if result.status in ("not applicable", "not certified"):
        if expected:
            return  # strict: an expectation that nothing can fail is stale
        pytest.skip(f"{result.status}: {result.words}")
    if result.status == "echo":
        pytest.fail(f"{subject.info.name}: {result.reason}, and this passes\n{result.words}", pytrace=False)
    if result.status == "fail":
        text = f"\n\nTo repeat it:\n\n{result.reproducer}" if result.reproducer else ""
        pytest.fail(f"{subject.info.name}: {title_of(what)}\n{result.words}{text}", pytrace=False)
