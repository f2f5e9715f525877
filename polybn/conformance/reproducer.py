"""Write a failure as a program that anyone can run: the exact inputs, the calls, and the expected results."""

from __future__ import annotations

import importlib
import inspect
import textwrap
import zlib
from typing import TYPE_CHECKING

import numpy as np

from polybn.conformance.adapters import resolve
from polybn.conformance.cases import DTYPES
from polybn.conformance.guard import OutOfTime, plain, time_limit
from polybn.conformance.runner import RETURNS, Call, Memory, Recorder, Violation, remember

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polybn.conformance.adapter import Adapter

MAKE = "adapter = ...  # make your adapter here"
NOT_REPEATED = """\
# When this program was run, its calls did not return what they had returned before: they depend on earlier calls, or
# on chance, or there are too many."""
PATIENCE = 60
"""Seconds that a program may take to repeat a failure."""
LONG = 4096
"""Size in bytes above which arrays are compressed."""
TOO_LONG = 200_000
"""Length in characters above which a program is too long to be useful."""
SHOWN = 8
"""The number of values of an array that are written beside its bytes, to be read."""
TOO_LARGE = 2_000_000
"""Size in bytes above which compressing arrays is not tried: it is slow, and the program would be too long anyway."""


def source_of(adapter: object) -> str | None:
    """Return ``"module:Class"`` if :func:`polybn.conformance.adapters.resolve` can make the adapter from it."""
    cls = type(adapter)
    if "<locals>" in cls.__qualname__ or cls.__module__ == "__main__":
        return None
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needs = any(p.default is inspect.Parameter.empty and p.kind not in optional for p in parameters)
    found = getattr(importlib.import_module(cls.__module__), cls.__qualname__.partition(".")[0], None)
    return None if needs or found is None or "." in cls.__qualname__ else f"{cls.__module__}:{cls.__qualname__}"


def program(source: str | None, what: str, calls: Sequence[Call], error: BaseException) -> str:
    """Return a Python program that repeats a failure; without a source, it leaves a line to fill in.

    ``what`` says what was demanded and what was wrong. The arrays of a Violation are printed, too.
    """
    lines = [f"# {plain(line)}" for line in textwrap.wrap(what, 110)]
    too_large = "\n".join([*lines[:2], "# The arrays are too large to write down.", ""])
    if sum(len(memory.data) for call in calls for memory in call.arrays.values()) > TOO_LARGE:
        return too_large
    lines += [*_imports(calls, source), "", MAKE if source is None else f"adapter = resolve({source!r})"]
    for number, call in enumerate(calls, 1):
        lines += ["", f"# Call {number}"]
        lines += [_assigned(name, memory, call.shared.get(name)) for name, memory in call.arrays.items()]
        options = "".join(f", {name}={_number(value)}" for name, value in call.options.items())
        lines += [
            f"results = adapter.{call.method}({', '.join(call.arrays)}{options})",
            f"for name, value in zip({RETURNS[call.method]!r}, results if isinstance(results, tuple) else [results]):",
            "    print(name, value, sep='\\n')",
        ]
    if isinstance(error, Violation):
        for what, array in (("expected", error.expected), ("got when it failed", error.got)):
            if array is not None:
                memory = remember(np.array(array))
                lines += ["", f"print({what + ':'!r}, {expression(memory)}, sep='\\n'){_decimal(memory)}"]
    text = "\n".join(lines) + "\n"
    return text if len(text) <= TOO_LONG else too_large


def repeats(text: str, adapter: Adapter, source: str | None, outcomes: Sequence[str]) -> bool:
    """Run a program, and return whether its calls return the same bits as when the failure was found."""
    recorder: Recorder | None = None
    try:
        with time_limit(PATIENCE):
            recorder = Recorder(adapter if source is None else resolve(source))
            lines = [line for line in text.splitlines() if not line.startswith("adapter = ")]
            code = compile("\n".join(lines), "reproducer", "exec")
            exec(code, {"__name__": "reproducer", "adapter": recorder, "print": lambda *_, **__: None})  # noqa: S102 (text from `program`)
    except (OutOfTime, Exception, SystemExit) as error:  # the failure itself may be that a call raises
        del error
    return recorder is not None and recorder.outcomes == list(outcomes)


def expression(memory: Memory) -> str:
    """Return Python code for an array, with its strides if it is not contiguous."""
    dtype = "ml_dtypes.bfloat16" if memory.dtype == "bfloat16" else repr(memory.dtype)
    data = f'bytes.fromhex("{memory.data.hex()}")'
    if len(memory.data) > LONG:
        data = f'zlib.decompress(bytes.fromhex("{zlib.compress(memory.data, 9).hex()}"))'
    plain = np.empty(memory.shape, np.dtype(np.uint8)).strides
    size = 2 if memory.dtype == "bfloat16" else np.dtype(memory.dtype).itemsize
    if tuple(s * size for s in plain) == memory.strides or not memory.data:
        return f"np.frombuffer({data}, {dtype}).reshape({memory.shape}).copy()"
    return f"np.ndarray({memory.shape}, {dtype}, bytearray({data}), {memory.offset}, {memory.strides})"


def _assigned(name: str, memory: Memory, other: str | None) -> str:
    return f"{name} = {expression(memory)}{_decimal(memory)}" if other is None else f"{name} = {other}"


def _decimal(memory: Memory) -> str:
    """Return a comment with the first values of an array: its bytes are exact, and no one can read them."""
    dtype = DTYPES.get(memory.dtype) or np.dtype(memory.dtype)
    values = np.ndarray(memory.shape, dtype, bytearray(memory.data), memory.offset, memory.strides).ravel()
    few = ", ".join(str(value) for value in values[:SHOWN])
    return f"  # {few}{', ...' if values.size > SHOWN else ''}" if values.size else ""


def _imports(calls: Sequence[Call], source: str | None) -> list[str]:
    memories = [memory for call in calls for memory in call.arrays.values()]
    wanted = ["", "import zlib", ""] if any(len(m.data) > LONG for m in memories) else [""]
    if any(m.dtype == "bfloat16" for m in memories):
        wanted.append("import ml_dtypes")
    wanted.append("import numpy as np")
    return wanted if source is None else [*wanted, "", "from polybn.conformance.adapters import resolve"]


def _number(value: float) -> str:
    """Return Python code for a number that keeps its type, because NumPy's numbers may cause a failure."""
    if not isinstance(value, np.generic):
        return repr(value)
    return f"np.{type(value).__name__}({value.item()!r})"


def _plain(call: Call) -> dict[str, float | int]:
    """Return options as plain numbers."""
    return {name: value if isinstance(value, int) else float(value) for name, value in call.options.items()}


def as_data(calls: Sequence[Call]) -> list[dict[str, object]]:
    """Return calls as plain data for JSON, with the bytes of arrays as hex, except long ones."""
    return [
        {
            "method": call.method,
            "options": _plain(call),
            "arrays": {
                name: {
                    "dtype": m.dtype,
                    "shape": list(m.shape),
                    "strides": list(m.strides),
                    "offset": m.offset,
                    "hex": m.data.hex() if len(m.data) <= LONG else None,
                }
                for name, m in call.arrays.items()
            },
        }
        for call in calls
    ]
