"""``polybn stats``: exact numbers from every kind of data set and any parts; one sentence for each bad file."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.image import imread

from polybn import Statistics
from polybn.statistics import arrays, images, measure, parts, zarr_stores
from polybn.statistics.histogram import Histogram
from polybn.statistics.parts import Part
from tests.support.command import Polybn, Said

Array = np.ndarray[Any, Any]
Image: Any = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

RNG = np.random.default_rng(11)
IMAGES = RNG.integers(0, 256, (61, 13, 7, 3), np.uint8)  # channels last
IMAGES[..., 2] //= 17
GREY = RNG.integers(-3000, 3000, (61, 13, 7), np.int16)
DEEP = GREY[0].astype(np.uint16)
FLOATS = (1e6 + RNG.normal(0, 1, (61, 3, 5))).astype(np.float32)


Stats = Polybn


@pytest.fixture
def stats(polybn_: Polybn) -> Stats:
    """Run ``polybn stats`` in an empty directory."""
    return partial(polybn_, "stats")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut everything into blocks of a kilobyte."""
    for module in (parts, arrays, images, zarr_stores):
        monkeypatch.setattr(module, "LIMIT", 1 << 10)
    monkeypatch.setattr(images, "GROUP", 5)


def exact(channels: list[Array]) -> dict[str, list[float]]:
    """Return the expected result from integer arithmetic: floats are integers in units of ``2^-20``."""
    found: dict[str, list[float]] = {name: [] for name in ("count", "mean", "std", "min", "max")}
    for channel in channels:
        unit = 1 if channel.dtype.kind in "iu" else 2**20
        values = [int(v * unit) for v in channel.ravel().tolist()]
        n, s, q = len(values), sum(values), sum(v * v for v in values)
        numbers = (n, s / (n * unit), ((q * n - s * s) / (n * unit) ** 2) ** 0.5, channel.min(), channel.max())
        for name, number in zip(found, numbers, strict=True):
            found[name].append(float(number))
    return found


def assert_exact(numbers: dict[str, Any], channels: list[Array]) -> None:
    for name, right in exact(channels).items():
        np.testing.assert_allclose(numbers[name], right, rtol=1e-15, atol=0, err_msg=name)


def of(array: Array, axis: int | None) -> list[Array]:
    return [array] if axis is None else list(np.moveaxis(array, axis, 0))


def idx(array: Array) -> bytes:
    code = {"uint8": 8, "int16": 11, "float32": 13}[array.dtype.name]
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def packed(kind: str, *arrays: Array, **named: Array) -> bytes:
    data = io.BytesIO()
    write: dict[str, Any] = {"npy": np.save, "npz": np.savez, "npzc": np.savez_compressed}
    write[kind](data, *arrays, **named)
    return data.getvalue()


def written(kind: str, *arrays: Array, **named: Array) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(packed(kind, *arrays, **named))


def make_folder(path: Path) -> None:
    (path / "deeper").mkdir(parents=True)
    for k, image in enumerate(IMAGES):
        Image.fromarray(image).save(path / ("deeper" if k % 3 else "") / f"{k}.png")
    (path / "labels.csv").write_text("no image")
    (path / ".hidden.png").write_text("no image")


def make_store(path: Path, *, group: bool, format: int) -> None:
    zarr = pytest.importorskip("zarr", reason="Zarr is not installed")
    options = {"shape": IMAGES.shape, "chunks": (16, 5, 7, 1), "dtype": "u1"}
    if group:
        zarr.create_group(path, zarr_format=format).create_array("images", **options)[:] = IMAGES
    else:
        zarr.create_array(path, zarr_format=format, **options)[:] = IMAGES


