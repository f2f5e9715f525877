"""Checkpoints that survive a crash and cannot be silently wrong.

A checkpoint is one ``.npz`` file that :func:`numpy.load` can read: each array in a member ``<name>.npy``,
uncompressed, and in the last member, ``meta.npy``, a ``uint8`` array that spells JSON::

    {"sha256": "92c1...",
     "arrays": {"conv1.weight": {"dtype": "<f4", "sha256": "07ab...", "shape": [6, 1, 5, 5]}, ...},
     "format": 1,
     "meta": {"epoch": 7, ...},
     "polybn": "0.1.0"}

The first digest covers every byte of the text after its own comma; each of the others covers one member, header
included. Nothing is ever unpickled, and the same content gives the same file. The digests find damage, not forgery: a
forged file can hold any numbers, but it cannot run code.

:mod:`polybn.lenet.folder` makes sure that a directory of checkpoints has one writer at a time. Two writers could not
corrupt a file, since each file is replaced as a whole, but each would delete the other's checkpoints.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from polybn.atomic import StrPath, UnfitFileError, make_directory, read_whole, write_atomic
from polybn.lenet.errors import CheckpointError
from polybn.spec import DomainError, DTypeError
from polybn.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

FORMAT = 1
MAX_BYTES = 2**30
MAX_ARRAYS = 4096
"""The largest number of arrays in a checkpoint: reading far more takes minutes, and no network has so many."""

Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"

_FILE = re.compile(r"epoch-([0-9]{4,})\.npz")
_NAME = re.compile(r"(?!meta$)\w[\w./-]{0,199}", re.ASCII)
_META = re.compile(rb'\{"sha256":"([0-9a-f]{64})",(.*)', re.DOTALL)


class LaterFormatError(CheckpointError):
    """A later PolyBN wrote this checkpoint. It is not damaged, so an older one does not replace it."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds."""

    arrays: dict[str, NDArray[Any]]
    """Every parameter and running statistic, by name; owned and writable."""
    meta: dict[str, Any]
    """Everything else, as JSON: epoch, configuration, history, versions."""


def save(directory: StrPath, arrays: Arrays, meta: dict[str, Any], *, epoch: int, keep: int = 2) -> Path:
    """Write a checkpoint such as ``epoch-0007.npz``, and then delete all but the last ``keep`` ones up to it.

    Parameters
    ----------
    directory : path
        Made if it does not exist.
    arrays : mapping of str to ndarray
        Any shapes; boolean, integer, floating or complex dtypes.
    meta : dict
        Values that JSON gives back equal: no tuples, no NaN, only strings as keys.
    epoch : int
        0 or more; it orders the checkpoints. Those of later epochs are not deleted.
    keep : int
        1 or more; the number of checkpoints to keep, the new one included.

    Returns
    -------
    Path
        The new file.

    Raises
    ------
    DTypeError, DomainError
        If an argument is not as above; nothing is written.
    OSError
        If the file cannot be written; the earlier checkpoints are then intact.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save(directory, {"gamma": np.ones(6, np.float32)}, {"epoch": 7}, epoch=7).name
    'epoch-0007.npz'
    """
    _check_arguments(arrays, meta, epoch, keep)
    data = _encode(arrays, meta)
    if len(data) > MAX_BYTES:
        raise DomainError(f"polybn.checkpoints.save: a checkpoint must have at most {MAX_BYTES} bytes; got {len(data)}")
    directory = Path(directory)
    make_directory(directory)
    path = directory / f"epoch-{epoch:04d}.npz"
    write_atomic(path, data)
    for earlier in [old for number, old in _newest_first(directory) if number < epoch][keep - 1 :]:
        earlier.unlink(missing_ok=True)
    return path


