"""Checkpoints: exact round trips, damage that is always found, crashes that lose nothing."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import polybn
from polybn import atomic
from polybn.lenet import checkpoints
from polybn.lenet.checkpoints import Checkpoint, LaterFormatError
from polybn.lenet.errors import CheckpointError
from polybn.spec import DomainError, DTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Arrays = dict[str, NDArray[Any]]

WORKER = Path(__file__).parent / "support" / "checkpoint_worker.py"
DEAD_PID = 999_999_999  # above the highest process id of Linux
META = {"epoch": 7, "history": [{"loss": 0.1}], "name": "é"}


def example(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "conv1.weight": rng.standard_normal((3, 1, 5, 2), np.float32),
        "bn1.running_var": rng.random(7),
        "seen": rng.integers(0, 2**60, ()),
    }


def bits(arrays: Mapping[str, NDArray[Any]], meta: dict[str, Any]) -> object:
    """Return the whole content of a checkpoint, as values that compare bit by bit."""
    spelled = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}
    return spelled, json.dumps(meta, sort_keys=True)


def fill(directory: Path, *epochs: int) -> list[Path]:
    return [checkpoints.save(directory, example(epoch), {"epoch": epoch}, epoch=epoch, keep=99) for epoch in epochs]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"\x93NUMPY") + 128 + 5] ^= 0x10  # a value of the first array, behind its header
    path.write_bytes(data)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def epochs(directory: Path) -> list[int]:
    return sorted(int(path.name[6:-4]) for path in directory.glob("epoch-*.npz"))


# What goes in comes out.


@st.composite
def any_array(draw: st.DrawFn) -> NDArray[Any]:
    """Draw any bit patterns, NaN payloads and -0.0 among them, in any memory layout."""
    dtype = np.dtype(draw(st.sampled_from(["<f2", "<f4", ">f4", "<f8", "<i8", "|u1", "<c8"])))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array: NDArray[Any] = draw(hnp.arrays(np.uint8, (*shape, dtype.itemsize))).view(dtype)[..., 0]
    views: list[Callable[[NDArray[Any]], NDArray[Any]]] = [lambda a: a, lambda a: a.T, lambda a: np.array(a, order="F")]
    if array.ndim:
        views += [lambda a: a[::-1], lambda a: a[..., ::2]]
    view: Callable[[NDArray[Any]], NDArray[Any]] = draw(st.sampled_from(views))
    return view(np.array(array))


array_names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,20}", fullmatch=True).filter(lambda name: name != "meta")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    arrays=st.dictionaries(array_names, any_array(), max_size=4),
    meta=st.dictionaries(st.text(), json_values, max_size=4),
)
def test_a_round_trip_keeps_every_bit(
    tmp_path_factory: pytest.TempPathFactory, arrays: Arrays, meta: dict[str, Any]
) -> None:
    path = checkpoints.save(tmp_path_factory.getbasetemp() / "round trip", arrays, meta, epoch=0)
    loaded = checkpoints.load(path)
    assert bits(*loaded) == bits(arrays, meta)
    assert loaded.meta == meta


def test_loaded_arrays_are_writable_and_their_own(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, example(), META, epoch=0)
    first, second = checkpoints.load(path).arrays, checkpoints.load(path).arrays
    for array in first.values():
        array[...] = 1
    assert bits(second, META) == bits(example(), META)


def test_the_same_content_gives_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = example()
    first = checkpoints.save(tmp_path / "a", arrays, META, epoch=0).read_bytes()
    real = time.localtime
    monkeypatch.setattr(time, "localtime", lambda seconds=None: real(86_400.0 * 9_000))
    backwards = {name: np.array(arrays[name], order="F") for name in reversed(arrays)}
    meta = {key: META[key] for key in reversed(META)}
    assert checkpoints.save(tmp_path / "b", backwards, meta, epoch=0).read_bytes() == first


def test_the_file_is_what_the_documentation_says(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, example(), META, epoch=7)
    assert path == tmp_path / "epoch-0007.npz"
    with np.load(path, allow_pickle=False) as npz:
        text = npz["meta"].tobytes()
        assert bits({name: npz[name] for name in npz.files if name != "meta"}, META) == bits(example(), META)
    content = json.loads(text)
    assert content["format"] == checkpoints.FORMAT == 1
    assert content["meta"] == META
    assert content["polybn"] == polybn.__version__
    assert content["sha256"] == hashlib.sha256(text.split(b",", 1)[1]).hexdigest()
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()[-1] == "meta.npy"
        assert content["arrays"] == {
            name: {
                "dtype": array.dtype.str,
                "shape": list(array.shape),
                "sha256": hashlib.sha256(archive.read(f"{name}.npy")).hexdigest(),
            }
            for name, array in example().items()
        }


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"epoch": -1}, DomainError, "epoch must be 0 or more; got -1"),
        ({"keep": 0}, DomainError, "keep must be 1 or more; got 0"),
        ({"arrays": {"meta": np.ones(1)}}, DomainError, "name must match .*; got 'meta'"),
        ({"arrays": {"../x": np.ones(1)}}, DomainError, "name must match .*; got '../x'"),
        ({"arrays": {"a\0b": np.ones(1)}}, DomainError, "name must match"),
        (
            {"arrays": {"a": np.array([None])}},
            DTypeError,
            "'a' must be a NumPy array of numbers; got ndarray of object",
        ),
        ({"arrays": {"a": np.zeros(2, "V2")}}, DTypeError, r"got ndarray of \|V2"),
        ({"arrays": {"a": np.ma.ones(3)}}, DTypeError, "got MaskedArray of float64"),
        ({"arrays": {"a": [1.0]}}, DTypeError, "got list of no dtype"),
        ({"meta": {"shape": (1, 2)}}, DomainError, r"meta\['shape'\] must be what JSON gives back .*; got \(1, 2\)"),
        ({"meta": {"loss": float("nan")}}, DomainError, r"meta\['loss'\].*; got nan"),
        ({"meta": {"loss": float("inf")}}, DomainError, r"meta\['loss'\].*; got inf"),
        ({"meta": {"by epoch": {1: 0.5}}}, DomainError, r"got \{1: 0.5\}"),
        ({"meta": {"path": Path("x")}}, DomainError, r"meta\['path'\]"),
    ],
)
def test_save_refuses_what_it_could_not_give_back(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    call: dict[str, Any] = {"arrays": example(), "meta": META, "epoch": 0, "keep": 2} | change
    with pytest.raises(error, match=rf"^polybn\.checkpoints\.save: .*{words}"):
        checkpoints.save(tmp_path / "new", call.pop("arrays"), call.pop("meta"), **call)
    assert files(tmp_path) == []


# Damage is found.


def sound_or_refused(path: Path, data: bytes, content: object) -> bool:
    """Return whether a file with these bytes is refused; otherwise assert that it has exactly ``content``."""
    path.write_bytes(data)
    try:
        loaded = checkpoints.load(path)
    except CheckpointError as error:
        assert str(error).startswith(f"polybn.checkpoints.load: {path} must ")  # noqa: PT017
        return True
    assert bits(*loaded) == content
    return False


def test_2000_flipped_bits_are_refused_or_harmless(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, example(), META, epoch=0)
    good = path.read_bytes()
    refused = 0
    for bit in random.Random(2).sample(range(8 * len(good)), 2000):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        refused += sound_or_refused(path, bytes(data), bits(example(), META))
    assert refused > 1500


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, example(), META, epoch=0)
    good = path.read_bytes()
    for length in range(0, len(good), 7):
        assert sound_or_refused(path, good[:length], None), length
    assert not sound_or_refused(path, good, bits(example(), META))


@pytest.mark.parametrize("tail", [b"\0" * 1000, b"garbage", b"PK\5\6" + b"\0" * 18])
def test_appended_bytes_are_refused_or_harmless(tmp_path: Path, tail: bytes) -> None:
    path = checkpoints.save(tmp_path, example(), META, epoch=0)
    sound_or_refused(path, path.read_bytes() + tail, bits(example(), META))


@pytest.mark.parametrize(
    "data", [b"", b"<!DOCTYPE html><html></html>", pickle.dumps({"a": 1}), b"\x93NUMPY\1\0", b"PK\5\6" + b"\0" * 18]
)
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    assert sound_or_refused(tmp_path / "epoch-0001.npz", data, None)


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Forgery:
    """The parts of a checkpoint, which can be put together with all checksums of the zip format right."""

    def __init__(self) -> None:
        self.members = [(f"{name}.npy", npy(array)) for name, array in example().items()]
        self.arrays: dict[str, dict[str, Any]] = {
            name: {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": sha256(npy(array))}
            for name, array in example().items()
        }
        self.rest: dict[str, Any] = {"format": 1, "meta": META}
        self.digest: str | None = None
        self.compression = zipfile.ZIP_STORED

    def replace(self, name: str, member: bytes, dtype: str) -> None:
        """Replace an array by another member, with the right digest in the manifest."""
        self.members = [(f"{name}.npy", member)] + [m for m in self.members if m[0] != f"{name}.npy"]
        self.arrays[name] |= {"dtype": dtype, "sha256": sha256(member)}

    def spell(self) -> bytes:
        body = json.dumps({"arrays": self.arrays} | self.rest)[1:].encode()
        text = b'{"sha256":"%s",%s' % ((self.digest or sha256(body)).encode(), body)
        stream = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", self.compression) as archive:
            warnings.simplefilter("ignore")  # for the member that is there twice
            for name, member in [*self.members, ("meta.npy", npy(np.frombuffer(text, np.uint8)))]:
                archive.writestr(name, member)
        return stream.getvalue()


def altered_value(f: Forgery) -> None:
    f.members[0] = (f.members[0][0], npy(example()["conv1.weight"] + np.float32(1)))


def renamed(f: Forgery) -> None:
    f.members[0] = ("conv1.weighs.npy", f.members[0][1])


def missing(f: Forgery) -> None:
    del f.members[0]


def extra(f: Forgery) -> None:
    f.members.append(("extra.npy", npy(np.ones(3))))


def twice(f: Forgery) -> None:
    f.members.append(f.members[0])


def swapped(f: Forgery) -> None:
    (a, x), (b, y), *_ = f.members
    f.members[:2] = [(a, y), (b, x)]


def compressed(f: Forgery) -> None:
    f.compression = zipfile.ZIP_DEFLATED


def altered_meta(f: Forgery) -> None:
    f.digest = sha256(b"what it was before")


def wrong_shape_in_manifest(f: Forgery) -> None:
    f.arrays["bn1.running_var"]["shape"] = [1, 7]


def wrong_dtype_in_manifest(f: Forgery) -> None:
    f.arrays["bn1.running_var"]["dtype"] = "<i8"


def without_manifest(f: Forgery) -> None:
    f.arrays = {}


def without_format(f: Forgery) -> None:
    del f.rest["format"]


def claims_4_tib(f: Forgery) -> None:
    member = npy(np.zeros(7)).replace(b"(7,), }" + b" " * 12, b"(549755813888,), }" + b" ")
    f.arrays["bn1.running_var"]["shape"] = [549755813888]
    f.replace("bn1.running_var", member, "<f8")


def too_short(f: Forgery) -> None:
    f.replace("bn1.running_var", npy(np.zeros(7))[:-1], "<f8")


FORGERIES = [
    (altered_value, r"hold 'conv1\.weight' as .*'sha256': '(\w+)'.*; got .*'sha256': '(?!\1)"),
    (renamed, r"hold the arrays .*'conv1\.weight'.*; got .*'conv1\.weighs'"),
    (missing, r"hold the arrays .*'conv1\.weight'.*; got \['bn1\.running_var', 'seen'\]"),
    (extra, r"hold the arrays .*; got .*'extra'"),
    (twice, "hold each member once"),
    (swapped, r"hold 'conv1\.weight' as .*'<f4'.*; got .*'<f8'"),
    (compressed, "be stored without compression"),
    (altered_meta, "hold 'meta' with the SHA-256 that it names"),
    (wrong_shape_in_manifest, r"hold 'bn1\.running_var' as .*'shape': \[1, 7\].*; got .*'shape': \[7\]"),
    (wrong_dtype_in_manifest, r"hold 'bn1\.running_var' as .*'dtype': '<i8'.*; got .*'dtype': '<f8'"),
    (without_manifest, r"hold the arrays \[\]; got"),
    (without_format, "be a checkpoint; got KeyError"),
    (claims_4_tib, "be a checkpoint; got ValueError"),
    (too_short, "be a checkpoint; got ValueError"),
]


def test_an_honest_forgery_is_accepted(tmp_path: Path) -> None:
    assert not sound_or_refused(tmp_path / "x.npz", Forgery().spell(), bits(example(), META))


@pytest.mark.parametrize(("forge", "words"), FORGERIES)
def test_damage_that_no_checksum_of_zip_sees_is_refused(
    tmp_path: Path, forge: Callable[[Forgery], None], words: str
) -> None:
    forgery = Forgery()
    forge(forgery)
    path = tmp_path / "x.npz"
    path.write_bytes(forgery.spell())
    with pytest.raises(CheckpointError, match=rf"^polybn\.checkpoints\.load: .*x\.npz must {words}"):
        checkpoints.load(path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["array", "meta", "file"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, where: str) -> None:
    trace, path = tmp_path / "the pickle ran", tmp_path / "x.npz"
    payload = np.array([Bomb(trace)], object)
    forgery = Forgery()
    if where == "array":
        forgery.replace("seen", npy(payload), "|O")
        forgery.arrays["seen"]["shape"] = [1]
        data = forgery.spell()
    elif where == "meta":
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=True, meta=payload)
        data = stream.getvalue()
    else:
        data = pickle.dumps(Bomb(trace))
    assert sound_or_refused(path, data, None)
    assert not trace.exists()
    if where != "file":
        with np.load(path, allow_pickle=True) as npz:
            npz["seen" if where == "array" else "meta"]
        assert trace.exists()


@pytest.mark.parametrize("format", [0, -5, float("nan"), True, "1", None, 1.5, [1]])
def test_a_format_that_never_was(tmp_path: Path, format: object) -> None:
    forgery = Forgery()
    forgery.rest["format"] = format
    path = tmp_path / "x.npz"
    path.write_bytes(forgery.spell())
    with pytest.raises(CheckpointError, match=r"x\.npz must have a format of 1 or more; got "):
        checkpoints.load(path)


@pytest.mark.parametrize("meta", [None, [], "text", 7])
def test_a_meta_that_is_no_dict(tmp_path: Path, meta: object) -> None:
    forgery = Forgery()
    forgery.rest["meta"] = meta
    path = tmp_path / "x.npz"
    path.write_bytes(forgery.spell())
    with pytest.raises(CheckpointError, match=r"x\.npz must hold a dict as 'meta'; got "):
        checkpoints.load(path)


def many_members(count: int) -> bytes:
    forgery = Forgery()
    member = npy(np.zeros(1))
    record = {"dtype": "<f8", "shape": [1], "sha256": sha256(member)}
    forgery.members = [(f"{i}.npy", member) for i in range(count)]
    forgery.arrays = {f"{i}": record for i in range(count)}
    return forgery.spell()


def understated(data: bytes) -> bytes:
    """Claim three members at the end of the archive; Python's zipfile reads all of them in spite of that."""
    return data[:-12] + struct.pack("<H", 3) + data[-10:]


