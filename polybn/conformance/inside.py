"""A note of the method that an adapter is in, where another process can read it after the adapter ended this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polybn.conformance.runner import RETURNS, Passing

if TYPE_CHECKING:
    from ctypes import c_int

    from polybn.conformance.adapter import Adapter, Array

METHODS = ("", *RETURNS)


class Noting(Passing):
    """An adapter that passes calls on to another one, and notes the method that is running.

    Parameters
    ----------
    adapter : Adapter
    note : ctypes.c_int
        A number in shared memory; :func:`noted` reads it.
    """

    def __init__(self, adapter: Adapter, note: c_int) -> None:
        super().__init__(adapter)
        self._note = note

    def _call(self, method: str, arrays: tuple[Array, ...], options: dict[str, Any]) -> Any:
        self._note.value = METHODS.index(method)
        try:
            return super()._call(method, arrays, options)
        finally:
            self._note.value = 0


def noted(note: c_int) -> str:
    """Return the name of the method that was running, empty if none was."""
    return METHODS[note.value]
