"""HDF5 files with Keras's weights: a tree of groups with datasets, read only along hard links."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from polybn.model_files.errors import ModelFileError, need
from polybn.model_files.tensors import MOST_TENSORS, Array, Tensors

CONFIG = "model_config"
"""The attribute of a whole model, as Keras 2 writes it, with its configuration."""
MOST_DEPTH = 32
MOST_VALUES = 2**28
"""The largest number of values in a dataset; a compressed one of few bytes can claim any number."""


def read(file: BinaryIO) -> tuple[Tensors, dict[str, str]]:
    """Return the datasets by path, with the configuration, and the attributes ``name`` of groups by path."""
    h5py = need("h5py", "HDF5 files (.keras, .h5)", "h5py")
    root = h5py.File(file, "r")
    datasets, names = dict[str, Any](), dict[str, str]()
    for path, item in _walk(h5py, root, "", 0, set()):
        if isinstance(item, h5py.Dataset):
            datasets[path] = item
        elif isinstance(name := item.attrs.get("name"), str):
            names[path] = name

    def value(path: str) -> Array:
        dataset = datasets[path]
        _check(path, dataset)
        return np.asarray(dataset[()])

    shapes = {path: tuple(dataset.shape or ()) for path, dataset in datasets.items()}
    config = root.attrs.get(CONFIG)
    text = config.decode() if isinstance(config, bytes) else config
    return Tensors(shapes, value, {CONFIG: text} if isinstance(text, str) else {}), names


def _walk(h5py: Any, group: Any, prefix: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield each group before its content, without soft and external links, which may lead to other files."""
    seen.add(h5py.h5o.get_info(group.id).addr)
    if depth > MOST_DEPTH or len(seen) > MOST_TENSORS:
        raise ModelFileError(f"have groups at most {MOST_DEPTH} deep, and {MOST_TENSORS:,} of them; got more")
    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            continue
        item, path = group[key], f"{prefix}{key}"
        if isinstance(item, h5py.Group):
            if h5py.h5o.get_info(item.id).addr in seen:
                raise ModelFileError(f"hold a tree of groups; got a circle at {path!r:.80}")
            yield path, item
            yield from _walk(h5py, item, f"{path}/", depth + 1, seen)
        elif isinstance(item, h5py.Dataset):
            yield path, item


def _check(path: str, dataset: Any) -> None:
    if dataset.is_virtual or dataset.external:
        raise ModelFileError(f"hold the values of {path!r:.80} itself; got a dataset that lies in other files")
    if dataset.dtype.kind not in "biuf" or dataset.size is None or dataset.size > MOST_VALUES:
        raise ModelFileError(
            f"hold at most {MOST_VALUES:,} numbers as {path!r:.80}; got {dataset.size} values of {dataset.dtype}"
        )
