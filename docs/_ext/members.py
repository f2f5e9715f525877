"""The public names of a module, as the directives of autodoc that describe them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any


def public(module: str) -> Iterator[tuple[str, Any]]:
    """Yield what a module lists in ``__all__``, or else what it defines; modules are left out."""
    found = importlib.import_module(module)
    listed = getattr(found, "__all__", None)
    for name in sorted(vars(found)) if listed is None else listed:
        value = getattr(found, name)
        own = listed is not None or getattr(value, "__module__", None) == module
        if own and not name.startswith("_") and not inspect.ismodule(value):
            yield name, value


def to_rst(module: str) -> str:
    """Write autodoc's directives: functions, then classes, then exceptions, then data.

    Names that the package ``polybn`` exports, such as ``polybn.Moments``, are described there and not in their modules.
    """
    offered = {id(value) for _, value in public("polybn")} if module != "polybn" else set()
    kinds = dict[str, list[str]]()
    for name, value in public(module):
        if id(value) not in offered:
            kinds.setdefault(_kind(value), []).append(f"{module}.{name}")
    order = ("autofunction", "autoclass", "autoexception", "autodata")
    entries = [(kind, name) for kind in order for name in kinds.get(kind, [])]
    members = "\n   :members:\n   :member-order: bysource"
    return "\n\n".join(f".. {kind}:: {name}{members if kind == 'autoclass' else ''}" for kind, name in entries)


def _kind(value: object) -> str:
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, Exception) else "autoclass"
    return "autofunction" if inspect.isfunction(value) else "autodata"
