"""Import the module of somebody's adapter, which mostly lies in the working directory.

Python itself looks there for ``python -m``, but not for an installed command such as ``polybn`` or ``pytest``.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType


def import_module(name: str) -> ModuleType:
    """Import a module by name; one that lies in the working directory is preferred.

    The directory then stays in ``sys.path``, because the module may import its neighbours later; otherwise ``sys.path``
    is not changed.

    Raises
    ------
    ModuleNotFoundError
        If there is no such module, here or elsewhere; a module that it imports in vain is named as Python does.
    """
    added = _missing_place(name.partition(".")[0])
    sys.path[:0] = added
    try:
        return importlib.import_module(name)
    except BaseException as error:
        for place in added:
            sys.path.remove(place)
        if isinstance(error, ModuleNotFoundError) and _is_part(error.name, name):
            raise ModuleNotFoundError(_words(name, str(error)), name=error.name) from error
        raise


def sources(*adapters: str) -> list[Path]:
    """List the files of adapters named ``"module:Class"``, or the folders of packages; nothing is imported."""
    roots = [module.partition(".")[0] for module, colon, _ in (name.partition(":") for name in adapters) if colon]
    specs = [PathFinder.find_spec(root, [str(Path.cwd()), *sys.path]) for root in roots if root]
    files = [Path(spec.origin) for spec in specs if spec is not None and spec.origin is not None]
    return [file.parent if file.name == "__init__.py" else file for file in files]


def _missing_place(root: str) -> list[str]:
    """Return the working directory if a module of this name lies there and Python would not look there."""
    here = Path.cwd()
    if root in sys.modules or any(Path(place).absolute() == here for place in sys.path):
        return []
    importlib.invalidate_caches()  # the module may just have been written
    return [] if PathFinder.find_spec(root, [str(here)]) is None else [str(here)]


def _is_part(part: str | None, name: str) -> bool:
    return part is not None and f"{name}.".startswith(f"{part}.")


def _words(name: str, error: str) -> str:
    return (
        f"polybn.conformance.resolve: adapter must name a module that can be imported; got {name!r}: {error} "
        f"(Python looks in the working directory, {Path.cwd()}, and where packages are installed)"
    )