def in_zip64(data: bytes) -> bytes:
    """Move the true numbers of the list of members to the fields that large archives use."""
    members, size, offset = struct.unpack_from("<HII", data, len(data) - 12)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, members, members, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1)
    return data[:-22] + end + locator + data[-22:-14] + struct.pack("<HHIIH", 3, 3, 300, offset, 0)


@pytest.mark.parametrize(
    "forge", [many_members, lambda n: understated(many_members(n)), lambda n: in_zip64(many_members(n))]
)
def test_a_forged_file_of_60_000_members_is_refused_at_once(tmp_path: Path, forge: Callable[[int], bytes]) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(forge(60_000))
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"x\.npz must ") as caught:
        checkpoints.load(path)
    assert time.process_time() - start < 1
    assert len(str(caught.value)) < 500


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    """A thousand names for the same mebibyte would be a gibibyte to read."""
    data = bytearray()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i in range(1000):
            archive.writestr(f"{i:04d}", bytes(1 << 16) if i == 0 else b"")
    data = bytearray(stream.getvalue())
    first = data.index(b"PK\1\2")
    size, crc = data[first + 20 : first + 28], data[first + 16 : first + 20]
    at = first
    while (at := data.find(b"PK\1\2", at)) >= 0:
        data[at + 16 : at + 20], data[at + 20 : at + 28], data[at + 42 : at + 46] = crc, size, bytes(4)
        at += 46
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="must hold members that do not overlap"):
        checkpoints.load(path)


