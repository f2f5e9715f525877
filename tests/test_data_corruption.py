"""Damaged data: any damaged file is refused, and the error says which file, why and what to do."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polybn.lenet import editions, fashion_mnist, idx
from polybn.lenet.editions import SAMPLE, Content
from polybn.lenet.errors import DataIntegrityError
from polybn.lenet.fashion_mnist import load
from polybn.lenet.idx import DamagedError, gunzip, parse

SAMPLES = Path(fashion_mnist.__file__).parent / "samples"
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
FILES = [f"{content.name}.gz" for content in SAMPLE.contents]
REPAIR = (
    "(put the four files of Fashion-MNIST, compressed or not, there again, or use the subset that comes with polybn, "
    '"sample")'
)
by_file = pytest.mark.parametrize("file", FILES)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory with the subset, which stands in for the full data."""
    monkeypatch.setattr(fashion_mnist, "FULL", SAMPLE._replace())
    shutil.copytree(SAMPLES, tmp_path / "data")
    return tmp_path / "data"


def refused(directory: Path, name: str, words: str) -> None:
    """Loading fails in the words ``polybn.fashion_mnist.load: <path> must <rule>; got <found> (<repair>)``."""
    with pytest.raises(DataIntegrityError) as caught:
        load(directory)
    text = str(caught.value)
    assert text.startswith(f"polybn.fashion_mnist.load: {directory / name} must ")
    assert "; got " in text
    assert text.endswith(f" {REPAIR}")
    assert words in text


def refused_when(directory: Path, name: str, data: bytes | bytearray, words: str) -> None:
    (directory / name).write_bytes(data)
    refused(directory, name, words)


def unpacked(name: str) -> bytes:
    return gzip.decompress((SAMPLES / name).read_bytes())


def sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


# Files.


def test_the_undamaged_files_are_accepted(directory: Path) -> None:
    assert load(directory).source == f"{directory} (argument)"


@by_file
@pytest.mark.parametrize("packed", [True, False])
def test_truncation(file: str, packed: bool, directory: Path) -> None:
    whole = (directory / file).read_bytes() if packed else unpacked(file)
    step = max(97, len(whole) // 24)
    for size in {*range(2, len(whole), step), len(whole) - 1}:
        words = (
            f"be a whole gzip file; got one that is cut off after {size:,}" if packed else f"{size:,} bytes that begin"
        )
        refused_when(directory, file, whole[:size], words)
    refused_when(directory, file, b"", "got " + sha256(b""))


@pytest.mark.parametrize("content", SAMPLE.contents, ids=lambda content: str(content.name))
def test_flipped_bits_of_compressed_files(content: Content, directory: Path) -> None:
    """Each flipped bit, all in the header and 30 elsewhere, is refused or has no effect on the content."""
    path = directory / f"{content.name}.gz"
    whole, expected = path.read_bytes(), editions._array(path, content)
    refusals = 0
    for bit in [*range(80), *np.random.default_rng().integers(80, 8 * len(whole), 30).tolist()]:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert np.array_equal(editions._array(path, content), expected)
        except DamagedError as error:
            assert str(error).startswith(f"{path} must ")  # noqa: PT017
            refusals += 1
    assert refusals >= 30


@by_file
def test_every_flipped_bit_of_an_uncompressed_file_is_refused(file: str, directory: Path) -> None:
    whole = unpacked(file)
    for bit in np.random.default_rng().integers(0, 8 * len(whole), 30).tolist():
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        refused_when(directory, file, data, f"got {sha256(data)}")


HTML = b"<!DOCTYPE html><html><head><title>301 Moved Permanently</title></head></html>"


@by_file
@pytest.mark.parametrize(
    ("damage", "found"),
    [
        pytest.param(lambda data: data + bytes(64), "64 more bytes", id="zeros at the end"),
        pytest.param(lambda data: data + gzip.compress(b"!"), "21 more bytes", id="a second member"),
        pytest.param(lambda data: HTML, "77 bytes that begin with b'<!DOCTYPE html>'", id="a page"),
        pytest.param(lambda data: (HTML * len(data))[: len(data)], "b'<!DOCTYPE html>'", id="a page of the right size"),
        pytest.param(lambda data: bytes(len(data)), "bytes that begin with b'\\x00", id="zeros"),
        pytest.param(lambda data: b"\x1f\x8b\x08" * 99, "gzip file; got ", id="gzip in name only"),
    ],
)
def test_another_content(file: str, damage: Callable[[bytes], bytes], found: str, directory: Path) -> None:
    refused_when(directory, file, damage((directory / file).read_bytes()), found)


@pytest.mark.parametrize(("here", "there"), [(0, 2), (1, 3), (0, 1), (2, 3)])
@pytest.mark.parametrize("packed", [True, False])
def test_files_that_changed_names(here: int, there: int, packed: bool, directory: Path) -> None:
    contents = [(directory / name).read_bytes() if packed else unpacked(name) for name in FILES]
    (directory / FILES[there]).write_bytes(contents[here])
    refused_when(directory, FILES[here], contents[there], "; got ")


def test_another_data_set_under_these_names(directory: Path) -> None:
    """Another data set in the right format is refused, such as MNIST's digits under these names."""
    for file, content in zip(FILES, SAMPLE.contents, strict=True):
        header = struct.pack(f">HBB{len(content.shape)}I", 0, 8, len(content.shape), *content.shape)
        values = np.arange(np.prod(content.shape), dtype=np.uint64).reshape(content.shape) % 10
        (directory / file).write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))
    refused(directory, FILES[0], f"hold IDX data with SHA-256 {SAMPLE.contents[0].sha256}; got ")


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link_to(target: str) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return replace


