"""The pytest plug-in: ``pytest --polybn numpy,jax`` grades these batch norms with the kit and compares every two.

Pytest loads it wherever PolyBN is installed, so it imports nothing until the option asks for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    group = parser.getgroup("polybn", "batch normalization")
    group.addoption(
        "--polybn",
        metavar="NAME,...",
        help="run PolyBN's conformance kit on these backends (polybn info lists them) or adapters (my_module:MyAdapter "
        "is yours, pytorch comes with polybn), and compare each two; alone, or beside the paths that are given; -k "
        "'P1]' picks property P1, and not P10",
    )
    group.addoption(
        "--polybn-profile", choices=("dev", "ci", "nightly"), default="dev", help="how much the kit tries (dev)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect the suite in place of the current folder, or after the paths on the command line."""
    if not config.getoption("--polybn"):
        return
    import pytest

    try:
        from polybn.conformance import suite
    except ModuleNotFoundError as error:
        if error.name not in ("hypothesis", "ml_dtypes"):
            raise
        raise pytest.UsageError(f'--polybn needs {error.name}: pip install "polybn[conformance]"') from error

    suite.subjects(config)  # a wrong name is an error of usage, before anything is collected
    given = config.args if config.args_source is type(config).ArgsSource.ARGS else []
    # Where the suite lies outside of the project, pytest names its tests without their file: "::test_conformance[...]".
    paths = [f"{suite.__file__}{path}" if path.startswith("::") else path for path in given]
    named = any(Path(path.partition("::")[0]).absolute() == Path(suite.__file__) for path in paths)
    config.args[:] = paths if named else [*paths, suite.__file__]
