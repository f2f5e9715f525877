"""Write a failure down as a program that anyone can run: inputs bit for bit, the calls, what should come out."""

from __future__ import annotations

import importlib
import inspect
import textwrap
import zlib
from typing import TYPE_CHECKING

import numpy as np

from polybn.conformance.runner import RETURNS, Call, Memory, Violation, remember

if TYPE_CHECKING:
    from collections.abc import Sequence

LONG = 4096
"""Arrays of more bytes are compressed."""
TOO_LONG = 200_000
"""A program of more characters helps nobody."""
TOO_LARGE = 2_000_000
"""Arrays of more bytes would not fit into one, however well they are compressed, which takes long."""


def source_of(adapter: object) -> str | None:
    """Return ``"module:Class"`` if :func:`polybn.conformance.adapters.resolve` would make the adapter of it."""
    cls = type(adapter)
    if "<locals>" in cls.__qualname__ or cls.__module__ == "__main__":
        return None
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needs = any(p.default is inspect.Parameter.empty and p.kind not in optional for p in parameters)
    found = getattr(importlib.import_module(cls.__module__), cls.__qualname__.partition(".")[0], None)
    return None if needs or found is None or "." in cls.__qualname__ else f"{cls.__module__}:{cls.__qualname__}"


def program(source: str | None, title: str, calls: Sequence[Call], error: BaseException) -> str:
    """Return a Python program that repeats a failure.

    Parameters
    ----------
    source : str or None
        What makes the adapter: a name, or ``"module:Class"``; None leaves a line to fill in.
    title : str
        What was demanded.
    calls : sequence of Call
        What was done.
    error : BaseException
        What was wrong; the arrays of a :class:`~polybn.conformance.runner.Violation` are shown side by side.
    """
    make = "adapter = ...  # make your adapter here" if source is None else f"adapter = resolve({source!r})"
    lines = [f"# {line}" for line in textwrap.wrap(f"{title} {error}", 110)]
    too_large = "\n".join([*lines[:2], "# The arrays are too large to write down.", ""])
    if sum(len(memory.data) for call in calls for memory in call.arrays.values()) > TOO_LARGE:
        return too_large
    lines += [*_imports(calls, source), "", make]
    for number, call in enumerate(calls, 1):
        lines += ["", f"# Call {number}"]
        lines += [f"{name} = {expression(memory)}" for name, memory in call.arrays.items()]
        options = "".join(f", {name}={value!r}" for name, value in _plain(call).items())
        lines += [
            f"results = adapter.{call.method}({', '.join(call.arrays)}{options})",
            f"for name, value in zip({RETURNS[call.method]!r}, results if isinstance(results, tuple) else [results]):",
            "    print(name, value, sep='\\n')",
        ]
    if isinstance(error, Violation):
        for what, array in (("expected", error.expected), ("got when it failed", error.got)):
            if array is not None:
                lines += ["", f"print({what + ':'!r}, {expression(remember(np.array(array)))}, sep='\\n')"]
    text = "\n".join(lines) + "\n"
    return text if len(text) <= TOO_LONG else too_large


def expression(memory: Memory) -> str:
    """Return Python code for an array, with its strides where they are not the plain ones."""
    dtype = "ml_dtypes.bfloat16" if memory.dtype == "bfloat16" else repr(memory.dtype)
    data = f'bytes.fromhex("{memory.data.hex()}")'
    if len(memory.data) > LONG:
        data = f'zlib.decompress(bytes.fromhex("{zlib.compress(memory.data, 9).hex()}"))'
    plain = np.empty(memory.shape, np.dtype(np.uint8)).strides
    size = 2 if memory.dtype == "bfloat16" else np.dtype(memory.dtype).itemsize
    if tuple(s * size for s in plain) == memory.strides or not memory.data:
        return f"np.frombuffer({data}, {dtype}).reshape({memory.shape}).copy()"
    return f"np.ndarray({memory.shape}, {dtype}, bytearray({data}), {memory.offset}, {memory.strides})"


def _imports(calls: Sequence[Call], source: str | None) -> list[str]:
    memories = [memory for call in calls for memory in call.arrays.values()]
    wanted = ["", "import zlib", ""] if any(len(m.data) > LONG for m in memories) else [""]
    if any(m.dtype == "bfloat16" for m in memories):
        wanted.append("import ml_dtypes")
    wanted.append("import numpy as np")
    return wanted if source is None else [*wanted, "", "from polybn.conformance.adapters import resolve"]


def _plain(call: Call) -> dict[str, float | int]:
    """Return options without NumPy's numbers, whose repr needs an import."""
    return {name: value if isinstance(value, int) else float(value) for name, value in call.options.items()}


def as_data(calls: Sequence[Call]) -> list[dict[str, object]]:
    """Return calls as plain data for JSON, with the bytes of arrays as hex; long ones with their sizes only."""
    return [
        {
            "method": call.method,
            "options": _plain(call),
            "arrays": {
                name: {
                    "dtype": m.dtype, "shape": list(m.shape), "strides": list(m.strides), "offset": m.offset,
                    "hex": m.data.hex() if len(m.data) <= LONG else None,
                }
                for name, m in call.arrays.items()
            },
        }
        for call in calls
    ]  # fmt: skip
