"""A library of the Array API standard is served by an entry point and no code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polybn
from polybn import dispatch
from tests.conftest import REASONS

if REASONS.get("array_api_strict", "absent") is not None:
    pytest.skip(f"array_api_strict: {REASONS.get('array_api_strict', 'absent')}", allow_module_level=True)

import polybn_array_api

TINY = '''
"""A library that nobody knows: an array class of its own, and the standard's names."""
import sys
import numpy as np

def _out(value):
    if isinstance(value, (tuple, list)):
        return type(value)(map(_out, value))
    return value.data if isinstance(value, Array) else value

class Array:
    def __init__(self, data):
        self.data = np.asarray(data)
    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)
    device = "cpu"
    def __array_namespace__(self, api_version=None):
        return sys.modules[__name__]
    def __array__(self, dtype=None, copy=None):
        return self.data
    def to_device(self, device, /, *, stream=None):
        return self

def _forward(name):
    return lambda self, *args: _in(getattr(self.data, name)(*map(_out, args)))

for _name in ("add radd sub rsub mul rmul truediv rtruediv neg invert and or lt le gt ge eq ne getitem").split():
    setattr(Array, f"__{_name}__", _forward(f"__{_name}__"))
for _name in ("bool", "int", "float"):
    setattr(Array, f"__{_name}__", lambda self, kind=_name: getattr(self.data, f"__{kind}__")())

def _in(value):
    return Array(value) if isinstance(value, (np.ndarray, np.generic)) else value

def __getattr__(name):
    value = getattr(np, name)
    if isinstance(value, type) or not callable(value):
        return value
    return lambda *args, **options: _in(value(*map(_out, args), **options))

def __array_namespace_info__():
    return np.__array_namespace_info__()
'''


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Install the library, and a package that has one line about it."""
    (tmp_path / "tinylib.py").write_text(TINY)
    info = tmp_path / "tiny_polybn-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-polybn\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[polybn.backends]\ntinylib = polybn_array_api:tinylib\n")
    caches = (
        dispatch._entries,
        dispatch._names,
        dispatch._owner,
        dispatch._serving,
        dispatch._found,
        polybn_array_api.bind,
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        for cached in caches:
            cached.cache_clear()
        yield importlib.import_module("tinylib")
    sys.modules.pop("tinylib", None)
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("training", [True, False])
def test_one_line_serves_a_library_that_nobody_knows(tiny: Any, dtype: str, training: bool) -> None:
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(10, 3, (7, 3, 11)).astype(dtype) for _ in range(2))
    vectors = [rng.uniform(0.5, 2, 3).astype(dtype) for _ in range(4)]
    where = rng.random((7, 1, 11)) < 0.7
    assert polybn.backends()["tinylib"] is None
    result, pullback = polybn.batch_norm_vjp(
        tiny.Array(x), *map(tiny.Array, vectors), training=training, where=tiny.Array(where)
    )
    expected, back = polybn.batch_norm_vjp(x, *vectors, training=training, where=where)
    first, second = pullback.vjp(tiny.Array(dy))
    right, twice = back.vjp(dy)
    assert type(result.y) is tiny.Array
    for got, other in zip((*result, *first, *second(first)), (*expected, *right, *twice(right)), strict=True):
        assert (got is None) == (other is None)
        if got is not None:
            assert np.abs(got.data - other).max() <= 64 * np.finfo(dtype).eps * np.abs(other).max()
    merged = polybn.merge_moments(polybn.moments(tiny.Array(x[:2])), polybn.moments(tiny.Array(x[2:])))
    assert np.abs(merged.variance().data / polybn.moments(x).variance() - 1).max() < 1e-3


def test_errors_have_the_words_of_every_backend(tiny: Any) -> None:
    x, one = tiny.Array(np.ones((4, 3))), tiny.Array(np.ones(3))
    with pytest.raises(polybn.DomainError, match="in channel 1"):
        polybn.batch_norm(x, None, None, one, tiny.Array(np.array([1.0, -1.0, 1.0])), training=False)
    with pytest.raises(polybn.BackendError, match="got x: tinylib, gamma: numpy"):
        polybn.batch_norm(x, np.ones(3), training=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_library", "cannot serve 'no_such_library': No module named"),
        (
            "json",
            "namespace of the Array API standard, a module with __array_namespace_info__; .*, json, json.array_api",
        ),
    ],
)
def test_what_cannot_be_bound_says_why(name: str, words: str) -> None:
    with pytest.raises(AttributeError, match=words):
        getattr(polybn_array_api, name)
    assert not hasattr(polybn_array_api, "__wrapped__")