CASES: dict[str, tuple[Callable[[Path], object], list[str], list[Array]]] = {
    "folder": (make_folder, [], of(IMAGES, -1)),
    "npy": (written("npy", IMAGES), ["--axis", "-1"], of(IMAGES, -1)),
    "npy, channels second": (written("npy", FLOATS), ["--axis", "1"], of(FLOATS, 1)),
    "npy, Fortran order": (written("npy", np.asfortranarray(FLOATS)), ["--axis", "1"], of(FLOATS, 1)),
    "npy, channels first": (written("npy", FLOATS.T), ["--axis", "0"], of(FLOATS.T, 0)),
    "npy, big-endian": (written("npy", GREY.astype(">i2")), ["--axis", "none"], [GREY]),
    "npy, rank 2": (written("npy", GREY[0]), [], of(GREY[0], 1)),
    "npy, rank 1": (written("npy", GREY[0, 0]), [], [GREY[0, 0]]),
    "npz": (written("npz", x=IMAGES), ["--axis", "-1"], of(IMAGES, -1)),
    "npz, one of two": (written("npzc", a=GREY, x=IMAGES), ["--axis", "-1", "--array", "x"], of(IMAGES, -1)),
    "npz, Fortran order": (written("npzc", np.asfortranarray(FLOATS)), ["--axis", "1"], of(FLOATS, 1)),
    "npz, channels first": (written("npz", FLOATS.T.copy()), ["--axis", "0"], of(FLOATS.T, 0)),
    "idx": (lambda path: path.write_bytes(idx(GREY)), [], [GREY]),
    "idx of floats": (lambda path: path.write_bytes(idx(FLOATS)), ["--axis", "1"], of(FLOATS, 1)),
    "idx.gz": (lambda path: path.write_bytes(gzip.compress(idx(IMAGES[..., 0]))), [], [IMAGES[..., 0]]),
    "zarr 3": (partial(make_store, group=False, format=3), ["--axis", "-1"], of(IMAGES, -1)),
    "zarr 2": (partial(make_store, group=False, format=2), ["--axis", "3"], of(IMAGES, -1)),
    "zarr group": (partial(make_store, group=True, format=3), ["--axis", "-1"], of(IMAGES, -1)),
    "image": (lambda path: Image.fromarray(IMAGES[0]).save(path, "png"), [], of(IMAGES[0], -1)),
    "image of 16 bits": (lambda path: Image.fromarray(DEEP).save(path, "png"), [], [DEEP]),
}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("case", CASES)
def test_small_parts_give_the_exact_numbers(stats: Stats, case: str, tmp_path: Path) -> None:
    make, options, channels = CASES[case]
    make(tmp_path / "data")
    said = stats("data", *options, "--json", "-")
    assert (said.code, said.err) == (0, "")
    numbers = json.loads(said.out)
    assert_exact(numbers, channels)
    assert numbers["left_out"] == []