@by_file
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(Path.unlink, id="missing"),
        pytest.param(replace_by_link_to("nowhere"), id="a link to nothing"),
        pytest.param(replace_by_directory, id="a directory"),
        pytest.param(replace_by_pipe, id="a pipe that nobody writes to"),
        pytest.param(replace_by_link_to("/dev/zero"), id="an endless device"),
    ],
)
def test_no_file(file: str, damage: Callable[[Path], None], directory: Path) -> None:
    damage(directory / file)
    refused(directory, "", f"must hold a file {file} or {file[:-3]}; got LICENSE, ")


def test_a_pipe_that_takes_the_place_of_a_file_after_it_was_found(directory: Path) -> None:
    place = fashion_mnist.find(directory).used
    assert place is not None
    replace_by_pipe(directory / LABELS)
    with pytest.raises(DamagedError, match="must hold a file t10k-labels-idx1-ubyte; got none"):
        fashion_mnist._read(place, progress=False)
    with pytest.raises(OSError, match="must be a regular file; got a pipe"):
        editions._array(directory / LABELS, SAMPLE.contents[3])


def test_a_link_to_a_good_file_is_good(directory: Path) -> None:
    (directory / LABELS).unlink()
    (directory / LABELS).symlink_to(SAMPLES / LABELS)
    assert load(directory)


def test_no_directory(directory: Path) -> None:
    shutil.rmtree(directory)
    refused(directory, "", "be a directory; got none")
    directory.touch()
    refused(directory, "", "be a directory; got something else")


def test_a_damaged_sample_can_only_be_installed_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / LABELS).unlink()
    monkeypatch.setattr(fashion_mnist, "_SAMPLES", directory)
    with pytest.raises(DataIntegrityError, match=r"must hold a file t10k-labels.*; got .* \(install polybn again\)"):
        load("sample")


# The parser, given any bytes.


def header(*shape: int, magic: int = 0x0800) -> bytes:
    return struct.pack(f">I{len(shape)}I", magic + len(shape), *shape)


