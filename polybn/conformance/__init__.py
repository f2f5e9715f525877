"""The conformance kit: check that any batch norm agrees with the specification, and grade how accurate it is.

Write an adapter, four methods over NumPy arrays (:class:`Adapter`), and hand it to :func:`check`::

    report = conformance.check(MyAdapter())
    print(report)

or, in a test suite, ``test_my_batch_norm = conformance.parametrize(MyAdapter)``. ``IDS`` lists everything that is
checked; ``PROPERTIES`` explains the properties. Checking needs Hypothesis: ``pip install "polybn[conformance]"``;
writing an adapter does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from polybn.conformance.adapter import Adapter, Info
from polybn.conformance.adapters import resolve

_missing = ""
if TYPE_CHECKING:
    from polybn.conformance import stateful, strategies
    from polybn.conformance.check import check
    from polybn.conformance.finding import IDS
    from polybn.conformance.plugin import parametrize
    from polybn.conformance.properties import PROPERTIES
    from polybn.conformance.report import Report
    from polybn.conformance.runner import KitAdapterError, Violation
else:
    # Imported at once: importing the module `check` later would replace the function of the same name.
    try:
        from polybn.conformance import stateful, strategies
        from polybn.conformance.check import check
        from polybn.conformance.finding import IDS
        from polybn.conformance.plugin import parametrize
        from polybn.conformance.properties import PROPERTIES
        from polybn.conformance.report import Report
        from polybn.conformance.runner import KitAdapterError, Violation
    except ModuleNotFoundError as error:
        if error.name not in ("hypothesis", "ml_dtypes"):
            raise
        _missing = error.name

__all__ = [
    "IDS",
    "PROPERTIES",
    "Adapter",
    "Info",
    "KitAdapterError",
    "Report",
    "Violation",
    "check",
    "parametrize",
    "resolve",
    "stateful",
    "strategies",
]


def __getattr__(name: str) -> Any:
    if _missing and name in __all__:
        _fail(name)
    raise AttributeError(f"module 'polybn.conformance' has no attribute {name!r}")


def _fail(name: str) -> NoReturn:
    raise ImportError(f'polybn.conformance: {name} needs {_missing}: pip install "polybn[conformance]"', name=_missing)