@pytest.mark.parametrize("case", ["folder", "npy", "zarr 3", "idx.gz"])
def test_workers_change_no_digit(stats: Stats, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes read the parts, which are merged in the same order."""
    make, options, channels = CASES[case]
    make(tmp_path / "data")
    monkeypatch.setattr(parts, "LIMIT", 1 << 12)
    monkeypatch.setattr(zarr_stores, "LIMIT", 1 << 12)
    monkeypatch.setattr(images, "GROUP", 16)
    alone, shared = (stats("data", *options, "--json", "-", "--workers", n) for n in (0, 2))
    assert alone == shared
    assert_exact(json.loads(alone.out), channels)


def test_what_is_printed_written_drawn_and_saved(stats: Stats, tmp_path: Path) -> None:
    np.save("bytes.npy", IMAGES)
    outputs = ("--picture", "h.png", "--json", "numbers.json", "--save", "all.npz")
    said = stats("bytes.npy", "--axis", "-1", "--scale", 255, "--unbiased", *outputs)
    assert said.code == 0
    assert said.out.split()[:6] == ["channel", "mean", "std", "min", "max", "count"]
    assert said.out.splitlines()[1].split()[-1] == "5,551"
    assert said.err == "Histograms drawn in h.png\nSaved in all.npz, before --scale\n"
    numbers = json.loads(Path("numbers.json").read_text())
    right = exact(of(IMAGES, -1))
    for name, factor in (("mean", 255), ("std", 255 * (5550 / 5551) ** 0.5), ("min", 255), ("max", 255), ("count", 1)):
        np.testing.assert_allclose(np.array(numbers[name]) * factor, right[name], rtol=1e-14)
    assert (numbers["scale"], numbers["unbiased"]) == (255, True)
    assert imread("h.png").shape[2] == 4
    saved = Statistics.load("all.npz")
    assert saved.mean.tolist() == right["mean"]


@pytest.mark.parametrize("width", [10, 40, 200])
def test_no_width_cuts_a_number(stats: Stats, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", f"{width}")
    np.save("x.npy", np.array([[-1.99349702e122], [1.23456789e-122]]) * np.ones(12))
    lines = stats("x.npy").out.splitlines()
    assert len(lines) == 13
    assert lines[12].split() == ["11", "-9.9674851e+121", "9.9674851e+121", "-1.99349702e+122", "1.23456789e-122", "2"]


def test_what_is_no_number_makes_its_channel_none(stats: Stats) -> None:
    """NaN is shown as such, and is null in JSON; the other channel has its numbers."""
    np.save("x.npy", np.array([[1.0, np.nan], [3.0, 2.0]]))
    said = stats("x.npy", "--json", "numbers.json")
    assert said.out.splitlines()[2].split() == ["1", "nan", "nan", "nan", "nan", "2"]
    assert said.code == 0
    assert said.err.startswith("NaN or infinity among the values in 1 file, first in x.npy; means of ")
    numbers = json.loads(Path("numbers.json").read_text())
    assert (numbers["mean"], numbers["std"], numbers["max"]) == ([2, None], [1, None], [3, None])


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("workers", [0, 2])
def test_files_with_values_that_are_not_finite_are_counted(stats: Stats, workers: int) -> None:
    """Each file once, whatever its parts, and images, streams and stores like arrays."""
    Path("data").mkdir()
    bad = np.full((999, 2), np.inf, np.float32)
    np.save("data/a.npy", np.ones((9, 2)))
    np.save("data/b.npy", bad)
    np.savez("data/c.npz", bad)
    said = stats("data", "--workers", workers)
    assert said.code == 0
    assert "values in 2 files, first in data/b.npy; " in said.err
    Path("images").mkdir()
    for name, value in (("a", 1), ("b", np.nan), ("c", np.nan)):
        Image.fromarray(np.full((3, 3), value, np.float32)).save(f"images/{name}.tif")
    assert "values in 2 files, first in images/b.tif; " in stats("images").err
    zarr = pytest.importorskip("zarr", reason="Zarr is not installed")
    zarr.create_array("store", shape=bad.shape, chunks=(9, 2), dtype="f4")[:] = bad
    assert "values in 1 file, first in store; " in stats("store").err


@pytest.mark.usefixtures("small_parts")
def test_the_histogram_is_that_of_all_parts(tmp_path: Path) -> None:
    make_folder(tmp_path / "photos")
    found = measure.measure(measure.parts_of(tmp_path / "photos", parts.Layout(), None), histogram=True).histogram
    assert (found.exponent, found.first) == (0, 0)
    for counts, channel in zip(found.counts, of(IMAGES, -1), strict=True):
        assert counts.tolist() == np.bincount(channel.ravel(), minlength=256).tolist()


def test_saved_statistics_go_on(stats: Stats) -> None:
    np.save("a.npy", IMAGES[:20])
    np.save("b.npy", IMAGES[20:])
    assert stats("a.npy", "--axis", "-1", "--save", "a.npz").code == 0
    said = stats("b.npy", "--axis", "-1", "--from", "a.npz", "--save", "all.npz", "--json", "-")
    assert (said.code, said.err) == (0, "Saved in all.npz, before --scale\n")
    assert_exact(json.loads(said.out), of(IMAGES, -1))
    assert Statistics.load("all.npz").count.tolist() == [IMAGES[..., 0].size] * 3


def test_a_saved_file_has_the_axis_of_the_arrays(stats: Stats) -> None:
    np.save("x.npy", FLOATS)
    assert stats("x.npy", "--axis", 1, "--save", "x.npz").code == 0
    again = Statistics.load("x.npz")
    again.update(FLOATS)
    assert (again.axis, again.count.tolist()) == (1, [2 * 61 * 5] * 3)


def test_statistics_that_do_not_fit_are_refused(stats: Stats) -> None:
    np.save("x.npy", IMAGES)
    np.save("grey.npy", GREY)
    stats("x.npy", "--axis", "-1", "--save", "x.npz")
    before = Path("x.npz").read_bytes()
    bare = Statistics(axis=-1, extremes=False)
    bare.update(IMAGES)
    bare.save("bare.npz")
    go_on = ("--from", "x.npz")
    refused(stats("x.npy", "--axis", 1, *go_on), "--axis must be that of --from, -1; got 1 (")
    refused(stats("grey.npy", "--axis", "none", *go_on), "a data set must have values that can be read; got none (grey")
    refused(stats("x.npy", "--axis", -1, "--from", "bare.npz"), "--from must name statistics with smallest and largest")
    refused(
        stats("x.npy", "--axis", -1, "--from", "x.npy"), "path must name a file that save has written; got x.npy (it"
    )
    refused(stats("x.npy", "--axis", -1, *go_on, "--picture", "h.png"), "--picture must be left out with --from")
    refused(stats("x.npy", "--axis", -1, *go_on, "--save", "x.npz"), "--save must be another file than those that are")
    assert Path("x.npz").read_bytes() == before


def test_a_file_of_statistics_is_no_data(stats: Stats) -> None:
    np.save("x.npy", IMAGES)
    stats("x.npy", "--axis", "-1", "--save", "x.npz")
    refused(
        stats("x.npz"), "x.npz must be a file of data; it has statistics that --save or polybn.Statistics.save wrote"
    )
    said = stats("x.npy", "x.npz", "--axis", "-1")
    assert (said.code, said.err.startswith("Left out: x.npz: must be a file of data; it has statistics")) == (1, True)
    assert stats("x.npz", "--array", "mean").code == 0


def test_an_interruption_says_that_nothing_was_saved(stats: Stats, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("x.npy", IMAGES)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", interrupt)
    said = stats("x.npy", "--axis", "-1", "--save", "x.npz")
    assert said.code not in (0, 2)
    assert said.err.startswith("Interrupted: nothing was saved, and x.npz not made\n")
    assert not Path("x.npz").exists()


def test_idx_files_of_a_folder_are_read_and_labels_are_not(stats: Stats) -> None:
    Path("data").mkdir()
    Path("data/train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[:20, ..., 0])))
    Path("data/t10k-images.idx3-ubyte").write_bytes(idx(IMAGES[20:, ..., 0]))
    Path("data/train-labels-idx1-ubyte").write_bytes(idx(np.full(20, 9, np.uint8)))
    said = stats("data", "--json", "-")
    assert (said.code, said.err) == (0, "")
    assert_exact(json.loads(said.out), [IMAGES[..., 0]])
    Path("data/cut-images-idx3-ubyte").write_bytes(idx(GREY)[:-3])
    said = stats("data")
    assert (said.code, said.err.split(": ")[1]) == (1, "data/cut-images-idx3-ubyte")


def test_several_paths_are_one_data_set(stats: Stats) -> None:
    np.save("a.npy", IMAGES[:20])
    np.savez("b.npz", IMAGES[20:])
    numbers = json.loads(stats("a.npy", "b.npz", "--axis", "-1", "--json", "-").out)
    assert_exact(numbers, of(IMAGES, -1))


# Images.


def test_images_of_other_channels_and_damaged_ones_are_left_out(stats: Stats, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    make_folder(folder)
    Image.fromarray(IMAGES[0, ..., 0]).save(folder / "grey.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:90])
    (folder / "text.jpg").write_text("no image")
    for workers in (0, 2):
        said = stats("photos", "--json", "numbers.json", "--workers", workers)
        assert said.code == 1
        left = [line.split(": ")[1] for line in said.err.splitlines()]
        assert left == ["photos/cut.png", "photos/grey.png", "photos/text.jpg"]
        assert "it has 1 channels, the first image 3 (--mode RGB brings all to three)" in said.err
        numbers = json.loads(Path("numbers.json").read_text())
        assert_exact(numbers, of(IMAGES, -1))
        assert [one["name"] for one in numbers["left_out"]] == left


def test_modes(stats: Stats, tmp_path: Path) -> None:
    """Palettes become colours, --mode converts, and two colours are 0 and 255."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(IMAGES[0]).convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "a.png")
    Image.fromarray(IMAGES[1, ..., 0]).save(folder / "b.png")
    right = [np.asarray(Image.open(folder / f"{name}.png").convert("RGB")) for name in "ab"]
    numbers = json.loads(stats("photos", "--mode", "RGB", "--json", "-").out)
    assert_exact(numbers, of(np.stack(right), -1))
    Image.fromarray(IMAGES[0, ..., 0] > 99).save("two.png")
    assert_exact(json.loads(stats("two.png", "--json", "-").out), [(IMAGES[0, ..., 0] > 99) * np.uint8(255)])


def saved(path: Path, pages: list[Any], **options: Any) -> None:
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)


