"""Damaged data: whatever happened to a file, it is refused, in words that say which, why and what to do."""

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

from polybn.lenet import fashion_mnist, idx
from polybn.lenet.download import Wanted
from polybn.lenet.errors import DataIntegrityError
from polybn.lenet.fashion_mnist import SAMPLE, load
from polybn.lenet.idx import DamagedError, gunzip, parse

SAMPLES = Path(fashion_mnist.__file__).parent / "samples"
FILES = SAMPLE.forms[0]
SHAPES = ((6_000, 28, 28), (6_000,), (1_000, 28, 28), (1_000,))
IMAGES, LABELS = FILES[0], FILES[3]
REPAIR = '(copy the four .gz files of Fashion-MNIST there again, or use the subset that comes with polybn, "sample")'
by_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the test's own, and the subset in it, which stands in for the full data."""
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


# Files.


def test_the_undamaged_files_are_accepted(directory: Path) -> None:
    assert load(directory).source == f"{directory} (argument)"


@by_file
def test_truncation(file: Wanted, directory: Path) -> None:
    whole = (directory / file.name).read_bytes()
    step = 97 if file.size < 10_000 else file.size // 24
    for size in {*range(0, file.size, step), file.size - 1}:
        refused_when(directory, file.name, whole[:size], f"have {file.size:,} bytes; got {size:,}")


@by_file
def test_flipped_bits(file: Wanted, directory: Path) -> None:
    """Every bit of the gzip header, among which are bits that change nothing that comes out; and 30 anywhere."""
    whole = (directory / file.name).read_bytes()
    anywhere = np.random.default_rng().integers(80, 8 * file.size, 30).tolist()
    for bit in [*range(0, 80, 1 if file.size < 10_000 else 9), *anywhere]:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        refused_when(directory, file.name, data, f"have SHA-256 {file.sha256}; got {hashlib.sha256(data).hexdigest()}")


HTML = b"<!DOCTYPE html><html><head><title>301 Moved Permanently</title></head></html>"


@by_file
@pytest.mark.parametrize(
    ("damage", "found"),
    [
        pytest.param(lambda data: data + bytes(64), " (", id="zeros at the end"),
        pytest.param(lambda data: data + gzip.compress(b"!"), " (", id="a second member"),
        pytest.param(lambda data: b"", " that begin with b''", id="empty"),
        pytest.param(lambda data: HTML, " that begin with b'<!DOCTYPE html>'", id="a page"),
        pytest.param(lambda data: zlib.decompress(data, 31), " that begin with b'\\x00\\x00\\x08", id="extracted"),
        pytest.param(lambda data: data + data, " (", id="twice"),
    ],
)
def test_another_size(file: Wanted, damage: Callable[[bytes], bytes], found: str, directory: Path) -> None:
    data = damage((directory / file.name).read_bytes())
    refused_when(directory, file.name, data, f"have {file.size:,} bytes; got {len(data):,}{found}")


@by_file
@pytest.mark.parametrize("filler", [HTML, b"\0", b"\x1f\x8b\x08"], ids=["a page", "zeros", "gzip in name only"])
def test_the_right_size_and_nothing_else_right(file: Wanted, filler: bytes, directory: Path) -> None:
    data = (filler * file.size)[: file.size]
    refused_when(directory, file.name, data, f"have SHA-256 {file.sha256}; got ")


@pytest.mark.parametrize(("here", "there"), [(0, 2), (1, 3), (0, 1), (2, 3)])
def test_files_that_changed_names(here: int, there: int, directory: Path) -> None:
    (directory / FILES[here].name).rename(directory / "aside")
    (directory / FILES[there].name).rename(directory / FILES[here].name)
    (directory / "aside").rename(directory / FILES[there].name)
    refused(directory, FILES[here].name, f"have {FILES[here].size:,} bytes; got {FILES[there].size:,}")


def test_another_data_set_under_these_names(directory: Path) -> None:
    """As when digits lie where clothes should: the format is right, and so is every number in it."""
    for file, shape in zip(FILES, SHAPES, strict=True):
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        values = np.arange(np.prod(shape), dtype=np.uint64).reshape(shape) % 10
        (directory / file.name).write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))
    refused(directory, FILES[0].name, f"have {FILES[0].size:,} bytes; got ")


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
    ("damage", "words"),
    [
        pytest.param(Path.unlink, "be a file; got none", id="missing"),
        pytest.param(replace_by_link_to("nowhere"), "be a file; got none", id="a link to nothing"),
        pytest.param(replace_by_directory, "be a file; got something else", id="a directory"),
        pytest.param(replace_by_pipe, "be a file; got something else", id="a pipe that nobody writes to"),
        pytest.param(replace_by_link_to("/dev/zero"), "be a file; got something else", id="an endless device"),
    ],
)
def test_no_file(file: Wanted, damage: Callable[[Path], None], words: str, directory: Path) -> None:
    damage(directory / file.name)
    refused(directory, file.name, words)