def test_save_refuses_more_arrays_than_load_takes(tmp_path: Path) -> None:
    arrays = {f"{i}": np.zeros(1) for i in range(checkpoints.MAX_ARRAYS)}
    path = checkpoints.save(tmp_path, arrays, META, epoch=1)
    assert checkpoints.load(path).arrays.keys() == arrays.keys()
    with pytest.raises(DomainError, match="there must be at most 4096 arrays; got 4097"):
        checkpoints.save(tmp_path, arrays | {"one more": np.zeros(1)}, META, epoch=2)
    assert epochs(tmp_path) == [1]


@pytest.mark.parametrize("in_the_way", ["a directory", "a pipe", "a link to nothing", "a device"])
def test_what_is_no_file_is_passed_over_with_a_warning(tmp_path: Path, in_the_way: str) -> None:
    """A pipe is refused, because reading would wait for a writer."""
    (older,) = fill(tmp_path, 1)
    newest = tmp_path / "epoch-0002.npz"
    match in_the_way:
        case "a directory":
            newest.mkdir()
        case "a pipe":
            os.mkfifo(newest)
        case "a link to nothing":
            newest.symlink_to("nowhere")
        case _:
            newest.symlink_to("/dev/zero")
    with pytest.warns(UserWarning, match=r"falling back to .*epoch-0001\.npz: .*epoch-0002\.npz"):
        found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found[0] == older