def load(path: StrPath) -> Checkpoint:
    """Read a checkpoint, and verify everything that is returned.

    Parameters
    ----------
    path : path
        A file that :func:`save` wrote.

    Returns
    -------
    Checkpoint
        Bit for bit what was saved.

    Raises
    ------
    CheckpointError
        If the file is damaged, is not a regular file or a checkpoint, or is larger than 1 GiB;
        :class:`LaterFormatError` if a later PolyBN wrote it.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     load(save(directory, {"gamma": np.ones(3, np.float32)}, {"epoch": 7}, epoch=7))
    Checkpoint(arrays={'gamma': array([1., 1., 1.], dtype=float32)}, meta={'epoch': 7})
    """
    try:
        return _decode(read_whole(path, MAX_BYTES))
    except UnfitFileError as error:
        raise CheckpointError(f"polybn.checkpoints.load: {error}") from None
    except OSError:
        raise
    except CheckpointError as error:
        raise type(error)(f"polybn.checkpoints.load: {path} {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # parsers raise many kinds of errors on damaged data: RuntimeError, ...
        raise CheckpointError(f"polybn.checkpoints.load: {path} must be a checkpoint; got {error!r}") from error


def latest(directory: StrPath) -> tuple[Path, Checkpoint] | None:
    """Load the newest checkpoint that is not damaged.

    Parameters
    ----------
    directory : path
        The directory that :func:`save` was given.

    Returns
    -------
    (Path, Checkpoint) or None
        None if there is no checkpoint at all.

    Raises
    ------
    CheckpointError
        If all are damaged; :class:`LaterFormatError` if a later PolyBN wrote the newest undamaged one.

    Warns
    -----
    UserWarning
        For each damaged checkpoint that is newer than the one returned.

    Examples
    --------
    >>> latest("runs/that/never/were") is None
    True
    """
    damaged: list[str] = []
    for _, path in _newest_first(Path(directory)):
        try:
            checkpoint = load(path)
        except LaterFormatError:
            raise
        except (CheckpointError, FileNotFoundError) as error:  # FileNotFoundError: a dangling link
            damaged.append(f"{error}")
            continue
        for reason in damaged:
            warnings.warn(f"polybn.checkpoints.latest: falling back to {path}: {reason}", stacklevel=2)
        return path, checkpoint
    if damaged:
        got = "; ".join(damaged)
        raise CheckpointError(f"polybn.checkpoints.latest: {directory} must hold an undamaged checkpoint; got {got}")
    return None


def require(checkpoint: Checkpoint, *, expected: Arrays, path: StrPath) -> None:
    """Refuse a checkpoint that does not fit a network, or that holds values of no successful run.

    Parameters
    ----------
    checkpoint : Checkpoint
        A result of :func:`load`.
    expected : mapping of str to ndarray
        A state of the network; only its names, shapes and dtypes matter.
    path : path
        The path of the checkpoint, for the message.

    Raises
    ------
    CheckpointError
        If an array is missing, unknown, of another shape or dtype, not finite, or a negative ``running_var``.

    Examples
    --------
    >>> checkpoint = Checkpoint({"bn1.running_var": np.ones(6, np.float32)}, {})
    >>> require(checkpoint, expected={"bn1.running_var": np.zeros(6, np.float32)}, path="epoch-0007.npz")
    """
    try:
        for name in sorted(expected.keys() | checkpoint.arrays.keys()):
            _check_fit(name, checkpoint.arrays.get(name), expected.get(name))
    except CheckpointError as error:
        raise CheckpointError(f"polybn.checkpoints.require: {path} {error}") from None


def _check_arguments(arrays: Arrays, meta: dict[str, Any], epoch: int, keep: int) -> None:
    if len(arrays) > MAX_ARRAYS:
        raise DomainError(f"polybn.checkpoints.save: there must be at most {MAX_ARRAYS} arrays; got {len(arrays)}")
    for argument, number, least in (("epoch", epoch, 0), ("keep", keep, 1)):
        if number < least:
            raise DomainError(f"polybn.checkpoints.save: {argument} must be {least} or more; got {number}")
    for name, array in arrays.items():
        if not _NAME.fullmatch(name):
            raise DomainError(f"polybn.checkpoints.save: a name must match {_NAME.pattern!r}; got {name!r}")
        if type(array) is not np.ndarray or array.dtype.kind not in "biufc":
            got = f"{type(array).__name__} of {getattr(array, 'dtype', 'no dtype')}"
            raise DTypeError(f"polybn.checkpoints.save: {name!r} must be a NumPy array of numbers; got {got}")
    for key, value in meta.items():
        try:
            same = json.loads(json.dumps({key: value}, allow_nan=False)) == {key: value}
        except (TypeError, ValueError):
            same = False
        if not same:
            rule = "must be what JSON gives back equal (lists, not tuples; strings as keys; no NaN)"
            raise DomainError(f"polybn.checkpoints.save: meta[{key!r}] {rule}; got {value!r:.200}")


def _check_fit(name: str, array: NDArray[Any] | None, expected: NDArray[Any] | None) -> None:
    rule = "nothing" if expected is None else f"{expected.dtype} of shape {expected.shape}"
    got = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
    _check(got == rule, f"hold {rule} as {name!r}", f"{got} (it belongs to another network)")
    if array is None:
        return
    variance = name.endswith("running_var")
    sound = np.isfinite(array) & ((array >= 0) | (not variance))
    if not sound.all():
        first = tuple(np.argwhere(~sound)[0].tolist())
        rule = f"must hold finite values{', 0 or more,' if variance else ''} as {name!r}"
        got = f"{array[first]} at {first} (one of {np.count_nonzero(~sound)} such values)"
        raise CheckpointError(f"{rule}; got {got}")


def _check(holds: bool, rule: str, got: str) -> None:
    if not holds:
        raise CheckpointError(f"must {rule}; got {got}")


def _encode(arrays: Arrays, meta: dict[str, Any]) -> bytes:
    members = {name: _to_npy(arrays[name]) for name in sorted(arrays)}
    manifest = {name: _record(arrays[name], member) for name, member in members.items()}
    content = {"arrays": manifest, "format": FORMAT, "meta": meta, "polybn": __version__}
    body = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))[1:].encode()
    text = b'{"sha256":"%s",%s' % (_sha256(body).encode(), body)
    members["meta"] = _to_npy(np.frombuffer(text, np.uint8))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member)  # a new ZipInfo has a constant date
    return buffer.getvalue()


