"""Find, download, verify and read Fashion-MNIST: 70,000 grey pictures of clothes, 28 by 28, in ten classes.

The four compressed files are what is kept, and their size and SHA-256 are checked whenever they are read. Each is read
once: the bytes that were digested are the bytes that are decompressed and parsed. Nothing extracted is kept, because
an IDX file carries no digest, and a damaged one could not be told from a good one.

The data set is by Zalando SE, under the MIT license: https://github.com/zalandoresearch/fashion-mnist.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from polybn.lenet import idx
from polybn.lenet.download import Wanted, fill
from polybn.lenet.errors import DataIntegrityError

if TYPE_CHECKING:
    from numpy.typing import NDArray

StrPath: TypeAlias = "str | os.PathLike[str]"

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
"""The name of each label."""

MIRRORS = (
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/",
)
"""Where the authors publish the four files."""

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts them."""


class Edition(NamedTuple):
    """A number of images, and the compressed forms in which its four files are known."""

    train: int
    test: int
    forms: tuple[tuple[Wanted, Wanted, Wanted, Wanted], ...]


# As the authors published them.
_ORIGINAL = (
    Wanted("train-images-idx3-ubyte.gz", 26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    Wanted("train-labels-idx1-ubyte.gz", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    Wanted("t10k-images-idx3-ubyte.gz", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    Wanted("t10k-labels-idx1-ubyte.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
)
# The same, but for the name and the time in each gzip header, which Debian leaves out.
_NAMELESS = (
    Wanted("train-images-idx3-ubyte.gz", 26421856, "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"),
    Wanted("train-labels-idx1-ubyte.gz", 29491, "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"),
    Wanted("t10k-images-idx3-ubyte.gz", 4422079, "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"),
    Wanted("t10k-labels-idx1-ubyte.gz", 5125, "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"),
)
# The subset in samples/.
_SHIPPED = (
    Wanted("train-images-idx3-ubyte.gz", 2616857, "664e7362077f51083cae06208ddd1b5cf3ede4e9b1c58992ee53de72fbeda079"),
    Wanted("train-labels-idx1-ubyte.gz", 1249, "185248d5f6c470752739a0530e2f46f387b8279aadd0fb88e108c6a2eb713598"),
    Wanted("t10k-images-idx3-ubyte.gz", 436199, "2b7561fce5cd61e799af3b41cfaf77f59b6a2445f3ea64f0e18946247ca4914e"),
    Wanted("t10k-labels-idx1-ubyte.gz", 302, "14966e46876b2273499ed9b3c897315fbc4b9a1f6c60d4c23527adadd6a5a667"),
)

FULL = Edition(60_000, 10_000, (_ORIGINAL, _NAMELESS))
SAMPLE = Edition(6_000, 1_000, (_SHIPPED,))

_SAMPLES = Path(__file__).parent / "samples"
_SUBSET = "sample"
_LOAD = "polybn.fashion_mnist.load: "


class Dataset(NamedTuple):
    """Images and labels, as host arrays that cannot be written to."""

    train_images: NDArray[np.uint8]
    """Shape ``(N, 1, 28, 28)``; 0 is the background."""
    train_labels: NDArray[np.uint8]
    """Shape ``(N,)``; indices into :data:`CLASSES`."""
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    source: str
    """Where they were read from, in words."""


class Place(NamedTuple):
    """A place where the data may be."""

    origin: str
    """Who named it: ``"argument"``, ``"POLYBN_DATA"``, ``"user cache"``, ``"Debian package"`` or ``"download"``."""
    directory: Path
    edition: Edition
    why_not: str | None
    """None if it can be used, as far as can be told without reading the files; else what must change there."""


class Location(NamedTuple):
    """The places that were looked at, in order, and the first of them that can be used."""

    used: Place | None
    places: tuple[Place, ...]


def find(where: StrPath | None = None, *, download: bool = True) -> Location:
    """Tell which source :func:`load` would use, without reading the data.

    Parameters
    ----------
    where, download
        As for :func:`load`.

    Returns
    -------
    Location
        Every place, and why it cannot be used or None. A place that was named is the only one.

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
        A directory that holds the four ``.gz`` files, or the word ``"sample"`` for the subset of 6,000 training and
        1,000 test images that comes with PolyBN. If it is None, the environment variable ``POLYBN_DATA`` may name
        either. Else the files are looked for in the user's cache and where Debian's package
        ``dataset-fashion-mnist`` puts them, and at last they are downloaded into the user's cache.
    download : bool
        Whether they may be downloaded. The environment variable ``POLYBN_OFFLINE=1`` forbids it, too.
    progress : bool
        Show the progress of a download on standard error.

    Returns
    -------
    Dataset
        Images ``(N, 1, 28, 28)`` and labels ``(N,)``, uint8.

    Raises
    ------
    DataIntegrityError
        If the place that was named lacks the files or holds damaged ones, or if none was named and none serves.
        The text names the file, what it must be, what it is, and how to repair that.

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
    """Read Fashion-MNIST, or the subset that comes with PolyBN if no place was named and no full copy can be had.

    Parameters
    ----------
    where, download, progress
        As for :func:`load`.

    Returns
    -------
    data : Dataset
        What was read.
    reason : str or None
        In one line, why it is the subset, though nobody asked for that; else None.

    Raises
    ------
    DataIntegrityError
        If a place was named, and it lacks the files or holds damaged ones.

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
    return (_place(origin, Path(where).expanduser(), FULL),)


def _usual(download: bool) -> tuple[Place, ...]:
    cache = _cache()
    return (
        _place("user cache", cache, FULL),
        _place("Debian package", DEBIAN, FULL),
        Place("download", cache, FULL, _why_no_download(download)),
    )


def _cache() -> Path:
    try:
        from platformdirs import user_cache_path
    except ImportError:
        return Path.home() / ".cache" / "polybn" / "fashion-mnist"
    return user_cache_path("polybn") / "fashion-mnist"


def _why_no_download(download: bool) -> str | None:
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
        why_not = _why_not(directory, edition)
    except OSError as error:
        why_not = f"{directory} must be readable; got {error}"
    return Place(origin, directory, edition, why_not)


def _why_not(directory: Path, edition: Edition) -> str | None:
    if not directory.is_dir():
        return f"{directory} must be a directory; got {'something else' if directory.exists() else 'none'}"
    for forms in zip(*edition.forms, strict=True):
        path = directory / forms[0].name
        if not path.is_file():
            return f"{path} must be a file; got {'something else' if path.exists() else 'none'}"
        size = path.stat().st_size
        if size not in {form.size for form in forms}:
            sizes = " or ".join(f"{form.size:,}" for form in forms)
            return f"{path} must have {sizes} bytes; got {size:,}{_beginning(path)}"
    return None


def _beginning(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(15)
    return "" if start.startswith(b"\x1f\x8b") else f" that begin with {start!r}, as no gzip file does"


def _read(place: Place, *, progress: bool) -> Dataset:
    if place.why_not is not None:
        raise idx.DamagedError(place.why_not)
    if place.origin == "download":
        fill(place.directory, place.edition.forms[0], MIRRORS, progress=progress)
    train, test = place.edition.train, place.edition.test
    shapes = ((train, 28, 28), (train,), (test, 28, 28), (test,))
    four = zip(zip(*place.edition.forms, strict=True), shapes, strict=True)
    images, labels, test_images, test_labels = (_array(place.directory, forms, shape) for forms, shape in four)
    return Dataset(images[:, None], labels, test_images[:, None], test_labels, _describe(place))


def _array(directory: Path, forms: tuple[Wanted, ...], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    path = directory / forms[0].name
    with path.open("rb") as stream:
        data = stream.read(max(form.size for form in forms) + 1)
    digest = hashlib.sha256(data).hexdigest()
    if digest not in {form.sha256 for form in forms}:
        raise idx.DamagedError(f"{path} must have SHA-256 {' or '.join(form.sha256 for form in forms)}; got {digest}")
    try:
        values = idx.parse(idx.gunzip(data, idx.file_size(shape)), shape)
        if values.ndim == 1:
            _check_labels(values)
    except idx.DamagedError as error:
        raise idx.DamagedError(f"{path} must {error}") from error
    return values


def _check_labels(labels: NDArray[np.uint8]) -> None:
    counts = np.bincount(labels, minlength=len(CLASSES)).tolist()
    if len(counts) > len(CLASSES):
        raise idx.DamagedError(f"hold labels from 0 to {len(CLASSES) - 1}; got {labels.max()}")
    if len(set(counts)) > 1:
        raise idx.DamagedError(f"hold each label {len(labels) // len(CLASSES):,} times; got {counts}")


def _describe(place: Place) -> str:
    if place.edition is SAMPLE:
        return f"sample shipped with polybn ({SAMPLE.train:,} + {SAMPLE.test:,} images)"
    return f"{place.directory} ({place.origin})"


def _explain(places: tuple[Place, ...], faults: list[Exception]) -> str:
    subset = f'or use the subset that comes with polybn, "{_SUBSET}"'
    if places[0].edition is SAMPLE:
        return f"{faults[0]} (install polybn again)"
    if len(places) == 1:
        whose = "POLYBN_DATA names this place: " if places[0].origin == "POLYBN_DATA" else ""
        return f"{faults[0]} ({whose}copy the four .gz files of Fashion-MNIST there again, {subset})"
    reasons = "; ".join(f"{place.origin}: {fault}" for place, fault in zip(places, faults, strict=True))
    return (
        f"a full copy of Fashion-MNIST must be at hand; got none: {reasons} "
        f"(apt install dataset-fashion-mnist, or name a directory that holds the four .gz files, {subset})"
    )
