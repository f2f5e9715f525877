"""The files of Fashion-MNIST: their contents, and how they are read and verified.

Only the contents of a file count. It may be compressed or not, whatever its name says; the digest of its uncompressed
bytes must be that of the tables below, and exactly these bytes are used.

The data set is by Zalando SE, under the MIT license: https://github.com/zalandoresearch/fashion-mnist.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from polybn.atomic import read_whole
from polybn.lenet import idx
from polybn.lenet.download import Wanted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

MIRRORS = (
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/",
)
"""Where the authors publish the four files."""
FOLDERS = ("", "raw", "FashionMNIST/raw")
"""The folders of a directory in which the files may be; the last two are torchvision's."""


class Content(NamedTuple):
    """One of the four files, uncompressed."""

    name: str
    """The name of the uncompressed file; a compressed one ends in ``.gz``."""
    shape: tuple[int, ...]
    """The shape of the array in the file."""
    sha256: str
    """The SHA-256 of the uncompressed bytes."""


class Edition(NamedTuple):
    """A set of images: its four files, and the files to download for them."""

    contents: tuple[Content, ...]
    """Training images, training labels, test images and test labels."""
    downloads: tuple[Wanted, ...] = ()
    """The compressed files that the mirrors serve, in the same order."""


_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _edition(train: int, test: int, digests: tuple[str, ...], downloads: tuple[Wanted, ...] = ()) -> Edition:
    shapes: tuple[tuple[int, ...], ...] = ((train, 28, 28), (train,), (test, 28, 28), (test,))
    return Edition(tuple(map(Content, _NAMES, shapes, digests)), downloads)


FULL = _edition(
    60_000,
    10_000,
    (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    (
        Wanted(f"{_NAMES[0]}.gz", 26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        Wanted(f"{_NAMES[1]}.gz", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        Wanted(f"{_NAMES[2]}.gz", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        Wanted(f"{_NAMES[3]}.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
)
"""All images."""
SAMPLE = _edition(
    6_000,
    1_000,
    (
        "1706aee5a4f426e970493a5d8e69dbab00d3e028d960d099774edaccbefe92ee",
        "a4beb889b246ec0128748419e2c2e9f0a6ca9c25425a9e4a044ae19655e3291f",
        "9af414b776608423a3263055ee12d6c36bc75df00361db6e1942c710df916cac",
        "4376615803ebce14db83fb350811985d2e7b3ebeae2fba7e58fcf3b4bdc0fdef",
    ),
)
"""The subset in ``samples/``."""


def why_not(directory: Path, edition: Edition) -> str | None:
    """Return what a directory lacks, or None; files are not read."""
    if not directory.is_dir():
        return f"{directory} must be a directory; got {'something else' if directory.exists() else 'none'}"
    for content in edition.contents:
        if next(_files(directory, content), None) is None:
            names = sorted(path.name for path in directory.iterdir())
            there = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "an empty directory"
            return f"{directory} must hold a file {content.name}.gz or {content.name}; got {there}"
    return None


def read(directory: Path, edition: Edition) -> list[NDArray[np.uint8]]:
    """Read and verify the four arrays, each from the first file that holds the right bytes.

    If no file does, the error is that of the first one.
    """
    return [_first(directory, content) for content in edition.contents]


def _files(directory: Path, content: Content) -> Iterator[Path]:
    for folder in FOLDERS:
        for name in (f"{content.name}.gz", content.name):
            path = directory / folder / name
            if path.is_file():
                yield path


def _first(directory: Path, content: Content) -> NDArray[np.uint8]:
    faults: list[Exception] = []
    for path in _files(directory, content):
        try:
            return _array(path, content)
        except (idx.DamagedError, OSError) as error:
            faults.append(error)
    raise faults[0] if faults else idx.DamagedError(f"{directory} must hold a file {content.name}; got none")


def _array(path: Path, content: Content) -> NDArray[np.uint8]:
    size = idx.file_size(content.shape)
    # gzip adds five bytes to each block that it cannot compress, and a header that may hold a name.
    data = read_whole(path, size + size // 1000 + 2**16)
    try:
        plain = idx.gunzip(data, size) if data.startswith(b"\x1f\x8b") else data
        digest = hashlib.sha256(plain).hexdigest()
        if digest != content.sha256:
            what = f"{len(plain):,} bytes that begin with {plain[:15]!r}"
            raise idx.DamagedError(f"hold IDX data with SHA-256 {content.sha256}; got {digest} ({what})")
        return idx.parse(plain, content.shape)
    except idx.DamagedError as error:
        raise idx.DamagedError(f"{path} must {error}") from error