@pytest.mark.parametrize(("kind", "channels"), [("tif", 1), ("gif", 3), ("webp", 3), ("png", 1)])
def test_every_page_is_an_image(stats: Stats, kind: str, channels: int) -> None:
    grey = [np.full((4, 6), value, np.uint8) for value in (0, 100, 200)]
    saved(Path(f"pages.{kind}"), list(map(Image.fromarray, grey)), **({"lossless": True} if kind == "webp" else {}))
    said = stats(f"pages.{kind}", "--json", "-")
    assert (said.code, said.err) == (0, "")
    assert_exact(json.loads(said.out), [np.concatenate(grey)] * channels)


def test_colours_after_a_grey_page_are_read_or_named(stats: Stats) -> None:
    """Pillow takes indices of a palette for greys there."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for first, right in (("L", [127.5] * 3), ("RGB", [(127.5 + 250) / 2, 127.5 / 2, 127.5 / 2])):
        saved(Path("x.gif"), [ramp.convert(first), Image.new("RGB", (16, 16), (250, 0, 0))])
        said = stats("x.gif", "--json", "-")
        numbers = json.loads(said.out)
        assert numbers["mean"] == right or numbers["mean"] == [(127.5 + 250) / 2, 127.5 / 2, 127.5 / 2]
        assert ("Left out: x.gif[1:]: Pillow misreads" in said.err) == (numbers["mean"] == [127.5] * 3)


def test_previews_are_no_images_of_the_set(stats: Stats) -> None:
    """TIFF's smaller copies and masks, and the further pictures of a JPEG, do not count."""
    whole, small = (Image.new("L", (size, size), value) for size, value in ((8, 10), (4, 200)))
    for role in (1, 4, 5):
        small.encoderinfo = {"tiffinfo": {254: role}}
        saved(Path("x.tif"), [whole, small])
        assert json.loads(stats("x.tif", "--json", "-").out)["count"] == [64]
    saved(Path("x.jpg"), [whole, Image.new("L", (8, 8), 200)], format="MPO")
    with Image.open("x.jpg") as image:
        assert image.n_frames == 2
    assert json.loads(stats("x.jpg", "--json", "-").out)["mean"] == [10]