def test_a_later_format_is_named_and_never_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    forgery = Forgery()
    forgery.rest |= {"format": 3, "polybn": "9.8.7"}
    words = r"load: .*epoch-0002\.npz must have format 1; got format 3, written by PolyBN 9\.8\.7 \("
    (tmp_path / "epoch-0002.npz").write_bytes(forgery.spell())
    with pytest.raises(LaterFormatError, match=words):
        checkpoints.latest(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "epoch-0001.npz"
    with path.open("wb") as file:
        file.truncate(checkpoints.MAX_BYTES + 1)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"must have at most 1073741824 bytes; got 1073741825"):
        checkpoints.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_save_writes_nothing_that_load_would_find_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = checkpoints.save(tmp_path, example(), META, epoch=0).stat().st_size
    monkeypatch.setattr(checkpoints, "MAX_BYTES", size - 1)
    with pytest.raises(DomainError, match=f"at most {size - 1} bytes; got {size}"):
        checkpoints.save(tmp_path, example(), META, epoch=1)
    assert epochs(tmp_path) == [0]


# The newest that is sound; the last two kept.


def test_latest_is_none_only_without_checkpoints(tmp_path: Path) -> None:
    for other in ("epoch-1.npz", "epoch-0001.npz.bak", "xepoch-0001.npz", ".epoch-0001.npz"):
        (tmp_path / other).write_bytes(b"")
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.latest(tmp_path / "absent") is None
    with pytest.raises(NotADirectoryError):
        checkpoints.latest(tmp_path / "epoch-1.npz")