@pytest.mark.parametrize(
    ("content", "shape", "words"),
    [
        (b"", (3,), r"start with an IDX header of 8 bytes; got 0 bytes in all"),
        (header(3)[:7], (3,), r"start with an IDX header of 8 bytes; got 7 bytes in all"),
        (HTML, (3,), r"start with the IDX magic number, two zero bytes first; got b'<!DO'"),
        (header(3, magic=0x0100_0800) + b"abc", (3,), r"IDX magic number.*got b'\\x01\\x00\\x08\\x01'"),
        (header(3, magic=0x0001_0800) + b"abc", (3,), r"IDX magic number.*got b'\\x00\\x01\\x08\\x01'"),
        (header(3, magic=0x0D00) + b"abc", (3,), r"hold uint8 values \(IDX type 0x08\); got type 0x0d \(float32\)"),
        (header(3, magic=0x0900) + b"abc", (3,), r"hold uint8 values .* got type 0x09 \(int8\)"),
        (header(3, magic=0x0700) + b"abc", (3,), r"hold uint8 values .* got type 0x07 \(unknown\)"),
        (header(3, 1, 1) + b"abc", (3,), r"have 1 dimensions; got 3"),
        (header(3) + b"abc" + bytes(8), (3, 1, 1), r"have 3 dimensions; got 1"),
        (struct.pack(">I", 0x0800) + b"abcdefg", (3,), r"have 1 dimensions; got 0"),
        (struct.pack(">I", 0x08FF) + b"abcdefg", (3,), r"have 1 dimensions; got 255"),
        (header(4) + b"abc", (3,), r"have shape \(3,\); got \(4,\)"),
        (header(2**32 - 1), (3,), r"have shape \(3,\); got \(4294967295,\)"),
        (header(*[2**32 - 1] * 3), (2, 2, 2), r"have shape .* got \(4294967295, 4294967295, 4294967295\)"),
        (header(0, 28, 28), (2, 28, 28), r"have shape .* got \(0, 28, 28\)"),
        (header(2, 2, 1) + b"abcd", (1, 2, 2), r"have shape \(1, 2, 2\); got \(2, 2, 1\)"),
        (struct.pack("<II", 0x0108_0000, 3) + b"abc", (3,), r"have shape \(3,\); got \(50331648,\)"),
        (header(3) + b"ab", (3,), r"have 11 bytes for its shape \(3,\); got 10"),
        (header(3) + b"abcd", (3,), r"have 11 bytes for its shape \(3,\); got 12"),
        (header(3), (3,), r"have 11 bytes for its shape \(3,\); got 8"),
    ],
)
def test_idx_faults(content: bytes, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(DamagedError, match=words):
        parse(content, shape)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_idx_read_back(dimensions: list[int], data: st.DataObject) -> None:
    shape = tuple(dimensions)
    values = data.draw(st.binary(min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    content = header(*shape) + values
    assert idx.file_size(shape) == len(content)
    parsed = parse(gunzip(gzip.compress(content), len(content)), shape)
    assert (parsed.shape, parsed.dtype.str, parsed.tobytes()) == (shape, "|u1", values)
    assert not parsed.flags.writeable


@given(st.binary(max_size=64), st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple))
@example(header(2) + b"ab", (2,))
def test_idx_of_any_bytes(content: bytes, shape: tuple[int, ...]) -> None:
    """Either every byte is accounted for, or the content is refused."""
    try:
        parsed = parse(content, shape)
    except DamagedError:
        assert content[: -int(np.prod(shape))] != header(*shape)
    else:
        assert content == header(*shape) + parsed.tobytes()


ABC = gzip.compress(b"abc", mtime=0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", r"be a whole gzip file; got one that is cut off after 0 bytes", id="empty"),
        pytest.param(HTML, r"be an intact gzip file; got 77 bytes that start with b'<!DOCTYPE ht' \(", id="a page"),
        pytest.param(zlib.compress(b"abc"), r"be an intact gzip file; got .*incorrect header check", id="zlib"),
        pytest.param(ABC[:-1], r"be a whole gzip file; got one that is cut off after 22 bytes", id="cut at the end"),
        pytest.param(ABC[:5], r"be a whole gzip file; got one that is cut off after 5 bytes", id="cut in the header"),
        pytest.param(gzip.compress(b"ab", mtime=0), r"decompress to 3 bytes; got 2", id="less"),
        pytest.param(gzip.compress(b"", mtime=0), r"decompress to 3 bytes; got 0", id="nothing"),
        pytest.param(gzip.compress(b"abcd", mtime=0), r"decompress to 3 bytes; got more than that", id="more"),
        pytest.param(gzip.compress(b"a" * 10**6, mtime=0), r"decompress to 3 bytes; got more than that", id="far more"),
        pytest.param(ABC + b"\0", r"end where its gzip member ends; got 1 more bytes", id="a zero at the end"),
        pytest.param(ABC + ABC, r"end where its gzip member ends; got 23 more bytes", id="a second member"),
        pytest.param(ABC[:-8] + bytes(8), r"be an intact gzip file; got .*incorrect data check", id="CRC"),
        pytest.param(ABC[:-4] + bytes(4), r"be an intact gzip file; got .*incorrect length check", id="length"),
    ],
)
def test_gzip_faults(data: bytes, words: str) -> None:
    with pytest.raises(DamagedError, match=words):
        gunzip(data, 3)


def test_every_bit_of_a_gzip_file(directory: Path) -> None:
    """A flipped bit is found or has no effect, as some bits of the header and the padding before the trailer."""
    data = (SAMPLES / LABELS).read_bytes()
    content = gunzip(data, 1_008)
    unnoticed = []
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert gunzip(bytes(flipped), 1_008) == content
            unnoticed.append(bit)
        except DamagedError:
            pass
    assert {bit // 8 for bit in unnoticed} <= {*range(10), len(data) - 9}
    for size in range(len(data)):
        with pytest.raises(DamagedError):
            gunzip(data[:size], 1_008)


BOMB = """
import gzip, resource, sys
from pathlib import Path
from polybn.lenet import editions
from polybn.lenet.editions import Content
from polybn.lenet.idx import DamagedError, gunzip

bomb, big = map(Path, sys.argv[1:])
data = bomb.read_bytes()
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))

def text(function, *arguments):
    try:
        function(*arguments)
    except (DamagedError, OSError) as error:
        return str(error)
    except MemoryError:
        return "out of memory"

print(text(gzip.decompress, data))
print(text(gunzip, data, 60_008))
print(text(gunzip, data, 47_040_016))
print(text(editions._array, bomb, Content("bomb", (47_040_008,), "")))
print(text(editions._array, big, Content("big", (60_000,), "")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits memory on Linux")
def test_a_bomb_does_no_harm(tmp_path: Path) -> None:
    """One MiB that decompresses to one GiB, and a file of four GiB, are refused by a process with half a GiB."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    mebibyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(1024):
        checksum = zlib.crc32(bytes(1 << 20), checksum)
    trailer = packer.flush() + struct.pack("<II", checksum, 1 << 30)
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(b"")[:10] + mebibyte * 1024 + trailer)
    big = tmp_path / "big"
    with big.open("wb") as stream:
        stream.truncate(4 << 30)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", BOMB, str(bomb), str(big)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        "out of memory",
        "decompress to 60,008 bytes; got more than that",
        "decompress to 47,040,016 bytes; got more than that",
        f"{bomb} must decompress to 47,040,016 bytes; got more than that",
        f"{big} must have at most {60_008 + 60 + 2**16} bytes; got {4 << 30}",
    ]
