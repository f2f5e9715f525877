"""The data: what is in it, where it is looked for, and in which order."""

from __future__ import annotations

import functools
import importlib.util
import os
import runpy
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polybn.lenet import download, fashion_mnist, idx
from polybn.lenet.download import Wanted
from polybn.lenet.errors import DataIntegrityError
from polybn.lenet.fashion_mnist import CLASSES, DEBIAN, FULL, SAMPLE, Dataset, Place, find, load, load_or_sample

SAMPLES = Path(fashion_mnist.__file__).parent / "samples"
NAMES = [file.name for file in FULL.forms[0]]
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


# What is in the data.


def test_the_sample() -> None:
    data = load("sample")
    check(data, 6_000, 1_000)
    assert data.source == "sample shipped with polybn (6,000 + 1,000 images)"
    for labels in (data.train_labels, data.test_labels):
        assert (np.sort(labels.reshape(-1, 10)) == range(10)).all(), "every ten in a row are one of each class"
    assert len(np.unique(data.train_images, axis=0)) > 5_990, "they are images, not copies of a few"


@full_data
def test_the_full_data() -> None:
    """The numbers are public: the labels of everybody's first plot, the mean and deviation of every tutorial."""
    data = load(DEBIAN)
    check(data, 60_000, 10_000)
    assert data.source == f"{DEBIAN} (argument)"
    assert [CLASSES[label] for label in data.train_labels[:4]] == ["Ankle boot", "T-shirt/top", "T-shirt/top", "Dress"]
    assert [CLASSES[label] for label in data.test_labels[:4]] == ["Ankle boot", "Pullover", "Trouser", "Trouser"]
    assert round(float(data.train_images.mean()) / 255, 4) == 0.2860
    assert round(float(data.train_images.std()) / 255, 4) == 0.3530


@full_data
def test_the_sample_is_what_its_recipe_makes_of_the_full_data() -> None:
    recipe = runpy.run_path(str(Path(__file__).with_name("make_sample.py")))
    made = recipe["sample"](load(DEBIAN))
    assert same(made, load("sample"))
    for file, values in zip(SAMPLE.forms[0], (made[0][:, 0], made[1], made[2][:, 0], made[3]), strict=True):
        shipped = (SAMPLES / file.name).read_bytes()
        size = idx.file_size(values.shape)
        # zlib's versions compress differently: the files may differ, what is in them may not.
        assert idx.gunzip(recipe["idx_gzip"](values), size) == idx.gunzip(shipped, size)
        assert shipped[:8] == b"\x1f\x8b\x08\0\0\0\0\0", "no name and no time in the header"


def test_the_sample_comes_with_its_license() -> None:
    text = (SAMPLES / "LICENSE").read_text()
    assert "Copyright (c) 2017 Zalando SE" in text
    assert "permission notice shall be included" in text


@full_data
def test_the_files_as_the_authors_published_them(tmp_path: Path) -> None:
    """They are Debian's with a name and a time in the gzip header; the digests of both are in the table."""
    for name in NAMES:
        time = 0x59A7E9DE if name.startswith("train") else 0x59A7E9F3
        header = struct.pack("<HBBIBB", 0x8B1F, 8, 8, time, 0, 3) + name.removesuffix(".gz").encode() + b"\0"
        (tmp_path / name).write_bytes(header + (DEBIAN / name).read_bytes()[10:])
    assert same(load(tmp_path), load(DEBIAN))
    shutil.copy(DEBIAN / NAMES[1], tmp_path)
    assert find(tmp_path).used is not None, "each file may be in either form"


def test_downloads_are_of_the_files_that_the_mirrors_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' files carry their own names in their headers; Debian's do not, and no mirror has those."""
    asked = []

    def fill(directory: Path, files: tuple[Wanted, ...], mirrors: tuple[str, ...], *, progress: bool) -> None:
        asked.append((directory, [file.size for file in files], mirrors, progress))
        raise DataIntegrityError("no")

    monkeypatch.delenv("POLYBN_DATA", raising=False)
    monkeypatch.delenv("POLYBN_OFFLINE", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(fashion_mnist, "fill", fill)
    with pytest.raises(DataIntegrityError, match="download: no"):
        load(progress=True)
    assert asked == [(tmp_path / "cache", [26_421_880, 29_515, 4_422_102, 5_148], fashion_mnist.MIRRORS, True)]
    for file, nameless in zip(*FULL.forms, strict=True):
        assert file.size - nameless.size == len(file.name.removesuffix(".gz")) + 1
    assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in fashion_mnist.MIRRORS)
    assert download.ALLOWED == "https://"


# Where it is looked for. From here on the subset stands in for the full data, in directories of the test's own.


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
    monkeypatch.setattr(fashion_mnist, "FULL", SAMPLE._replace(forms=(*SAMPLE.forms, *SAMPLE.forms)))
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
        assert f"({whose}copy the four .gz files of Fashion-MNIST there again, or use" in str(caught.value)
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
    assert find().places[0].why_not == f"{places.cache / NAMES[2]} must be a file; got none"


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
    assert f"user cache: {places.cache / NAMES[1]} must have SHA-256" in text
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


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is of Linux")
def test_the_cache_is_where_the_user_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fashion_mnist._cache() == tmp_path / "polybn" / "fashion-mnist"


# Downloads, from a server on this machine.


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A server of the subset: its URL, and what it was asked for."""
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
import sys
from pathlib import Path
from polybn.lenet import download, fashion_mnist
url, cache = sys.argv[1:]
fashion_mnist.FULL = fashion_mnist.SAMPLE._replace(forms=fashion_mnist.SAMPLE.forms * 2)
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
    """Each gets the data, whoever downloads; nothing but the four files is left."""
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