def _decode(data: bytes) -> Checkpoint:
    members = _members(data)
    _check("meta" in members, "hold 'meta'", _names(members))
    text = _from_npy(members.pop("meta")).tobytes()
    match = _META.fullmatch(text)
    intact = match is not None and match[1].decode() == _sha256(match[2])
    _check(intact, "hold 'meta' with the SHA-256 that it names", "another")
    content = json.loads(text)
    _check_format(content["format"], content.get("polybn"))
    manifest = content["arrays"]
    _check(members.keys() == manifest.keys(), f"hold the arrays {_names(manifest)}", _names(members))
    arrays = {name: _from_npy(member) for name, member in members.items()}
    for name, array in arrays.items():
        record = _record(array, members[name])
        _check(record == manifest[name], f"hold {name!r} as {manifest[name]}", f"{record}")
    _check(isinstance(content["meta"], dict), "hold a dict as 'meta'", type(content["meta"]).__name__)
    return Checkpoint(arrays, content["meta"])


def _check_format(found: object, version: object) -> None:
    whole = isinstance(found, int) and not isinstance(found, bool) and found >= 1
    _check(whole, "have a format of 1 or more", f"{found!r:.40}")
    if found != FORMAT:
        got = f"format {found!r:.40}, written by PolyBN {version!s:.40}"
        raise LaterFormatError(f"must have format {FORMAT}; got {got} (this is PolyBN {__version__}: upgrade it)")


def _check_directory(data: bytes) -> None:
    """Check the size of the list of members before it is read: a forged list of 1 GiB would take minutes."""
    end, known = data[-22:], data[-22:-18] == b"PK\5\6" and data[-42:-38] != b"PK\6\7"
    _check(known, "end as the zip file of a checkpoint", "another end")
    members, size = struct.unpack_from("<HI", end, 10)
    _check(members <= MAX_ARRAYS + 1, f"hold at most {MAX_ARRAYS} arrays", f"{members - 1}")
    _check(size <= 300 * members, f"list its {members} members in at most {300 * members} bytes", f"{size}")


def _members(data: bytes) -> dict[str, bytes]:
    _check_directory(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        _check(len(set(names)) == len(names), "hold each member once", _names(names))
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        _check(stored, "be stored without compression", "compressed members")
        _check(sum(entry.file_size for entry in entries) <= len(data), "hold members that do not overlap", "more bytes")
        return {entry.filename.removesuffix(".npy"): archive.read(entry) for entry in entries}


def _to_npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _from_npy(member: bytes) -> NDArray[Any]:
    stream = io.BytesIO(member)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    # Not read_array, which allocates as much as a header claims. frombuffer refuses dtypes that hold objects.
    return np.frombuffer(member, dtype, offset=stream.tell()).reshape(shape).copy()


def _record(array: NDArray[Any], member: bytes) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "sha256": _sha256(member), "shape": list(array.shape)}


def _names(names: Iterable[str]) -> str:
    return f"{sorted(names)!r:.300}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _newest_first(directory: Path) -> list[tuple[int, Path]]:
    try:
        paths = list(directory.iterdir())  # glob would treat an unreadable directory as an empty one
    except FileNotFoundError:
        return []
    return sorted(((int(match[1]), path) for path in paths if (match := _FILE.fullmatch(path.name))), reverse=True)