def test_pages_that_cannot_be_read_are_named(stats: Stats) -> None:
    grey = [Image.new("L", (64, 64), value) for value in (10, 20, 30)]
    grey.append(Image.new("I;16", (64, 64), 40))
    saved(Path("x.tif"), grey, compression="tiff_deflate")
    whole = bytearray(Path("x.tif").read_bytes())
    with Image.open("x.tif") as image:
        image.seek(1)
        start = image.tag_v2[273][0]
    whole[start : start + 4] = b"bad!"
    Path("x.tif").write_bytes(whole)
    said = stats("x.tif", "--json", "-")
    assert said.code == 1
    found = json.loads(said.out)
    assert (found["count"], found["mean"]) == ([2 * 64 * 64], [20])
    assert [one["name"] for one in found["left_out"]] == ["x.tif[1]", "x.tif[3]"]


def wide_png(pixels: Array) -> bytes:
    """Return a PNG of 16 bits with three channels, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


WIDE: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "16 bits to RGB": (lambda: image_bytes(DEEP), ["--mode", "RGB"]),
    "16 bits to L": (lambda: image_bytes(DEEP), ["--mode", "L"]),
    "floats to L": (lambda: image_bytes(FLOATS[:, 0], "TIFF"), ["--mode", "L"]),
    "floats to RGB": (lambda: image_bytes(FLOATS[:, 0] / 1e6, "TIFF"), ["--mode", "RGB"]),
    "floats to integers": (lambda: image_bytes(FLOATS[:, 0] / 1e6, "TIFF"), ["--mode", "I"]),
    "32 bits to L": (lambda: image_bytes(DEEP.astype(np.int32), "TIFF"), ["--mode", "L"]),
    "32 bits to floats": (lambda: image_bytes(np.full((9, 9), 2**24 + 1, np.int32), "TIFF"), ["--mode", "F"]),
    "colours of 16 bits": (lambda: wide_png(np.full((9, 9, 3), 65503)), []),
    "colours of a PPM": (lambda: b"P6 1 1 65535 " + bytes((255, 1) * 3), []),
}  # fmt: skip


def image_bytes(pixels: Array, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize("kind", WIDE)
def test_no_value_of_an_image_is_cut(stats: Stats, kind: str) -> None:
    """Wide values are refused alone, left out among others, and no hint leads there."""
    make, options = WIDE[kind]
    Path("wide.img").write_bytes(make())
    Image.fromarray(IMAGES[0]).save("a.png")
    refused(stats("wide.img", *options), "one file must be an image that can be read; got none (wide.img: ")
    said = stats("a.png", "wide.img", *options)
    assert said.code == 1
    assert said.err.startswith("Left out: wide.img: ")
    assert "try --mode RGB" not in said.err


def test_modes_that_keep_all_values_are_taken(stats: Stats) -> None:
    Image.fromarray(DEEP).save("x.png")
    for mode in ("I", "F"):
        numbers = json.loads(stats("x.png", "--mode", mode, "--json", "-").out)
        assert (numbers["count"], numbers["max"]) == ([DEEP.size], [DEEP.max()])
    refused(stats("x.png", "--mode", "rgb"), "--mode must be one of CMYK, HSV, L, LA, ")


@pytest.mark.parametrize("together", [True, False])
def test_images_of_different_ranges_are_not_mixed(stats: Stats, together: bool, tmp_path: Path) -> None:
    """Not in a folder, and not as several files."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(IMAGES[0, ..., 0]).save(folder / "a.png")
    Image.fromarray(DEEP).save(folder / "b.png")
    said = stats(*(["photos"] if together else ["photos/a.png", "photos/b.png"]), "--json", "found.json")
    assert said.code == 1
    assert said.err.startswith("Left out: photos/b.png: its values are uint16, those of the first image uint8 (their ")
    assert_exact(json.loads(Path("found.json").read_text()), [IMAGES[0, ..., 0]])


