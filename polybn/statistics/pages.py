"""The pages of an image file, decoded by Pillow to rows of pixels, and no value changed on the way.

A page of a TIFF file and a frame of an animated GIF, PNG or WebP is an image like any other. Some formats keep further
pictures that are none of the data set's: previews, gain maps, layers. Those are not read.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polybn.statistics.parts import Array, LeftOut

BYTES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
"""Pillow's modes whose values are bytes."""
MODES = (*sorted(BYTES - {"1", "P", "PA"}), "I", "F")
"""The modes of ``--mode``: those that are neither indices of a palette nor truth values."""
ONE_PICTURE = frozenset({"MPO", "PSD", "ICNS"})
"""Formats whose further pictures belong to the first: a preview or a gain map, the layers, other sizes."""
ANIMATED = frozenset({"GIF", "PNG", "WEBP"})
"""Formats whose frames are drawn on the ones before, so that nothing after a damaged one is right."""
SUBFILE, BITS = 254, 258
"""TIFF's tags for the role of a page, and for the bits of a value."""
SMALLER_OR_MASK = 0b101
"""The roles of TIFF pages that are no images of their own: a smaller copy of another page, a mask."""


class Page(NamedTuple):
    """An image of the data set."""

    name: str
    pixels: Array
    """Shape ``(pixels, channels)``."""


def pages(path: Path, mode: str | None) -> Iterator[Page | LeftOut]:
    """Yield each page of a file.

    A page that cannot be read, or only with other values, is left out with the reason.
    """
    try:
        with _quiet(), _pillow().open(path) as image:
            number = 1 if image.format in ONE_PICTURE else getattr(image, "n_frames", 1)
            for k in range(number):
                name = f"{path}[{k}]" if number > 1 else f"{path}"
                try:
                    image.seek(k)
                    if not _is_auxiliary(image):
                        yield Page(name, _pixels(image, mode or _natural(image, several=number > 1)))
                except Exception as error:  # a decoder of damaged bytes may raise anything
                    ends = number > 1 and image.format in ANIMATED
                    yield LeftOut(f"{path}[{k}:]" if ends else name, f"{error}")
                    if ends:
                        return
    except ImportError:
        raise
    except Exception as error:  # as above
        yield LeftOut(f"{path}", f"{error}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about unusual metadata, on which no pixel depends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"polybn stats: images need Pillow: {sys.executable} -m pip install pillow") from error
    return Image


def _is_auxiliary(image: Any) -> bool:
    tags = getattr(image, "tag_v2", {})
    return bool(int(tags.get(SUBFILE, 0)) & SMALLER_OR_MASK)


def _natural(image: Any, *, several: bool) -> str:
    """Return the mode that a page has without its palette."""
    if image.format == "GIF" and several:  # whose first page may be grey where later ones have colours
        return "RGB"
    modes: dict[str, str] = {"1": "L", "P": "RGBA" if "transparency" in image.info else "RGB", "PA": "RGBA"}
    return modes.get(image.mode, f"{image.mode}")


def _pixels(image: Any, wanted: str) -> Array:
    if image.mode in BYTES and _stored_bits(image) > 8:
        raise ValueError(
            "its values have more than 8 bits, and Pillow reads images with colours as bytes (save it as .npy with a "
            "reader that keeps them, such as tifffile or OpenCV)"
        )
    image.load()
    if image.format == "GIF" and image.tell() and image.mode == "P":  # every later page has colours, unless:
        raise ValueError("Pillow misreads colours after a grey page (convert the file to PNG or TIFF)")
    pixels = np.asarray(image if image.mode == wanted else _converted(image, wanted))
    return pixels.reshape(-1, pixels.shape[2] if pixels.ndim == 3 else 1)


def _stored_bits(image: Any) -> int:
    """Return how many bits a value has in the file, as far as Pillow tells."""
    stored = getattr(image, "tag_v2", {}).get(BITS)
    if stored is not None:
        return int(np.max(stored))
    words = [word for tile in image.tile for word in np.ravel(np.array(tile[3], object))]
    return 16 if any(";16" in word if isinstance(word, str) else _is_wide(image, word) for word in words) else 8


def _is_wide(image: Any, word: object) -> bool:
    """Return whether the largest value that a PPM file declares is above a byte's."""
    return image.format == "PPM" and isinstance(word, int) and word > 255


def _converted(image: Any, wanted: str) -> Any:
    """Convert between modes; refuse what would cut or round values beyond bytes."""
    if image.mode in BYTES:
        return image.convert(wanted)
    if wanted in BYTES:
        raise ValueError(
            f"its values have more than 8 bits (Pillow's mode {image.mode}), and --mode {wanted} would cut them to "
            "255 (measure such images apart, without --mode)"
        )
    found = image.convert(wanted)
    if not np.array_equal(np.asarray(image), np.asarray(found)):
        raise ValueError(f"--mode {wanted} would change its values (Pillow's mode {image.mode}; leave --mode out)")
    return found
