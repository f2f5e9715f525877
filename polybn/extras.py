"""The optional dependencies of a backend: the extras of its package, and the command that installs them.

An extra that brings a backend's library has the name of the backend, or that name and what sets it apart from other
builds of the library: ``dask``; ``cupy-cuda12x`` and ``cupy-cuda13x``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def advise(entry: EntryPoint, error: BaseException) -> str:
    """Return the command that installs the module that an entry point's backend lacks.

    It is empty if no module was missing, or if the package has no extra for this backend. The command names the
    package, so it is right wherever the package came from: pip leaves an installed one as it is, and adds the extra.
    """
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None or entry.dist is None or _root(missing) == _root(entry.value):
        return ""
    package = entry.dist.name
    if _root(missing) == "array_api_compat" and package != "polybn":  # an extra of theirs need not bring it
        return "pip install array-api-compat"
    return " or ".join(f'pip install "{package}[{extra}]"' for extra in _extras(entry))


def _extras(entry: EntryPoint) -> list[str]:
    """Return the extra that is named like the backend, else all whose names begin with it."""
    name = _normal(entry.name)
    offered = [] if entry.dist is None else entry.dist.metadata.get_all("Provides-Extra") or []
    exact = [extra for extra in offered if _normal(extra) == name]
    return exact or [extra for extra in offered if _normal(extra).startswith(f"{name}-")]


def _normal(name: str) -> str:
    """Spell a name as packaging tools may rewrite it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _root(module: str) -> str:
    return re.split(r"[.:]", module)[0]