def test_arrays_of_different_types_are_noted(stats: Stats) -> None:
    np.save("a.npy", IMAGES)
    np.save("b.npy", IMAGES / 255)
    said = stats("a.npy", "b.npy", "--axis", "-1")
    words = "are measured together, as they are: uint8 (first a.npy), float64 (first b.npy)\n"
    assert (said.code, said.err) == (0, f"Values of several types {words}")


# Bad files and options.


def refused(said: Said, words: str) -> None:
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert words in said.err


def damaged(data: bytes) -> bytes:
    return data[:9000] + bytes(4) + data[9004:]


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "one file must be an image that can be read; got none"),
    "text": (lambda: b"some text, and more of it", "one file must be an image that can be read; got none"),
    "npy cut": (lambda: packed("npy", IMAGES)[:-1], "data must be a whole file of arrays; got"),
    "npy too long": (lambda: packed("npy", IMAGES) + b"1", "data must be a whole file of arrays; got"),
    "npy header cut": (lambda: packed("npy", IMAGES)[:30], "data must be a whole file of arrays; got"),
    "npy of objects": (lambda: packed("npy", np.array([{}], object)), "must hold integers or floating-point numbers"),
    "npy of truth values": (lambda: packed("npy", IMAGES > 7), "must hold integers or floating-point numbers"),
    "npy without values": (lambda: packed("npy", IMAGES[:0]), "a data set must have values that can be read; got none"),
    "npz cut": (lambda: packed("npz", IMAGES)[:-200], "data must be a whole file of arrays; got"),
    "npz empty": (lambda: b"PK\x05\x06" + bytes(18), "one file must be an image"),
    "npz damaged": (lambda: damaged(packed("npzc", IMAGES)), "got none (data[arr_0]: "),
    "idx cut": (lambda: idx(GREY)[:-3], "data must be a whole file of arrays; got"),
    "idx header cut": (lambda: idx(GREY)[:9], "data must be a whole file of arrays; got"),
    "idx.gz cut": (lambda: gzip.compress(idx(GREY))[:-900], "got none (data: "),
    "idx.gz too short": (lambda: gzip.compress(idx(GREY)[:-3]), "got none (data: an end, 3 bytes too early)"),
    "idx.gz too long": (lambda: gzip.compress(idx(GREY) + b"1"), "got none (data: more bytes than shape"),
    "gz of text": (lambda: gzip.compress(b"some text"), "data must be a whole file of arrays; got"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_get_one_sentence(stats: Stats, kind: str) -> None:
    make, words = BAD[kind]
    Path("data").write_bytes(make())
    said = stats("data", "--axis", "none")
    refused(said, words)
    assert said.err.count("polybn stats: ") == 1


def test_bad_options_and_places_get_one_sentence(stats: Stats, tmp_path: Path) -> None:
    np.save("x.npy", IMAGES)
    np.savez("two.npz", a=GREY, b=GREY)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "zarr.json").write_text("{")
    os.mkfifo("pipe")
    refused(stats("x.npy"), "--axis must say where the channels are; got nothing (x.npy has shape (61, 13, 7, 3): ")
    refused(stats("x.npy", "--axis", 4), "--axis must lie in [-4, 4); got 4 (x.npy has shape (61, 13, 7, 3))")
    refused(stats("two.npz"), "--array must name one of the arrays of two.npz; got nothing (they are a, b)")
    refused(stats("two.npz", "--array", "c"), "--array must name one of the arrays of two.npz; got c (they are a, b)")
    refused(stats("x.npy", "--scale", 0), "--scale must be a positive number; got 0.0")
    refused(stats("x.npy", "--picture", "h.txt"), "the name of a picture must end in one of .png, .svg, .pdf")
    refused(stats("nothing"), "nothing must hold images, .npy, .npz or IDX files, or be a Zarr store; got 0 other ")
    refused(stats("nowhere"), "No such file or directory: nowhere")
    refused(stats("pipe"), "pipe must be a file or a folder; got neither of them")
    refused(stats("store"), "store must be a Zarr store; got ")
    assert stats("x.npy", "--axis", "last").code == 2


