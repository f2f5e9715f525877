"""The data: their content, the places to look for them, and the order of the places."""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import os
import runpy
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polybn.lenet import download, editions, fashion_mnist, idx
from polybn.lenet.download import Wanted
from polybn.lenet.editions import FULL, SAMPLE, Edition
from polybn.lenet.errors import DataIntegrityError
from polybn.lenet.fashion_mnist import CLASSES, DEBIAN, Dataset, Place, find, load, load_or_sample

SAMPLES = Path(fashion_mnist.__file__).parent / "samples"
NAMES = [f"{content.name}.gz" for content in FULL.contents]
full_data = pytest.mark.skipif(
    not (DEBIAN / NAMES[-1]).exists(), reason="the full data are not here (apt install dataset-fashion-mnist)"
)


def check(data: Dataset, train: int, test: int) -> None:
    for images, labels, count in ((data[0], data[1], train), (data[2], data[3], test)):
        assert (images.shape, labels.shape) == ((count, 1, 28, 28), (count,))
        assert images.dtype == labels.dtype == np.uint8
        assert np.bincount(labels).tolist() == [count // 10] * 10
        assert not images.flags.writeable
        assert not labels.flags.writeable


def same(a: Dataset, b: Dataset) -> bool:
    return all(np.array_equal(mine, yours) for mine, yours in zip(a[:4], b[:4], strict=True))


# The content of the data.


def test_the_sample() -> None:
    data = load("sample")
    check(data, 6_000, 1_000)
    assert data.source == "sample shipped with polybn (6,000 + 1,000 images)"
    for labels in (data.train_labels, data.test_labels):
        assert (np.sort(labels.reshape(-1, 10)) == range(10)).all(), "every ten in a row are one of each class"
    assert len(np.unique(data.train_images, axis=0)) > 5_990, "different images, not copies of a few"


@full_data
def test_the_full_data() -> None:
    """The first labels, the mean and the standard deviation are those of public tutorials."""
    data = load(DEBIAN)
    check(data, 60_000, 10_000)
    assert data.source == f"{DEBIAN} (argument)"
    assert [CLASSES[label] for label in data.train_labels[:4]] == ["Ankle boot", "T-shirt/top", "T-shirt/top", "Dress"]
    assert [CLASSES[label] for label in data.test_labels[:4]] == ["Ankle boot", "Pullover", "Trouser", "Trouser"]
    assert round(float(data.train_images.mean()) / 255, 4) == 0.2860
    assert round(float(data.train_images.std()) / 255, 4) == 0.3530


@full_data
def test_the_sample_is_what_its_recipe_makes_of_the_full_data() -> None:
    recipe = runpy.run_path(str(Path(__file__).parent / "support" / "make_sample.py"))
    made = recipe["sample"](load(DEBIAN))
    assert same(made, load("sample"))
    for name, values in zip(NAMES, (made[0][:, 0], made[1], made[2][:, 0], made[3]), strict=True):
        shipped = (SAMPLES / name).read_bytes()
        size = idx.file_size(values.shape)
        # Versions of zlib compress differently, so files may differ, but not their content.
        assert idx.gunzip(recipe["idx_gzip"](values), size) == idx.gunzip(shipped, size)
        assert shipped[:8] == b"\x1f\x8b\x08\0\0\0\0\0", "no name and no time in the header"


def test_the_sample_comes_with_its_license() -> None:
    text = (SAMPLES / "LICENSE").read_text()
    assert "Copyright (c) 2017 Zalando SE" in text
    assert "permission notice shall be included" in text


def as_published(name: str) -> bytes:
    """Return a file as the authors published it: Debian's, with a name and a time in the gzip header."""
    time = 0x59A7E9DE if name.startswith("train") else 0x59A7E9F3
    header = struct.pack("<HBBIBB", 0x8B1F, 8, 8, time, 0, 3) + name.removesuffix(".gz").encode() + b"\0"
    return header + (DEBIAN / name).read_bytes()[10:]


@full_data
def test_the_files_as_the_authors_published_them(tmp_path: Path) -> None:
    """The published files have the sizes and digests of the table of downloads, and the content of Debian's."""
    for name, wanted in zip(NAMES, FULL.downloads, strict=True):
        data = as_published(name)
        assert Wanted(name, len(data), hashlib.sha256(data).hexdigest()) == wanted
        (tmp_path / name).write_bytes(data)
    assert same(load(tmp_path), load(DEBIAN))


def test_downloads_are_those_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fill(directory: Path, files: tuple[Wanted, ...], mirrors: tuple[str, ...], *, progress: bool) -> None:
        asked.append((directory, files, mirrors, progress))
        raise DataIntegrityError("no")

    monkeypatch.delenv("POLYBN_DATA", raising=False)
    monkeypatch.delenv("POLYBN_OFFLINE", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(fashion_mnist, "fill", fill)
    with pytest.raises(DataIntegrityError, match="download: no"):
        load(progress=True)
    assert asked == [(tmp_path / "cache", FULL.downloads, editions.MIRRORS, True)]
    assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in editions.MIRRORS)
    assert download.ALLOWED == "https://"


# Packing. From here on the subset stands in for the full data, in temporary directories.


def unpacked(name: str) -> bytes:
    return gzip.decompress((SAMPLES / name).read_bytes())


PACKED: dict[str, Callable[[Path, str], object]] = {
    "as torchvision unpacks it": lambda d, name: place(d / "FashionMNIST" / "raw" / name[:-3], unpacked(name)),
    "in raw": lambda d, name: place(d / "raw" / name[:-3], unpacked(name)),
    "uncompressed": lambda d, name: place(d / name[:-3], unpacked(name)),
    "uncompressed, under the name of a compressed file": lambda d, name: place(d / name, unpacked(name)),
    "compressed, under the name of an uncompressed file": lambda d, name: shutil.copy(SAMPLES / name, d / name[:-3]),
    "compressed again": lambda d, name: place(d / name, gzip.compress(unpacked(name), 1)),
    "not compressed at all, as gzip": lambda d, name: place(d / name, gzip.compress(unpacked(name), 0)),
    "beside a damaged one": lambda d, name: [place(d / name, b"\x1f\x8b"), place(d / name[:-3], unpacked(name))],
}


def place(path: Path, data: bytes) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.write_bytes(data)


@pytest.mark.parametrize("how", PACKED)
def test_what_the_files_hold_decides_and_not_how_they_are_packed(how: str, places: Places) -> None:
    places.named.mkdir()
    for name in NAMES:
        PACKED[how](places.named, name)
    data = load(places.named)
    assert same(data, load("sample"))
    assert data.where == str(places.named)


def test_what_is_there_is_named_where_the_data_are_not(places: Places) -> None:
    places.named.mkdir()
    for name in ("a.zip", "train-images.gz", "train-labels.gz", "test", "x"):
        (places.named / name).touch()
    words = (
        rf"{places.named} must hold a file train-images-idx3-ubyte\.gz or train-images-idx3-ubyte; "
        r"got a\.zip, test, train-images\.gz, train-labels\.gz, \.\.\. "
    )
    with pytest.raises(DataIntegrityError, match=words):
        load(places.named)


@pytest.mark.parametrize("how", ["argument", "POLYBN_DATA"])
def test_the_home_of_nobody(how: str, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    where = "~nosuchuser/x"
    if how == "POLYBN_DATA":
        monkeypatch.setenv("POLYBN_DATA", where)
    named = where if how == "argument" else None
    assert find(named).used is None
    with pytest.raises(DataIntegrityError, match="~nosuchuser/x must be a directory; got the home directory of a user"):
        load(named)


def test_without_a_home_nothing_is_downloaded_into_a_folder_named_tilde(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "_cache", lambda: Path("~/.cache/polybn"))
    monkeypatch.setattr(fashion_mnist, "fill", lambda *args, **options: pytest.fail("something was downloaded"))
    with pytest.raises(DataIntegrityError, match="download: HOME must name your home directory; got none"):
        load()


# The places to look for data.


def downloadable() -> Edition:
    """Return the sample as if mirrors had it."""
    files = [(name, (SAMPLES / name).read_bytes()) for name in NAMES]
    return SAMPLE._replace(downloads=tuple(Wanted(n, len(f), hashlib.sha256(f).hexdigest()) for n, f in files))


class Places:
    def __init__(self, root: Path) -> None:
        self.named, self.variable, self.cache, self.debian = (root / name for name in ("n", "v", "c", "d"))
        self.mirror = root / "mirror"

    def fill(self, *directories: Path) -> None:
        for directory in directories:
            shutil.copytree(SAMPLES, directory)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    places = Places(tmp_path)
    monkeypatch.delenv("POLYBN_DATA", raising=False)
    monkeypatch.delenv("POLYBN_OFFLINE", raising=False)
    monkeypatch.setattr(fashion_mnist, "FULL", downloadable())
    monkeypatch.setattr(fashion_mnist, "DEBIAN", places.debian)
    monkeypatch.setattr(fashion_mnist, "_cache", lambda: places.cache)
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ("http://127.0.0.1:9/", "http://127.0.0.1:9/second/"))
    return places


def used(place: Place | None) -> tuple[str, Path] | None:
    return place and (place.origin, place.directory)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_order(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    places.fill(places.named, places.variable, places.cache, places.debian)
    monkeypatch.setenv("POLYBN_DATA", str(places.variable))
    expected = ["argument", "POLYBN_DATA", "user cache", "Debian package", "download"]
    directories = [places.named, places.variable, places.cache, places.debian, places.cache]
    for origin, directory in zip(expected, directories, strict=True):
        where = places.named if origin == "argument" else None
        assert used(find(where).used) == (origin, directory)
        if origin != "download":
            assert load(where, download=False).source == f"{directory} ({origin})"
            shutil.rmtree(directory)
        if origin == "POLYBN_DATA":
            monkeypatch.delenv("POLYBN_DATA")
    assert find(download=False).used is None


def test_the_word_sample(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    places.fill(places.cache)
    monkeypatch.setenv("POLYBN_DATA", "sample")
    assert load().source.startswith("sample shipped")
    assert used(find().used) == ("POLYBN_DATA", SAMPLES)
    assert load(places.cache).source == f"{places.cache} (argument)", "an argument comes before the variable"
    assert load("sample").source.startswith("sample shipped")
    with pytest.raises(DataIntegrityError, match="sample must be a directory"):
        load(Path("sample"))
    monkeypatch.setenv("POLYBN_DATA", "")
    assert used(find().used) == ("user cache", places.cache)


@pytest.mark.parametrize("how", ["absent", "empty", "damaged"])
@pytest.mark.parametrize("origin", ["argument", "POLYBN_DATA"])
def test_a_named_place_never_falls_through(
    how: str, origin: str, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.fill(places.cache, places.debian)
    if how == "empty":
        places.named.mkdir()
    if how == "damaged":
        places.fill(places.named)
        flip(places.named / NAMES[0])
    if origin == "POLYBN_DATA":
        monkeypatch.setenv("POLYBN_DATA", str(places.named))
    where = places.named if origin == "argument" else None
    assert [place.origin for place in find(where).places] == [origin]
    for function in (load, load_or_sample):
        with pytest.raises(DataIntegrityError) as caught:
            function(where)
        assert str(caught.value).startswith(f"polybn.fashion_mnist.load: {places.named}")
        whose = "POLYBN_DATA names this place: " if origin == "POLYBN_DATA" else ""
        assert f"({whose}put the four files of Fashion-MNIST, compressed or not, there again, or use" in str(
            caught.value
        )
        assert caught.value.__cause__ is not None


def test_a_tilde_is_the_home_directory(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "expanduser", lambda path: places.named if str(path) == "~/data" else path)
    places.fill(places.named)
    assert used(find("~/data").used) == ("argument", places.named)


def test_unnamed_places_fall_through(places: Places) -> None:
    places.fill(places.cache, places.debian)
    flip(places.cache / NAMES[2])
    assert used(find().used) == ("user cache", places.cache), "it was not read"
    assert load().source == f"{places.debian} (Debian package)"
    (places.cache / NAMES[2]).unlink()
    assert used(find().used) == ("Debian package", places.debian)
    lacking = f"{places.cache} must hold a file {NAMES[2]} or {NAMES[2][:-3]}; got LICENSE, "
    assert (find().places[0].why_not or "").startswith(lacking)


def test_an_unreadable_place_falls_through(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    places.fill(places.debian)
    is_dir = Path.is_dir

    def refuse(path: Path) -> bool:
        if path == places.cache:
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert load().source == f"{places.debian} (Debian package)"
    assert find().places[0].why_not == (
        f"{places.cache} must be readable; got [Errno 13] Permission denied: '{places.cache}'"
    )


@pytest.mark.parametrize("offline", ["1", "yes"])
def test_when_nothing_can_be_had(offline: str, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    places.fill(places.cache)
    flip(places.cache / NAMES[1])
    monkeypatch.setenv("POLYBN_OFFLINE", offline)
    assert find().used is not None
    with pytest.raises(DataIntegrityError) as caught:
        load()
    text = str(caught.value)
    assert text.startswith("polybn.fashion_mnist.load: a full copy of Fashion-MNIST must be at hand; got none: ")
    assert f"user cache: {places.cache / NAMES[1]} must " in text
    assert f"Debian package: {places.debian} must be a directory; got none" in text
    assert f"download: POLYBN_OFFLINE must be unset or 0; got {offline}" in text
    assert "apt install dataset-fashion-mnist" in text
    assert '"sample"' in text

    data, reason = load_or_sample()
    assert data.source.startswith("sample shipped")
    assert reason == text.removeprefix("polybn.fashion_mnist.load: ")
    assert "\n" not in reason


def test_downloads_can_be_switched_off(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(fashion_mnist, "fill", never)
    with pytest.raises(DataIntegrityError, match="download: download must be True; got False"):
        load(download=False)
    monkeypatch.setenv("POLYBN_OFFLINE", "1")
    with pytest.raises(DataIntegrityError, match="download: POLYBN_OFFLINE must be unset or 0; got 1"):
        load()
    monkeypatch.setenv("POLYBN_OFFLINE", "0")
    with pytest.raises(AssertionError):
        load()


def test_a_mirror_without_https_is_refused(places: Places) -> None:
    with pytest.raises(DataIntegrityError) as caught:
        load()
    for mirror in ("http://127.0.0.1:9/", "http://127.0.0.1:9/second/"):
        url = mirror + NAMES[0]
        assert f"{url} must be served from https:// and nowhere else; got {url}" in str(caught.value)


def test_without_pooch_and_platformdirs_there_is_still_the_rest(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pooch" else find_spec(name))
    assert find().places[-1].why_not == "pooch must be installed; got no such package"
    places.fill(places.debian)
    assert load().source == f"{places.debian} (Debian package)"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert fashion_mnist._cache() == Path.home() / ".cache" / "polybn" / "fashion-mnist"


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is for Linux")
def test_the_cache_is_where_the_user_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fashion_mnist._cache() == tmp_path / "polybn" / "fashion-mnist"


# Downloads, from a server on this machine.


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A server of the subset: its URL, and the requests so far."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path.removeprefix("/"))

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(SAMPLES)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()


def test_a_download_fills_the_cache(
    places: Places, mirror: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = mirror
    monkeypatch.setattr(fashion_mnist, "MIRRORS", (url,))
    monkeypatch.setattr(download, "ALLOWED", url)
    assert used(find().used) == ("download", places.cache)
    assert not places.cache.exists()
    data = load()
    assert data.source == f"{places.cache} (download)"
    assert same(data, load("sample"))
    assert asked == NAMES
    assert load().source == f"{places.cache} (user cache)"
    flip(places.cache / NAMES[3])
    assert load_or_sample()[1] is None
    assert asked == [*NAMES, NAMES[3]], "what is damaged is downloaded again"


LOAD = """
import hashlib, sys
from pathlib import Path
from polybn.lenet import download, editions, fashion_mnist
url, cache = sys.argv[1:]
names = [f"{content.name}.gz" for content in editions.SAMPLE.contents]
files = [(name, (fashion_mnist._SAMPLES / name).read_bytes()) for name in names]
downloads = tuple(download.Wanted(n, len(f), hashlib.sha256(f).hexdigest()) for n, f in files)
fashion_mnist.FULL = editions.SAMPLE._replace(downloads=downloads)
fashion_mnist.MIRRORS, fashion_mnist.DEBIAN = (url,), Path(cache, "nothing")
fashion_mnist._cache = lambda: Path(cache)
download.ALLOWED = url
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    data = fashion_mnist.load()
    print(data.source, int(data.train_images.sum()), int(data.test_images.sum()), flush=True)
"""


def test_processes_that_start_together(places: Places, mirror: tuple[str, list[str]]) -> None:
    """Each process gets the data, whichever downloads; only the four files remain."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", LOAD, mirror[0], str(places.cache)]
    processes = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    data = load("sample")
    numbers = f"{int(data.train_images.sum())} {int(data.test_images.sum())}"
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        first, *others = out.splitlines()
        assert first in (f"{places.cache} (download) {numbers}", f"{places.cache} (user cache) {numbers}")
        assert others == [f"{places.cache} (user cache) {numbers}"] * 4
    assert {path.name for path in places.cache.iterdir()} == set(NAMES)
