"""The tests of ``pytest --polybn NAME,...``: every check of the kit for each batch norm, then every pair."""

from __future__ import annotations

from itertools import combinations

import pytest

from polybn.conformance.agree import Agreement, adapter_name, agree
from polybn.conformance.plugin import judge, names_of
from polybn.conformance.runner import CallError, KitAdapterError
from polybn.conformance.subject import Subject, make, prepare
from polybn.spec import DomainError, DTypeError

CALLS = 60
_subjects = dict[str, Subject]()


def subjects(config: pytest.Config) -> dict[str, Subject]:
    """Prepare the batch norms on the command line, once."""
    for name in filter(None, config.getoption("--polybn").split(",")):
        if name not in _subjects:
            try:
                _subjects[name] = prepare(make(adapter_name(name)), config.getoption("--polybn-profile"))
            except (DomainError, DTypeError, ImportError) as error:
                raise pytest.UsageError(f"--polybn: {error}") from error
    return _subjects


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each check of each batch norm, and for each pair."""
    found = subjects(metafunc.config)
    if "what" in metafunc.fixturenames:
        each = [(name, what) for name, subject in found.items() for what in names_of(subject)]
        metafunc.parametrize(("name", "what"), each, ids=[f"{name}-{what}" for name, what in each])
    if "pair" in metafunc.fixturenames:
        pairs = list(combinations(found, 2))
        metafunc.parametrize("pair", pairs, ids=[f"{a}-{b}" for a, b in pairs])


@pytest.fixture(scope="session")
def agreement(request: pytest.FixtureRequest) -> Agreement:
    """Give all batch norms the same calls, once."""
    try:
        return agree(list(subjects(request.config)), cases=CALLS)
    except (CallError, KitAdapterError) as error:
        pytest.fail(f"{error}", pytrace=False)


def test_conformance(name: str, what: str) -> None:
    """The batch norm agrees with the specification."""
    judge(_subjects[name], what)


def test_agreement(agreement: Agreement, pair: tuple[str, str]) -> None:
    """No result of the two differs by more than the sum of their error bounds."""
    found = agreement.beyond(*pair)
    if found[0].share > 1:
        said = [
            f"{d.quantity} of {d.dtype} differs by {d.ulps:.3g} units in the last place, {d.share:.3g} "
            "times the sum of both bounds"
            for d in found
        ]
        pytest.fail(
            "\n".join([*said, f"\nTo repeat {'the first' if said[1:] else 'it'}:\n\n{found[0].program}"]), pytrace=False
        )
