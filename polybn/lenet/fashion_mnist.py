"""Find, download and load Fashion-MNIST: 70,000 grey pictures of clothes, 28 by 28, in ten classes.

Every byte is verified each time the data is loaded; :mod:`polybn.lenet.editions` says how.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from polybn.lenet import editions, idx
from polybn.lenet.download import fill
from polybn.lenet.editions import FULL, MIRRORS, SAMPLE, Edition
from polybn.lenet.errors import DataIntegrityError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

StrPath: TypeAlias = "str | os.PathLike[str]"

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
"""The name of each label."""

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the files."""

_SAMPLES = Path(__file__).parent / "samples"
_SUBSET = "sample"
_LOAD = "polybn.fashion_mnist.load: "
_FILES = "the four files of Fashion-MNIST, compressed or not"


class Dataset(NamedTuple):
    """Images and labels, as host arrays that cannot be written to."""

    train_images: NDArray[np.uint8]
    """Shape ``(N, 1, 28, 28)``; 0 is the background."""
    train_labels: NDArray[np.uint8]
    """Shape ``(N,)``; indices into :data:`CLASSES`."""
    test_images: NDArray[np.uint8]
    """Shape ``(N, 1, 28, 28)``, like the training images."""
    test_labels: NDArray[np.uint8]
    """Shape ``(N,)``, like the training labels."""
    source: str
    """The place that the images were read from, in words."""
    where: str | None = None
    """The place to read the same images from again: a directory or ``"sample"``; None if no place was named."""


class Place(NamedTuple):
    """A place where the data may be."""

    origin: str
    """Where the name of the place comes from: ``"argument"``, ``"POLYBN_DATA"``, ``"user cache"``, ``"Debian package"``
    or ``"download"``."""
    directory: Path
    """The directory where the files are, or where a download would put them."""
    edition: Edition
    """The expected files: all images, or the subset."""
    why_not: str | None
    """Why the place cannot be used, or None; files are not read to find out."""


class Location(NamedTuple):
    """The places where the data may be, and the first one that can be used."""

    used: Place | None
    """The first place that can be used."""
    places: tuple[Place, ...]
    """All places, in the order in which they are tried."""


def find(where: StrPath | None = None, *, download: bool = True) -> Location:
    """Return which place :func:`load` would use, without reading the data.

    Parameters
    ----------
    where, download
        As for :func:`load`.

    Returns
    -------
    Location
        Every place, and why it cannot be used. If a place was named, it is the only one.

    Examples
    --------
    >>> find("sample").used.origin
    'argument'
    """
    places = _named(where) or _usual(download)
    return Location(next((place for place in places if place.why_not is None), None), places)


def load(where: StrPath | None = None, *, download: bool = True, progress: bool = False) -> Dataset:
    """Read Fashion-MNIST, verified.

    Parameters
    ----------
    where : path, optional
        A directory with the four files, compressed or not, also in torchvision's folder ``raw``; or the word
        ``"sample"`` for the subset of 6,000 training and 1,000 test images that comes with PolyBN. If it is None, the
        environment variable ``POLYBN_DATA`` may name either of these. Otherwise the files are read from the user's
        cache or from Debian's package ``dataset-fashion-mnist``, or are downloaded into the user's cache.
    download : bool
        Whether they may be downloaded. The environment variable ``POLYBN_OFFLINE=1`` forbids it, too.
    progress : bool
        Whether the progress of a download is shown on standard error.

    Returns
    -------
    Dataset
        Images ``(N, 1, 28, 28)`` and labels ``(N,)``, uint8.

    Raises
    ------
    DataIntegrityError
        If the named place lacks the files or holds damaged ones, or if no place is named and no usual one can be used.
        The message names the file, what it must hold, what it holds, and how to repair that.

    Examples
    --------
    >>> data = load("sample")
    >>> data.train_images.shape, CLASSES[data.train_labels[0]]
    ((6000, 1, 28, 28), 'Ankle boot')
    """
    places = find(where, download=download).places
    faults: list[Exception] = []
    for place in places:
        try:
            return _read(place, progress=progress)
        except (idx.DamagedError, OSError) as error:
            faults.append(error)
    raise DataIntegrityError(_LOAD + _explain(places, faults)) from faults[-1]