@pytest.mark.parametrize(
    ("option", "name"), [("--json", "photos/a.png"), ("--picture", "photos/a.png"), ("--save", "x.npy")]
)
def test_what_is_measured_is_never_replaced(stats: Stats, option: str, name: str) -> None:
    Path("photos").mkdir()
    Image.fromarray(IMAGES[0]).save("photos/a.png")
    np.save("x.npy", GREY[0])
    before = Path(name).read_bytes()
    where = "x.npy" if name == "x.npy" else "photos"
    refused(stats(where, option, name), f"{option} must be another file than those that are read; got {name} (it would")
    assert Path(name).read_bytes() == before
    assert stats(where, "--json", "photos/new.json").code == 0


@pytest.mark.parametrize(("root", "data", "words"), [("PIL", "a.png", "images need Pillow"), ("zarr", "store", "zarr")])
def test_what_is_not_installed_is_named(
    stats: Stats, root: str, data: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(IMAGES[0]).save("a.png")
    Path("store").mkdir()
    Path("store/.zarray").write_text("")
    monkeypatch.setitem(sys.modules, root, None)
    refused(stats(data), f"{words}")


def test_a_worker_that_dies_is_reported() -> None:
    with pytest.raises(OSError, match="a worker process must not end before its work; one did"):
        measure.measure([Part("dies", 1, partial(os._exit, 3))], partial(measure.in_processes, workers=1))


# A cluster.


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        yield cluster


@pytest.mark.filterwarnings("default")
def test_a_cluster_gives_the_same_digits(stats: Stats, cluster: Any, tmp_path: Path) -> None:
    make, options, channels = CASES["folder"]
    make(tmp_path / "data")
    alone, shared = (
        stats("data", *options, "--json", "-", *more) for more in ((), ("--scheduler", cluster.scheduler_address))
    )
    assert (alone.code, alone.out) == (shared.code, shared.out)
    assert_exact(json.loads(shared.out), channels)
    (tmp_path / "data" / "bad.png").write_text("no image")
    said = stats("data", "--scheduler", cluster.scheduler_address)
    assert (said.code, said.err.split(": ")[1]) == (1, str(tmp_path / "data" / "bad.png"))


def slowly(low: int) -> Iterator[Array]:
    time.sleep(0.2)
    yield IMAGES[low : low + 3]


@pytest.mark.filterwarnings("default")
def test_what_a_lost_worker_has_read_is_read_again(cluster: Any) -> None:
    """One worker is killed in the middle; every value counts once."""
    shares = [Part(f"{low}", 1, partial(slowly, low)) for low in range(0, 61, 3)]
    killed = list[int]()

    def kill(size: int) -> None:
        if not killed:
            killed.append(cluster.workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    spread = partial(measure.on_cluster, address=cluster.scheduler_address)
    found = measure.measure(shares, spread, progress=kill)
    assert killed
    assert found.left_out == []
    assert found.statistics.count.tolist() == [61 * 13 * 7] * 3
    assert found.statistics.mean.tolist() == exact(of(IMAGES, -1))["mean"]


def test_a_scheduler_that_is_not_there(stats: Stats, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="Dask is not installed")
    np.save("x.npy", IMAGES)
    refused(stats("x.npy", "--axis", "-1", "--scheduler", "nonsense://"), "--scheduler must be the address of a Dask ")
    refused(
        stats("x.npy", "--axis", "-1", "--scheduler", "tcp://a:1", "--workers", 2), "--workers must be left out with"
    )
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused(stats("x.npy", "--axis", "-1", "--scheduler", "tcp://a:1"), "--scheduler needs Dask: ")


# Blocks and bins.


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    limit=st.integers(1, 400),
    fortran=st.booleans(),
    number=st.integers(0, 4),
)
@example(shape=[5, 7], limit=1, fortran=False, number=1)
def test_blocks_cover_an_array_once(shape: list[int], limit: int, fortran: bool, number: int) -> None:
    """No block is larger than the limit, unless a single step along the other axes is."""
    axis = number if number < len(shape) else None
    array = np.zeros(shape, np.uint8, order="F" if fortran else "C")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "LIMIT", limit)
        for index in parts.blocks(array, axis):
            array[index] += 1
            smallest = 1 if axis is None else shape[axis]
            assert array[index].size <= max(limit, smallest)
            assert axis is None or array[index].shape[axis] == shape[axis]
    assert (array == 1).all()


