"""A note of the method that an adapter is in, where another process can read it after the adapter ended this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polybn.conformance.runner import RETURNS

if TYPE_CHECKING:
    from ctypes import c_int

    from polybn.conformance.adapter import Adapter, Array, Info

METHODS = ("", *RETURNS)


class Noting:
    """An adapter that passes calls on to another one, and notes the method that is running.

    Parameters
    ----------
    adapter : Adapter
    note : ctypes.c_int
        A number in shared memory; :func:`noted` reads it.
    """

    def __init__(self, adapter: Adapter, note: c_int) -> None:
        self._adapter, self._note = adapter, note

    def info(self) -> Info:
        """Return the adapter's declaration."""
        return self._adapter.info()

    def train(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Note the call, and make it."""
        returned: tuple[Array, Array, Array] = self._call("train", arrays, options)
        return returned

    def infer(self, *arrays: Array, **options: Any) -> Array:
        """Note the call, and make it."""
        returned: Array = self._call("infer", arrays, options)
        return returned

    def vjp(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Note the call, and make it."""
        returned: tuple[Array, Array, Array] = self._call("vjp", arrays, options)
        return returned

    def infer_vjp(self, *arrays: Array, **options: Any) -> tuple[Array, Array, Array]:
        """Note the call, and make it."""
        returned: tuple[Array, Array, Array] = self._call("infer_vjp", arrays, options)
        return returned

    def _call(self, method: str, arrays: tuple[Array, ...], options: dict[str, Any]) -> Any:
        self._note.value = METHODS.index(method)
        try:
            return getattr(self._adapter, method)(*arrays, **options)
        finally:
            self._note.value = 0


def noted(note: c_int) -> str:
    """Return the name of the method that was running, empty if none was."""
    return METHODS[note.value]