def test_a_link_to_a_good_file_is_good(directory: Path) -> None:
    (directory / LABELS.name).unlink()
    (directory / LABELS.name).symlink_to(SAMPLES / LABELS.name)
    assert load(directory)


def test_no_directory(directory: Path) -> None:
    shutil.rmtree(directory)
    refused(directory, "", "be a directory; got none")
    directory.touch()
    refused(directory, "", "be a directory; got something else")


def test_a_damaged_sample_can_only_be_installed_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / LABELS.name).unlink()
    monkeypatch.setattr(fashion_mnist, "_SAMPLES", directory)
    with pytest.raises(DataIntegrityError, match=r"t10k-labels.* must be a file; got none \(install polybn again\)"):
        load("sample")


def test_a_file_that_changes_after_its_size_was_checked(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is parsed is what was digested, and that is what was read, once."""
    place = fashion_mnist.find(directory).used
    assert place is not None
    with (directory / LABELS.name).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(DamagedError, match=f"{LABELS.name} must have SHA-256 {LABELS.sha256}; got "):
        fashion_mnist._read(place, progress=False)


# Files whose digest is in the table, and which are wrong all the same.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: 10}, "hold labels from 0 to 9; got 10"),
        ({5: 255}, "hold labels from 0 to 9; got 255"),
        ({}, None),
    ],
)
def test_labels_out_of_range(change: dict[int, int], words: str | None, directory: Path) -> None:
    check_labels(directory, change, words)


def test_labels_out_of_balance(directory: Path) -> None:
    labels = load("sample").test_labels
    counts = [100] * 10
    counts[labels[7]] -= 1
    counts[(int(labels[7]) + 1) % 10] += 1
    check_labels(directory, {7: (int(labels[7]) + 1) % 10}, f"hold each label 100 times; got {counts}")


def check_labels(directory: Path, change: dict[int, int], words: str | None) -> None:
    content = bytearray(gunzip((SAMPLES / LABELS.name).read_bytes(), 8 + 1_000))
    for place, label in change.items():
        content[8 + place] = label
    data = gzip.compress(content)
    (directory / LABELS.name).write_bytes(data)
    forms = (*FILES[:3], Wanted(LABELS.name, len(data), hashlib.sha256(data).hexdigest()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion_mnist, "FULL", SAMPLE._replace(forms=(forms,)))
        if words is None:
            assert load(directory)
        else:
            refused(directory, LABELS.name, words)


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
    """Either every byte is accounted for, or the content is refused; there is no third way."""
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
    """Flipped, it is noticed, or it means nothing: some bits of the header, and the padding before the trailer."""
    data = (SAMPLES / LABELS.name).read_bytes()
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
import gzip, hashlib, resource, sys
from pathlib import Path
from polybn.lenet import fashion_mnist
from polybn.lenet.download import Wanted
from polybn.lenet.idx import DamagedError, gunzip

bomb = Path(sys.argv[1]).read_bytes()
endless = Path(sys.argv[2])
form = Wanted(Path(sys.argv[1]).name, len(bomb), hashlib.sha256(bomb).hexdigest())
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))

def text(function, *arguments):
    try:
        function(*arguments)
    except DamagedError as error:
        return str(error)
    except MemoryError:
        return "out of memory"

print(text(gzip.decompress, bomb))
print(text(gunzip, bomb, 60_008))
print(text(gunzip, bomb, 47_040_016))
print(text(fashion_mnist._array, Path(sys.argv[1]).parent, (form,), (60_000,)))
print(text(fashion_mnist._array, endless.parent, (Wanted(endless.name, 9, "0"),), (60_000,)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits memory on Linux")
def test_a_bomb_does_no_harm(tmp_path: Path) -> None:
    """One MiB that decompresses to one GiB, and a file of four GiB, with half a GiB to live in."""
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
        f"{bomb} must decompress to 60,008 bytes; got more than that",
        f"{big} must have SHA-256 0; got {hashlib.sha256(bytes(10)).hexdigest()}",
    ]
