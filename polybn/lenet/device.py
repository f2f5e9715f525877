"""The device that trains, among those that a backend's library sees."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

from polybn.spec import Backend, BackendError, traits_of


def on_device(backend: Backend, device: str | None) -> AbstractContextManager[Any]:
    """Make a device the library's default within a block: ``"gpu:1"``, or ``"gpu"`` for the first GPU.

    None keeps the library's own choice.
    """
    if device is None:
        return contextlib.nullcontext()
    traits = traits_of(backend)
    library = traits.library or backend.name
    if traits.devices is None:
        raise BackendError(
            f"polybn.train: device must be left out on the {backend.name} backend; got {device!r} "
            f"({library} chooses its device itself)"
        )
    found = traits.devices()
    name = next((name for name in found if device in (name, name.partition(":")[0])), None)
    if name is None:
        raise BackendError(
            f"polybn.train: device must be one that {library} sees here: {', '.join(found)}; got {device!r} "
            "(`polybn info` lists the devices of each backend; a GPU needs its driver and the library's package for it)"
        )
    return found[name]()
