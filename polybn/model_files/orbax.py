"""Orbax, the usual checkpoints of Flax's users: a directory, read by Orbax itself."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polybn.model_files.errors import ModelFileError, need
from polybn.model_files.tensors import Array, Tensors, from_arrays

MOST_BYTES = 2**30
"""The largest size of all arrays together in bytes, because a checkpoint is read as a whole."""
MOST_LEVELS, MOST_FOLDERS = 2, 10_000
"""How far below a directory, and in how many others, a checkpoint is looked for: in a step, and in its items."""


def read(directory: Path) -> Tensors:
    """Read a checkpoint, unless its metadata say that it is too large; names are such as ``params/bn1/scale``.

    A state of Flax's NNX is stored as ``bn1/scale/value``, a level deeper than the name of the array in the model.
    """
    directory = _checkpoint(directory)
    orbax = need("orbax.checkpoint", "checkpoints of Orbax", "orbax-checkpoint")
    with _quiet():
        return _read(orbax, directory)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax from warning that an item of a manager has no metadata of its own: they are those of its step."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _read(orbax: Any, directory: Path) -> Tensors:
    checkpointer = orbax.PyTreeCheckpointer()
    metadata = checkpointer.metadata(directory.resolve())
    tree = getattr(getattr(metadata, "item_metadata", metadata), "tree", metadata)
    sizes = {name: math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for name, leaf in _leaves(tree, "")}
    if sum(sizes.values()) > MOST_BYTES:
        raise ModelFileError(f"hold at most {MOST_BYTES:,} bytes; got {sum(sizes.values()):,}")
    as_numpy = {name: orbax.RestoreArgs(restore_type=np.ndarray) for name in sizes}
    restored = checkpointer.restore(directory.resolve(), restore_args=_like(tree, as_numpy, ""))
    arrays: dict[str, Array] = {name: np.asarray(leaf) for name, leaf in _leaves(restored, "")}
    arrays = {name.removesuffix("/value"): array for name, array in arrays.items()}
    return from_arrays(arrays)


def _checkpoint(directory: Path) -> Path:
    """Return the checkpoint that a directory is, or the only one in it: a manager has ``7/default`` for step 7."""
    found = [directory] if _is_checkpoint(directory) else []
    level = [directory]
    while not found and len(level[0].parts) < len(directory.parts) + MOST_LEVELS:
        level = [inner for outer in level for inner in _folders(outer)][:MOST_FOLDERS]
        if not level:
            break
        found = [folder for folder in level if _is_checkpoint(folder)]
    if len(found) > 1:
        last = max(found, key=lambda path: ([int(number) for number in re.findall(r"\d+", str(path))], str(path)))
        raise ModelFileError(f"be one checkpoint; got {len(found)} in it (name one, such as {last})")
    if not found and not (directory / "_CHECKPOINT_METADATA").exists():
        raise ModelFileError("hold _METADATA of Orbax; got a directory without")
    return found[0] if found else directory


def _is_checkpoint(directory: Path) -> bool:
    return (directory / "_METADATA").exists() or (directory / "checkpoint").exists()


def _folders(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_dir() and not path.is_symlink()]


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}{key}/")
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{prefix}{number}/")
    elif getattr(tree, "shape", None) is not None and hasattr(tree, "dtype"):
        yield prefix.removesuffix("/"), tree


def _like(tree: Any, by_name: Mapping[str, Any], prefix: str) -> Any:
    """Return a tree of the same structure with other leaves."""
    if isinstance(tree, Mapping):
        return {key: _like(value, by_name, f"{prefix}{key}/") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_like(value, by_name, f"{prefix}{number}/") for number, value in enumerate(tree)]
    return by_name.get(prefix.removesuffix("/"))