def load_or_sample(
    where: StrPath | None = None, *, download: bool = True, progress: bool = False
) -> tuple[Dataset, str | None]:
    """Read Fashion-MNIST, or the subset that comes with PolyBN if no place is named and no full copy is available.

    Parameters
    ----------
    where, download, progress
        As for :func:`load`.

    Returns
    -------
    data : Dataset
        The images and labels.
    reason : str or None
        Why the subset was read although it was not asked for, in one line; else None.

    Raises
    ------
    DataIntegrityError
        If the named place lacks the files or holds damaged ones.

    Examples
    --------
    >>> data, reason = load_or_sample("sample")
    >>> reason is None
    True
    """
    try:
        return load(where, download=download, progress=progress), None
    except DataIntegrityError as error:
        if _named(where):
            raise
        return load(_SUBSET), str(error).removeprefix(_LOAD)


def _named(where: StrPath | None) -> tuple[Place, ...]:
    origin = "argument"
    if where is None:
        where, origin = os.environ.get("POLYBN_DATA") or None, "POLYBN_DATA"
    if where is None:
        return ()
    if where == _SUBSET:
        return (_place(origin, _SAMPLES, SAMPLE),)
    try:
        directory = Path(where).expanduser()
    except RuntimeError:
        why_not = f"{where} must be a directory; got the home directory of a user who is not known here"
        return (Place(origin, Path(where), FULL, why_not),)
    return (_place(origin, directory, FULL),)


def _usual(download: bool) -> tuple[Place, ...]:
    cache = _cache()
    return (
        _place("user cache", cache, FULL),
        _place("Debian package", DEBIAN, FULL),
        Place("download", cache, FULL, _why_no_download(download, cache)),
    )


def _cache() -> Path:
    try:
        from platformdirs import user_cache_path
    except ImportError:
        # Path.expanduser would raise if no home directory is known.
        return Path(os.path.expanduser("~/.cache/polybn/fashion-mnist"))  # noqa: PTH111
    return user_cache_path("polybn") / "fashion-mnist"


def _why_no_download(download: bool, cache: Path) -> str | None:
    if not cache.is_absolute():
        return f"HOME must name your home directory; got none, so that the cache would be {cache}"
    offline = os.environ.get("POLYBN_OFFLINE", "")
    if offline not in ("", "0"):
        return f"POLYBN_OFFLINE must be unset or 0; got {offline}"
    if not download:
        return "download must be True; got False"
    if importlib.util.find_spec("pooch") is None:
        return "pooch must be installed; got no such package"
    return None


def _place(origin: str, directory: Path, edition: Edition) -> Place:
    try:
        why_not = editions.why_not(directory, edition)
    except OSError as error:
        why_not = f"{directory} must be readable; got {error}"
    return Place(origin, directory, edition, why_not)


def _read(place: Place, *, progress: bool) -> Dataset:
    if place.why_not is not None:
        raise idx.DamagedError(place.why_not)
    if place.origin == "download":
        fill(place.directory, place.edition.downloads, MIRRORS, progress=progress)
    images, labels, test_images, test_labels = editions.read(place.directory, place.edition)
    return Dataset(images[:, None], labels, test_images[:, None], test_labels, _describe(place), _where(place))


def _where(place: Place) -> str | None:
    if place.edition is SAMPLE:
        return _SUBSET
    return str(place.directory.absolute()) if place.origin in ("argument", "POLYBN_DATA") else None


def _describe(place: Place) -> str:
    if place.edition is SAMPLE:
        train, test = (place.edition.contents[index].shape[0] for index in (1, 3))
        return f"sample shipped with polybn ({train:,} + {test:,} images)"
    return f"{place.directory} ({place.origin})"


def _explain(places: tuple[Place, ...], faults: list[Exception]) -> str:
    subset = f'or use the subset that comes with polybn, "{_SUBSET}"'
    if places[0].edition is SAMPLE:
        return f"{faults[0]} (install polybn again)"
    if len(places) == 1:
        whose = "POLYBN_DATA names this place: " if places[0].origin == "POLYBN_DATA" else ""
        return f"{faults[0]} ({whose}put {_FILES}, there again, {subset})"
    reasons = "; ".join(f"{place.origin}: {fault}" for place, fault in zip(places, faults, strict=True))
    return (
        f"a full copy of Fashion-MNIST must be at hand; got none: {reasons} "
        f"(apt install dataset-fashion-mnist, or name a directory that holds {_FILES}, {subset})"
    )