def test_a_directory_that_cannot_be_read_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 1)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        checkpoints.latest(tmp_path)


def test_epochs_are_ordered_as_numbers(tmp_path: Path) -> None:
    paths = fill(tmp_path, 9_999, 10_000, 2)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found[0] == paths[1]
    assert bits(*found[1]) == bits(example(10_000), {"epoch": 10_000})


def test_damaged_newer_ones_are_passed_over_with_a_warning_each(tmp_path: Path) -> None:
    paths = fill(tmp_path, 1, 2, 3, 4)
    damage(paths[2])
    paths[3].write_bytes(b"")
    with pytest.warns(UserWarning, match=r"^polybn\.checkpoints\.latest: ") as warned:
        found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found[0] == paths[1]
    assert bits(*found[1]) == bits(example(2), {"epoch": 2})
    messages = [str(warning.message) for warning in warned]
    assert len(messages) == 2
    assert all(str(paths[1]) in message for message in messages)
    assert str(paths[3]) in messages[0]
    assert str(paths[2]) in messages[1]
    assert {warning.filename for warning in warned} == {__file__}


def test_nothing_but_damaged_ones_is_an_error_that_names_them(tmp_path: Path) -> None:
    for path in fill(tmp_path, 1, 2):
        damage(path)
    with pytest.raises(CheckpointError, match=r"must hold an undamaged checkpoint; .*epoch-0002.*epoch-0001"):
        checkpoints.latest(tmp_path)


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [4, 5]), (3, [3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_pruning_keeps_the_last_ones(tmp_path: Path, keep: int, left: list[int]) -> None:
    fill(tmp_path, 1, 2, 3, 4)
    (tmp_path / "epoch-1.npz").write_bytes(b"not ours")
    checkpoints.save(tmp_path, example(), META, epoch=5, keep=keep)
    assert files(tmp_path) == sorted(["epoch-1.npz", *(f"epoch-{epoch:04d}.npz" for epoch in left)])


def test_two_are_kept_by_default(tmp_path: Path) -> None:
    for epoch in range(4):
        checkpoints.save(tmp_path, example(), META, epoch=epoch)
    assert epochs(tmp_path) == [2, 3]


def test_an_earlier_epoch_neither_loses_itself_nor_later_ones(tmp_path: Path) -> None:
    fill(tmp_path, 3, 8, 9)
    checkpoints.save(tmp_path, example(), META, epoch=4, keep=1)
    assert epochs(tmp_path) == [4, 8, 9]


# Crashes and full disks.


def test_the_order_of_a_save_is_file_rename_directory_prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 1, 2)
    log: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}

    def fsync(descriptor: int) -> None:
        opened = Path(f"/proc/self/fd/{descriptor}").readlink()
        size = opened.stat().st_size
        log.append("fsync directory" if opened == tmp_path else f"fsync {opened.name.split('.npz')[0]} of {size}")
        real["fsync"](descriptor)

    def replace(source: Path, target: Path) -> None:
        log.append(f"replace {Path(target).name}")
        real["replace"](source, target)

    def unlink(path: Path, **_: object) -> None:
        log.append(f"unlink {Path(path).name}")
        real["unlink"](path)

    for function in (fsync, replace, unlink):
        monkeypatch.setattr(os, function.__name__, function)
    path = checkpoints.save(tmp_path, example(), META, epoch=3)
    size = path.stat().st_size
    steps = [f"fsync .epoch-0003 of {size}", "replace epoch-0003.npz", "fsync directory", "unlink epoch-0001.npz"]
    assert log == steps