@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(("uint8", "int16", "float32", "float64")),
    scales=st.lists(st.sampled_from((0.0, 1e-3, 1.0, 30.0)), min_size=1, max_size=4),
    mean=st.sampled_from((0.0, 100.0)),
)
def test_histograms_count_exactly(seed: int, dtype: str, scales: list[float], mean: float) -> None:
    """For any parts, the counts are NumPy's between the same edges."""
    rng, found = np.random.default_rng(seed), Histogram()
    pieces = [(mean + scale * np.abs(rng.normal(0, 1, (17, 2)))).astype(dtype) for scale in scales]
    for piece in pieces:
        part = Histogram()
        part.update(piece)
        found.merge(part)
    edges = found.edges()
    assert len(edges) - 1 == found.counts.shape[1] <= 512
    for c in range(2):
        column = np.concatenate([piece[:, c] for piece in pieces]).astype(float)
        assert found.counts[c].sum() == len(column)
        # The last bin of NumPy's includes its right edge, where no value lies.
        assert np.array_equal(np.histogram(column, edges)[0], found.counts[c])


def test_a_histogram_leaves_out_what_is_no_number() -> None:
    found = Histogram()
    found.update(np.array([[np.nan, 1.0], [np.inf, 2.0], [-np.inf, np.nan]]))
    assert found.counts.sum(axis=1).tolist() == [0, 2]
    found.update(np.full((2, 2), np.nan))
    found.update(np.array([[1e300, -1e300]]))
    found.update(np.array([[5e-324, 0.0]]))
    assert found.counts.sum(axis=1).tolist() == [2, 4]


def test_damaged_arrays_of_a_folder_are_named_and_the_others_measured(stats: Stats, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.npy", "b.NPY", "cut.npy"):
        with (folder / name).open("wb") as file:
            np.save(file, FLOATS[:, :, 0])
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:-8])
    (folder / "empty.npy").touch()
    (folder / "pointer.npy").write_text("version https://git-lfs.github.com/spec/v1")
    said = stats(folder, "--json", tmp_path / "found.json")
    assert said.code == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(name in str(found["left_out"]) for name in ("cut.npy", "empty.npy", "pointer.npy"))
    assert len(found["left_out"]) == 3
    assert str(2 * len(FLOATS)) in str(found)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("text.npy", b"some text", "must be a file of arrays; its first bytes are others (b'some text')"),
        ("empty.npy", b"", "must be a file of arrays; it is empty"),
        ("cut.npy", packed("npy", GREY)[:-1], "must be a whole file of arrays; got "),
        ("text.png", b"some text", "must be an image that can be read; got none (text.png: "),
    ],
)
def test_a_bad_file_beside_good_ones_is_left_out(stats: Stats, name: str, data: bytes, words: str) -> None:
    np.save("good.npy", GREY)
    Path(name).write_bytes(data)
    refused(stats(name, "--axis", "none"), words)
    for paths in (("good.npy", name), (name, "good.npy")):
        said = stats(*paths, "--axis", "none", "--json", "-")
        assert said.code == 1
        assert said.err.startswith(f"Left out: {name}: ")
        assert words in said.err
        assert_exact(json.loads(said.out), [GREY])
    refused(stats("good.npy", "nowhere.npy", "--axis", "none"), "No such file or directory: nowhere.npy")


@pytest.mark.parametrize("values", [[2**64 - 1], [0, 2**63, 2**64 - 1], [7, 2**53 + 1]])
def test_histograms_count_large_integers(values: list[int]) -> None:
    histogram = Histogram()
    histogram.update(np.array(values, np.uint64)[:, None])
    assert histogram.counts.sum() == len(values)