def test_directories_that_save_makes_are_synced_into_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    checkpoints.save(tmp_path / "a" / "b", example(), META, epoch=0)
    assert synced[:2] == [tmp_path, tmp_path / "a"]
    assert synced[-1] == tmp_path / "a" / "b"


@pytest.mark.parametrize(("code", "raises"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_only_a_file_system_without_directory_sync_is_excused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, raises: bool
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if raises:
        with pytest.raises(OSError, match=os.strerror(code)):
            checkpoints.save(tmp_path, example(), META, epoch=0)
    else:
        checkpoints.save(tmp_path, example(), META, epoch=0)
    assert bits(*checkpoints.load(tmp_path / "epoch-0000.npz")) == bits(example(), META)


@pytest.mark.parametrize("function", ["fsync", "replace", "open"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), PermissionError(errno.EACCES, "denied")])
@pytest.mark.parametrize("epoch", [2, 3])
def test_a_failed_write_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: OSError, epoch: int
) -> None:
    fill(tmp_path, 1, 2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(Path if function == "open" else os, function, fail)
    with pytest.raises(type(error)) as raised:
        checkpoints.save(tmp_path, example(), META, epoch=epoch)
    assert raised.value is error
    assert error.filename == str(tmp_path / f"epoch-000{epoch}.npz"), "not a temporary file, and not none"
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("size", [1, 100, 10_000_000])
def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    target = tmp_path / "config.json"
    target.write_bytes(b"old")

    def open_on_full_device(self: Path, mode: str) -> Any:
        self.symlink_to("/dev/full")
        return open(self, mode.replace("x", "w"))  # noqa: PTH123

    monkeypatch.setattr(Path, "open", open_on_full_device)
    with pytest.raises(OSError, match="No space left") as raised:
        atomic.write_atomic(target, bytes(size))
    monkeypatch.undo()
    assert raised.value.errno == errno.ENOSPC
    assert str(raised.value).endswith(f"No space left on device: '{target}'")
    assert files(tmp_path) == ["config.json"]
    assert target.read_bytes() == b"old"


def test_write_atomic_replaces_the_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "metrics.jsonl"
    for data in (b"a longer line\n", b"short\n", b""):
        atomic.write_atomic(str(target), data)
        assert target.read_bytes() == data
    assert files(tmp_path) == ["metrics.jsonl"]
    with pytest.raises(FileNotFoundError):
        atomic.write_atomic(tmp_path / "absent" / "file", b"")


def test_a_directory_of_1200_levels(tmp_path: Path) -> None:
    """A deep directory is made, or the system refuses its name; Python's stack is no limit."""
    deep = tmp_path.joinpath(*["d"] * 1200)
    made = atomic.make_directory(deep)
    assert len(made) == 1200
    for path in reversed(made):
        path.rmdir()  # pytest's own clean-up would exceed Python's stack
    with pytest.raises(OSError, match="File name too long"):
        atomic.make_directory(tmp_path.joinpath(*["d"] * 3000))


def test_a_directory_that_another_process_makes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that was missing when first asked for, and there a moment later, is no file in the way."""
    exists = Path.exists

    def made_just_now(path: Path) -> bool:
        path.mkdir(exist_ok=True)
        return exists(path)

    monkeypatch.setattr(Path, "exists", made_just_now)
    assert atomic.make_directory(tmp_path / "run") == []
    monkeypatch.undo()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=f"'{tmp_path / 'file'}'$"):
        atomic.make_directory(tmp_path / "file" / "run")


@pytest.mark.parametrize("kind", ["a directory", "a pipe"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.mkdir() if kind == "a directory" else os.mkfifo(path)
    with pytest.raises(atomic.UnfitFileError, match=f"^{path} must be a regular file; got {kind}$"):
        atomic.read_whole(path, 100)


def test_no_more_is_read_than_a_file_may_have(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert atomic.read_whole(path, 3) == b"abc"
    with pytest.raises(atomic.UnfitFileError, match="x must have at most 2 bytes; got 3"):
        atomic.read_whole(path, 2)


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_atomic(tmp_path / "x", b"data")
    assert files(tmp_path) == []


def temporary(name: str, pid: int, life: str, host: str = atomic._HOST) -> str:
    return f".{name}.{host}-{pid}-{life}.polybn-tmp"


def test_temporary_files_of_the_dead_are_swept_and_no_others(tmp_path: Path) -> None:
    life = atomic._LIFE
    other = "0" * 8
    swept = [temporary("epoch-0001.npz", DEAD_PID, life), temporary("a", os.getpid(), other)]
    kept = [
        temporary("epoch-0001.npz", os.getppid() or 1, other),
        temporary("epoch-0001.npz", os.getpid(), life),
        temporary("epoch-0001.npz", DEAD_PID, life, host=other),
        temporary("epoch-0001.npz", 0, life),
        temporary("epoch-0001.npz", DEAD_PID, life)[1:],
        "notes.polybn-tmp",
    ]
    for name in swept + kept:
        (tmp_path / name).write_bytes(b"")
    checkpoints.save(tmp_path, example(), META, epoch=0)
    assert files(tmp_path) == sorted([*kept, "epoch-0000.npz"])


def test_a_process_of_another_user_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, signal: int) -> None:
        assert (pid, signal) == (DEAD_PID, 0)
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "kill", forbidden)
    theirs = tmp_path / temporary("x", DEAD_PID, "0" * 8)
    theirs.write_bytes(b"")
    atomic.write_atomic(tmp_path / "x", b"data")
    assert files(tmp_path) == [theirs.name, "x"]


def test_a_write_that_is_under_way_in_another_thread_is_not_disturbed(tmp_path: Path) -> None:
    under_way = tmp_path / temporary("x", os.getpid(), atomic._LIFE)
    under_way.write_bytes(b"half")
    with pytest.raises(FileExistsError):
        atomic.write_atomic(tmp_path / "x", b"data")
    assert files(tmp_path) == [under_way.name]
    assert under_way.read_bytes() == b"half"


def test_a_temporary_file_that_cannot_be_removed_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / temporary("x", DEAD_PID, "0123abcd")
    stale.mkdir()  # unlink fails for a directory, as for another user's file
    atomic.write_atomic(tmp_path / "x", b"data")
    assert files(tmp_path) == [stale.name, "x"]


def test_windows_has_neither_signal_0_nor_directories_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / temporary("x", DEAD_PID, "0123abcd")
    stale.write_bytes(b"")

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", never)
    monkeypatch.setattr(os, "open", never)
    atomic.write_atomic(tmp_path / "x", b"data")
    assert files(tmp_path) == [stale.name, "x"]


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(Path(polybn.__file__).parents[1]),
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def newest(directory: Path) -> int:
    """Verify every checkpoint in a directory; return the newest epoch."""
    for path in directory.glob("epoch-*.npz"):
        arrays, meta = checkpoints.load(path)
        assert path.name == f"epoch-{meta['epoch']:04d}.npz"
        assert all((array == meta["epoch"]).all() for array in arrays.values())
    found = checkpoints.latest(directory)
    assert found is not None
    return int(found[1].meta["epoch"])


def temporaries(directory: Path) -> set[int]:
    """Return the process ids in the names of temporary files."""
    return {int(path.name.split("-")[-3]) for path in directory.glob(".*.polybn-tmp")}


def test_24_kills_lose_nothing(tmp_path: Path) -> None:
    rng = random.Random(9)
    epoch = -1
    for _ in range(24):
        with start("run", tmp_path, epoch + 1, 10**9) as worker:
            assert worker.stdout is not None
            reported = [worker.stdout.readline()]
            assert temporaries(tmp_path) <= {worker.pid}
            time.sleep(rng.uniform(0, 0.04))
            worker.kill()
            reported += worker.stdout.readlines()
        saved = int(reported[-1])
        assert saved > epoch
        epoch = newest(tmp_path)
        assert epoch in (saved, saved + 1)
        assert set(epochs(tmp_path)) - {epoch - 2} == {epoch - 1, epoch} - {-1}
    fill(tmp_path, epoch + 1)
    assert temporaries(tmp_path) == set()


@pytest.mark.parametrize(
    ("function", "call", "moment", "last", "left", "stale"),
    [
        ("fsync", 1, "before", 2, [1, 2], True),
        ("fsync", 1, "after", 2, [1, 2], True),
        ("replace", 1, "before", 2, [1, 2], True),
        ("replace", 1, "after", 3, [1, 2, 3], False),
        ("fsync", 2, "before", 3, [1, 2, 3], False),
        ("fsync", 2, "after", 3, [1, 2, 3], False),
        ("unlink", 1, "before", 3, [1, 2, 3], False),
        ("unlink", 1, "after", 3, [2, 3], False),
    ],
)
def test_a_kill_at_each_step(
    tmp_path: Path, function: str, call: int, moment: str, last: int, left: list[int], stale: bool
) -> None:
    for epoch in (1, 2):
        checkpoints.save(tmp_path, {"weight": np.full(5, epoch)}, {"epoch": epoch}, epoch=epoch)
    with start("die", tmp_path, function, call, moment) as worker:
        pass
    assert worker.returncode == -9
    assert newest(tmp_path) == last
    assert epochs(tmp_path) == left
    assert temporaries(tmp_path) == ({worker.pid} if stale else set())
    checkpoints.save(tmp_path, {"weight": np.full(5, last + 1)}, {"epoch": last + 1}, epoch=last + 1)
    assert newest(tmp_path) == last + 1
    assert files(tmp_path) == [f"epoch-{last:04d}.npz", f"epoch-{last + 1:04d}.npz"]


def test_a_file_size_limit_is_an_os_error_and_loses_nothing(tmp_path: Path) -> None:
    for epoch in (1, 2):
        checkpoints.save(tmp_path, {"weight": np.full(5, epoch)}, {"epoch": epoch}, epoch=epoch)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with start("limited", tmp_path, 100_000) as worker:
        assert worker.stdout is not None
        assert worker.stdout.read() == "EFBIG\n"
    assert worker.returncode == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_writers_corrupt_no_file(tmp_path: Path) -> None:
    with start("run", tmp_path, 0, 30) as one, start("run", tmp_path, 0, 30) as other:
        outputs = [worker.communicate()[0].split() for worker in (one, other)]
    assert outputs == [[str(epoch) for epoch in range(30)]] * 2
    assert newest(tmp_path) == 29
    assert temporaries(tmp_path) == set()


# Does it fit?


def fitting() -> tuple[Arrays, Arrays]:
    arrays = {
        "conv1.weight": np.random.default_rng(1).standard_normal((6, 1, 5, 5), np.float32),
        "bn1.running_mean": np.full(6, -2, np.float32),
        "bn1.running_var": np.array([-0.0, 0, 1, 2, 3, 4], np.float32),
        "seen": np.array(-1),
    }
    return arrays, {name: np.zeros_like(array) for name, array in arrays.items()}


def test_a_fitting_checkpoint_passes_whatever_its_values() -> None:
    arrays, expected = fitting()
    before = bits(arrays, {})
    checkpoints.require(Checkpoint(arrays, {}), expected=expected, path="x")
    assert bits(arrays, {}) == before


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (
            "conv1.weight",
            None,
            r"float32 of shape \(6, 1, 5, 5\) as 'conv1.weight'; got nothing \(it belongs to another",
        ),
        ("bn9.gamma", np.ones(3, np.float32), r"hold nothing as 'bn9.gamma'; got float32 of shape \(3,\)"),
        ("bn1.running_mean", np.ones((1, 6), np.float32), r"of shape \(6,\) as 'bn1.running_mean'; got .*\(1, 6\)"),
        ("bn1.running_mean", np.ones(6), "float32 of shape .* as 'bn1.running_mean'; got float64"),
        ("bn1.running_mean", np.ones(6, ">f4"), "got >f4"),
        (
            "bn1.running_mean",
            np.array([0, 1, np.nan, 3, np.inf, 5], np.float32),
            r"'bn1.running_mean'; got nan at \(2,\)",
        ),
        ("bn1.running_var", np.array([0, 1, 2, 3, np.inf, 5], np.float32), r"0 or more, as .*; got inf at \(4,\)"),
        ("bn1.running_var", np.array([0, -1, 2, -3, 4, 5], np.float32), r"got -1.0 at \(1,\) \(one of 2 such"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(name: str, array: NDArray[Any] | None, words: str) -> None:
    arrays, expected = fitting()
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    with pytest.raises(CheckpointError, match=rf"^polybn\.checkpoints\.require: runs/a/x\.npz must .*{words}"):
        checkpoints.require(Checkpoint(arrays, {}), expected=expected, path=Path("runs/a/x.npz"))
