"""The training loop: its calls of programs, its metrics, its files, and its errors."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import polybn
from polybn import dispatch
from polybn.lenet import checkpoints, fashion_mnist, networks, plain, runs, training
from polybn.lenet.errors import CheckpointError, DivergenceError
from polybn.lenet.fashion_mnist import Dataset
from polybn.lenet.networks import Dense, Network, State
from polybn.lenet.program import Steps, compile, pooled_first
from polybn.lenet.runs import Epoch
from polybn.lenet.training import train
from polybn.spec import BackendError, DomainError, DTypeError, ShapeError
from tests.conftest import COMPILING
from tests.support.training_worker import slice_of_sample

SPEC, NONE = networks.lenet(), networks.lenet(None)
DATA = slice_of_sample()
TINY = slice_of_sample(20, 10)


def bits(state: State) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in state.items()}


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class Scripted:
    """A backend that does not train: it reports scripted losses, and records its calls."""

    def __init__(self, losses: list[list[float]], spoilt: int = 0) -> None:
        self._losses, self._spoilt, self._epoch = losses, spoilt, 0
        self.asked: list[Any] = []

    def describe(self) -> dict[str, str]:
        return {"library": "9.9"}

    def compile(self, rows: list[networks.Row], state: State, *, batch_size: int) -> Scripted:
        self.asked.append((rows, bits(state), batch_size))
        self._state = state
        return self

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Any:
        return images, labels

    def train_epoch(self, data: Any, order: NDArray[np.int64], *, learning_rate: float) -> Iterator[Steps]:
        self.asked.append((data[0] is TINY.train_images, order.tolist(), learning_rate))
        for loss in self._losses[self._epoch]:
            yield Steps(np.array([loss]), np.array([1]), np.array([10]))
        self._epoch += 1

    def logits(self, data: Any) -> NDArray[np.float32]:
        """Classify all test images rightly in the first two epochs, and then all of them as T-shirts."""
        scores = np.zeros((len(data[1]), 10), np.float32)
        scores[np.arange(len(scores)), data[1] if self._epoch < 3 else 0] = 1
        return scores

    def state(self) -> State:
        value = np.nan if self._epoch == self._spoilt else self._epoch
        return {name: np.full_like(array, value) for name, array in self._state.items()}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scripted]:
    def install(losses: list[list[float]], **options: int) -> Scripted:
        fake = Scripted(losses, **options)
        monkeypatch.setattr(training, "find_backend", lambda name: fake)
        return fake

    return install


# Learning.


def test_on_the_sample_the_loss_falls_and_batch_norm_is_ahead_from_the_first_epoch(backend: str) -> None:
    data = fashion_mnist.load("sample")
    with_norm = train(SPEC, backend, data=data, epochs=3).epochs
    # Where a step of a program that was compiled quickly takes a quarter of a second, NumPy trains from the same bits.
    without = train(NONE, "numpy" if backend in COMPILING else backend, data=data, epochs=3).epochs
    losses = [epoch.loss for epoch in with_norm]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2
    assert all(a.loss < b.loss for a, b in zip(with_norm, without, strict=True))
    assert all(a.train_accuracy > 3 * b.train_accuracy for a, b in zip(with_norm, without, strict=True))
    assert with_norm[-1].test_accuracy > 0.6


def test_metrics_are_those_of_the_steps_and_of_the_final_network(backend: str) -> None:
    """The metrics count a smaller last batch by its size: 128, 128 and 44 images."""
    seen: list[tuple[int, Steps]] = []
    for epochs in (1, 2):
        seen.clear()
        run = train(SPEC, backend, data=DATA, epochs=epochs, batch_size=128, learning_rate=0.5,
                    on_steps=lambda epoch, steps: seen.append((epoch, steps)))  # fmt: skip
        last = run.epochs[-1]
        losses, correct, images = (
            np.concatenate([steps[field] for epoch, steps in seen if epoch == epochs]) for field in range(3)
        )
        assert images.tolist() == [128, 128, 44]
        exact = sum((Fraction(loss) * int(n) for loss, n in zip(losses, images, strict=True)), Fraction(0)) / 300
        assert abs(Fraction(last.loss) - exact) <= exact / 2**50  # three products, two sums, a division
        assert last.train_accuracy == correct.sum() / 300
        program = compile(SPEC, dispatch.backend(backend), run.state, batch_size=128)
        scores = program.logits(program.place(DATA.test_images, DATA.test_labels))
        assert last.test_accuracy == np.mean(scores.argmax(axis=1) == DATA.test_labels)
        assert run.losses == [
            [loss for at, steps in seen if at == epoch for loss in steps.losses] for epoch in range(1, epochs + 1)
        ]
        assert [epoch.epoch for epoch in run.epochs] == list(range(1, epochs + 1))
        assert last.seconds > 0


def test_each_metric_by_hand(scripted: Callable[..., Scripted]) -> None:
    """The metrics of two steps of ten images, with one right label in each, are as computed by hand."""
    scripted([[3.0, 1.0], [0.5, 0.25], [0.0, 1.0]])
    zeros = int(np.count_nonzero(TINY.test_labels == 0))
    epochs = train(SPEC, data=TINY, epochs=3).epochs
    assert [epoch._replace(seconds=0) for epoch in epochs] == [
        Epoch(1, 2.0, 0.1, 1.0, 0), Epoch(2, 0.375, 0.1, 1.0, 0), Epoch(3, 0.5, 0.1, zeros / 10, 0),
    ]  # fmt: skip


def test_every_backend_is_given_the_same_bits(scripted: Callable[..., Scripted]) -> None:
    fake = scripted([[1.0]] * 3)
    train(NONE, "whatever", data=TINY, epochs=3, batch_size=7, learning_rate=0.25, seed=5)
    orders = [networks.epoch_order(5, epoch, 20).tolist() for epoch in (1, 2, 3)]
    rows = pooled_first(networks.rows(NONE))
    assert fake.asked == [
        (rows, bits(networks.initial_state(NONE, 5)), 7), *((True, order, 0.25) for order in orders),
    ]  # fmt: skip
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_seeds_differ_and_repeat() -> None:
    states = [bits(train(SPEC, data=TINY, epochs=1, seed=seed).state) for seed in (0, 0, 1)]
    assert states[0] == states[1] != states[2]


def test_no_epochs_leave_the_initial_state() -> None:
    run = train(SPEC, data=TINY, epochs=0, seed=4)
    assert bits(run.state) == bits(networks.initial_state(SPEC, 4))
    assert (run.epochs, run.losses) == ([], [])


# Files.


def test_a_run_directory(tmp_path: Path) -> None:
    run = train(SPEC, data=TINY, epochs=3, batch_size=8, learning_rate=0.5, seed=2, out=tmp_path / "a" / "run")
    directory = tmp_path / "a" / "run"
    assert contents(directory).keys() == {
        ".lock", "config.json", "metrics.jsonl", "checkpoints/epoch-0002.npz", "checkpoints/epoch-0003.npz",
    }  # fmt: skip
    assert (directory / ".lock").read_bytes() == b""
    assert json.loads((directory / "config.json").read_text()) == run.config | {
        "epochs": 3,
        "data": {"source": "slice", "where": None},
        "versions": {
            **dispatch.backend("numpy").describe(), "polybn": polybn.__version__, "python": platform.python_version(),
        },
    }  # fmt: skip
    assert run.config == {
        "backend": "numpy",
        "network": plain.to_plain(SPEC),
        "batch_size": 8,
        "learning_rate": 0.5,
        "seed": 2,
        "devices": 1,
        "last_batch": "keep",
        "device": None,
        "data_sha256": hashlib.sha256(b"".join(array.tobytes() for array in TINY[:4])).hexdigest(),
    }
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    assert [list(json.loads(line)) for line in lines] == [list(Epoch._fields)] * 3
    assert [Epoch(**json.loads(line)) for line in lines] == run.epochs == runs.read_metrics(directory)
    loaded = runs.load(directory)
    assert bits(loaded.state) == bits(run.state)
    assert loaded[:3] == run[:3]


def test_an_epoch_is_announced_when_it_is_saved_and_not_before(tmp_path: Path) -> None:
    """In callbacks during epoch k the files hold k - 1 epochs, and in the one after it k."""
    told: list[int] = []

    def saved() -> int:
        found = checkpoints.latest(tmp_path / "checkpoints")
        if found is None:
            assert not (tmp_path / "metrics.jsonl").exists()
            return 0
        assert len(runs.read_metrics(tmp_path)) == len(found[1].meta["epochs"])
        return len(found[1].meta["epochs"])

    def on_steps(epoch: int, steps: Steps) -> None:
        assert saved() == epoch - 1

    def on_epoch(epoch: Epoch) -> None:
        assert saved() == epoch.epoch
        assert runs.load(tmp_path).epochs[-1] == epoch
        told.append(epoch.epoch)

    train(SPEC, data=TINY, epochs=3, batch_size=8, out=tmp_path, on_steps=on_steps, on_epoch=on_epoch)
    assert told == [1, 2, 3]


def test_metrics_never_run_ahead_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full disk in the second epoch, the metrics end with the epoch of the checkpoint."""
    save = checkpoints.save

    def full(*args: Any, epoch: int, **options: Any) -> Path:
        if epoch == 2:
            raise OSError("disk full")
        return save(*args, epoch=epoch, **options)

    monkeypatch.setattr(checkpoints, "save", full)
    with pytest.raises(OSError, match="disk full"):
        train(SPEC, data=TINY, epochs=3, out=tmp_path)
    assert runs.read_metrics(tmp_path) == runs.load(tmp_path).epochs
    assert len(runs.read_metrics(tmp_path)) == 1


def test_checkpoints_hold_the_state_at_the_end_of_their_epoch(tmp_path: Path) -> None:
    train(SPEC, data=TINY, epochs=2, batch_size=8, out=tmp_path)
    for epoch in (1, 2):
        checkpoint = checkpoints.load(tmp_path / "checkpoints" / f"epoch-000{epoch}.npz")
        assert bits(checkpoint.arrays) == bits(train(SPEC, data=TINY, epochs=epoch, batch_size=8).state)


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "write_atomic", lambda *args: pytest.fail("a file was written"))
    train(SPEC, data=TINY, epochs=1)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    train(SPEC, data=TINY, epochs=1, out=tmp_path)
    before = contents(tmp_path)
    words = (
        rf"^polybn\.train: --out must be a new or empty directory; got {tmp_path}, which holds checkpoints, "
        r"config\.json, metrics\.jsonl \(nothing is overwritten: choose another name, or .* by --resume\)$"
    )
    with pytest.raises(DomainError, match=words):
        train(SPEC, data=TINY, epochs=2, out=tmp_path)
    assert contents(tmp_path) == before


def test_a_strange_file_is_enough_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DomainError, match=r"which holds thesis\.tex"):
        train(SPEC, data=TINY, epochs=1, out=tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"x"}


def test_an_empty_directory_is_fine(tmp_path: Path) -> None:
    train(SPEC, data=TINY, epochs=1, out=tmp_path)
    assert len(runs.read_metrics(tmp_path)) == 1


@pytest.mark.parametrize("index", range(4))
def test_the_fingerprint_covers_every_array(index: int) -> None:
    def fingerprint(data: Dataset) -> str:
        return str(train(SPEC, data=data, epochs=0).config["data_sha256"])

    arrays: dict[str, Any] = {name: value.copy() for name, value in zip(Dataset._fields, TINY[:4], strict=False)}
    whole = fingerprint(TINY)
    assert fingerprint(Dataset(**arrays, source="elsewhere")) == whole
    arrays[Dataset._fields[index]].ravel()[-1] ^= 1
    assert fingerprint(Dataset(**arrays, source="elsewhere")) != whole


def test_the_fingerprint_does_not_depend_on_memory_layout() -> None:
    turned = TINY._replace(train_images=np.asfortranarray(TINY.train_images))
    assert not turned.train_images.flags.c_contiguous
    assert train(SPEC, data=turned, epochs=0).config == train(SPEC, data=TINY, epochs=0).config


def test_the_default_data_are_those_that_load_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYBN_DATA", "sample")
    with pytest.raises(DTypeError, match=r'data must be a Dataset, .*; got int .data="sample"'):
        train(SPEC, data=5, epochs=0)  # type: ignore[arg-type]
    expected = train(SPEC, data="sample", epochs=0).config
    assert expected == train(SPEC, data=fashion_mnist.load("sample"), epochs=0).config
    assert train(SPEC, epochs=0).config == expected


# Divergence.


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_the_run(
    scripted: Callable[..., Scripted], tmp_path: Path, value: float
) -> None:
    """An infinite loss in the second step of the third epoch keeps the two finished epochs."""
    scripted([[1.0, 0.5], [0.25, 0.125], [0.1, value, 0.1]])
    files: list[dict[str, bytes]] = []
    words = (
        rf"^polybn\.train: loss must stay finite; got {value} in step 2 of epoch 3 \(the learning rate is 20: try 2; "
        r"checkpoints of finished epochs are untouched\)$"
    )
    with pytest.raises(DivergenceError, match=words):
        train(SPEC, data=TINY, epochs=9, learning_rate=20, out=tmp_path,
              on_epoch=lambda epoch: files.append(contents(tmp_path)))  # fmt: skip
    assert len(files) == 2
    assert contents(tmp_path) | {".lock": b""} == files[-1] | {".lock": b""}
    assert len(runs.load(tmp_path).epochs) == 2


def test_the_step_is_counted_over_reports_of_several_steps(
    scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = scripted([])
    reports = [Steps(np.array(losses), np.ones(3, int), np.ones(3, int)) for losses in ([1.0, 2, 3], [4, 5, np.inf])]
    monkeypatch.setattr(fake, "train_epoch", lambda *args, **options: iter(reports))
    with pytest.raises(DivergenceError, match="got inf in step 6 of epoch 1 "):
        train(SPEC, data=TINY, epochs=1)


def test_a_state_that_is_not_finite_ends_the_run_before_it_is_saved(
    scripted: Callable[..., Scripted], tmp_path: Path
) -> None:
    """The state is checked after each epoch, because its last step can spoil weights without a later loss."""
    scripted([[1.0]] * 9, spoilt=2)
    with pytest.raises(DivergenceError, match=r"conv1\.weight must stay finite; .* after the last step of epoch 2 \("):
        train(SPEC, data=TINY, epochs=9, out=tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [tmp_path / "checkpoints" / "epoch-0001.npz"]
    assert len(runs.read_metrics(tmp_path)) == 1


@pytest.mark.parametrize(
    ("network", "hint"), [(SPEC, "try 1e+37; "), (NONE, "try 1e+37, or a network with batch norm; ")]
)
def test_a_diverging_run_is_told_what_may_help(network: Network, hint: str) -> None:
    with pytest.raises(DivergenceError, match=re.escape(hint)):
        train(network, data=DATA, epochs=9, batch_size=64, learning_rate=1e38)


@pytest.mark.parametrize("network", [SPEC, NONE], ids=["spec", "none"])
def test_an_enormous_learning_rate(backend: str, network: Network) -> None:
    """An enormous learning rate ends in an error without a warning."""
    with pytest.raises(DivergenceError, match=r"must stay finite; got .* epoch \d \(the learning rate is 1e\+38: try"):
        train(network, backend, data=DATA, epochs=9, batch_size=64, learning_rate=1e38)


# Faults.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": -1}, "epochs must be 0 or more; got -1 "),
        ({"batch_size": 0}, "batch_size must be 1 or more; got 0 "),
        ({"learning_rate": 0.0}, r"learning_rate must lie between 2\^-126 and 2\^127; got 0.0 "),
        ({"learning_rate": -1.0}, "learning_rate must .*; got -1.0 "),
        ({"learning_rate": float("nan")}, "learning_rate must .*; got nan "),
        ({"learning_rate": float("inf")}, "learning_rate must .*; got inf "),
        ({"learning_rate": 1e39}, r"learning_rate must .*; got 1e\+39 "),
        ({"learning_rate": 1e-46}, "learning_rate must .*; got 1e-46 "),
        ({"seed": -1}, "seed must be 0 or more; got -1 "),
        ({"last_batch": "lose"}, "last_batch must be 'keep' or 'drop'; got 'lose' "),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DomainError, match=rf"^polybn\.train: {words}\(.*\)$"):
        train(SPEC, data=TINY, **options)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "seed"])
def test_numbers_that_are_no_integers(name: str) -> None:
    with pytest.raises(DTypeError, match=rf"^polybn\.train: {name} must be an integer; got 1\.5 \(float\)$"):
        train(SPEC, data=TINY, **{name: 1.5})  # type: ignore[arg-type]


def test_integers_of_numpy_are_integers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "seed": 3}
    wrapped: dict[str, Any] = {name: np.int64(value) for name, value in options.items()}
    assert train(SPEC, data=TINY, out=tmp_path, **wrapped).config == train(SPEC, data=TINY, **options).config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_labels": TINY.train_labels[:9]}, r"train_images must have shape \(N, 1, 28, 28\), and .*\(9,\) "),
        ({"test_labels": TINY.test_labels[:9]}, r"test_images must have shape .* got \(10, 1, 28, 28\) and \(9,\) "),
        ({"train_images": TINY.train_images[..., :27]}, r"train_images must .* got \(20, 1, 28, 27\) "),
        ({"train_labels": TINY.train_labels[:, None]}, r"train_images must .* and \(20, 1\) "),
        ({"test_images": TINY.test_images[:0], "test_labels": TINY.test_labels[:0]}, r"test_images must .* N >= 1; "),
    ],
)
def test_data_that_do_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ShapeError, match=rf"^polybn\.train: {words}"):
        train(SPEC, data=TINY._replace(**changes), epochs=1)


def test_more_labels_than_classes() -> None:
    small = Network((1, 28, 28), (Dense(9),))
    with pytest.raises(DomainError, match=r"^polybn\.train: train_labels must lie in 0 to 8; got 9 \(the network's"):
        train(small, data=TINY, epochs=1)


@pytest.mark.parametrize("name", ["train_images", "test_labels"])
def test_data_of_another_dtype(name: str) -> None:
    with pytest.raises(DTypeError, match=r"^polybn\.train: .* must have dtype uint8; got .*float32"):
        train(SPEC, data=TINY._replace(**{name: getattr(TINY, name).astype(np.float32)}), epochs=1)


@pytest.mark.parametrize(("batch_size", "fault"), [(19, "--last-batch drop"), (1, "choose a larger batch size")])
def test_batch_norm_of_a_single_image_is_refused(batch_size: int, fault: str) -> None:
    """A single image is refused, because dense layers would have one value per channel, and y would be beta."""
    with pytest.raises(DomainError, match=rf"^polybn\.train: every batch must hold 2 images or more; .*{fault}\)$"):
        train(SPEC, data=TINY, epochs=1, batch_size=batch_size)
    assert len(train(NONE, data=TINY, epochs=1, batch_size=batch_size).losses[0]) == -(-20 // batch_size)


def test_the_last_batch_can_be_dropped(scripted: Callable[..., Scripted]) -> None:
    fake = scripted([[1.0]] * 2)
    train(SPEC, data=TINY, epochs=1, batch_size=19, last_batch="drop")
    assert fake.asked[1][1] == networks.epoch_order(0, 1, 20).tolist()[:19]
    whole = scripted([[1.0]] * 2)
    train(SPEC, data=TINY, epochs=1, batch_size=10, last_batch="drop")
    assert whole.asked[1][1] == networks.epoch_order(0, 1, 20).tolist()
    with pytest.raises(DomainError, match=r"batch_size must be 20 or less; got 21 \(there are 20 training images"):
        train(SPEC, data=TINY, epochs=1, batch_size=21, last_batch="drop")


def test_everything_else_is_checked_before_the_data_are_read(tmp_path: Path) -> None:
    def never() -> Dataset:
        raise AssertionError("data were read")

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    for options in ({"learning_rate": 0.0}, {"devices": 2}, {"backend": "nope"}, {"epochs": -1}):
        with pytest.raises((DomainError, BackendError)):
            train(SPEC, data=never, out=tmp_path / "new", **options)
    with pytest.raises(DomainError, match="new or empty"):
        train(SPEC, data=never, out=tmp_path / "taken")
    with pytest.raises(BackendError, match="native"):
        train(networks.lenet("native"), data=never)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_an_unknown_backend() -> None:
    with pytest.raises(BackendError, match=r"^polybn\.backend: name must be one of .*; got 'nope' "):
        train(SPEC, "nope", data=TINY)


def test_a_backend_without_a_batch_norm_of_its_own_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="norm must be 'spec' or None on the numpy backend; got 'native'"):
        train(networks.lenet("native"), data=TINY, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


LINE = '{"epoch": 1, "loss": 0.5, "train_accuracy": 0.5, "test_accuracy": 0.5, "seconds": 1.0}\n'


def test_without_metrics(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"^polybn: {tmp_path} must be a run with a finished epoch; got No such"):
        runs.read_metrics(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "{", '{"epoch": 2}', "[1]", LINE.replace("1,", '2, "lust": 1,', 1), LINE, LINE.replace("1,", "3,", 1),
        LINE.replace("1,", "2,", 1).replace("0.5", "NaN", 1), LINE.replace("1,", "2,", 1).replace("0.5", '"0.5"', 1),
        LINE.replace("1,", "2,", 1)[:40], "",
    ],
)  # fmt: skip
def test_the_line_of_metrics_that_is_wrong_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{LINE}{line}\n{LINE.replace('1,', '3,', 1)}")
    got = re.escape(repr(line.strip())[:40])
    words = rf"^polybn: line 2 of {tmp_path}/metrics\.jsonl must hold the metrics of epoch 2; got {got}"
    with pytest.raises(CheckpointError, match=words):
        runs.read_metrics(tmp_path)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


IN_THE_WAY = [(make_pipe, "a pipe"), (Path.mkdir, "a directory")]


@pytest.mark.parametrize(("make", "kind"), IN_THE_WAY)
@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
def test_a_pipe_or_a_directory_in_the_place_of_a_file(
    tmp_path: Path, make: Callable[[Path], None], kind: str, name: str
) -> None:
    """Pipes are refused, because reading one would wait for a writer."""
    make(tmp_path / name)
    read = runs.read_metrics if name == "metrics.jsonl" else runs.read_config
    with pytest.raises(CheckpointError, match=f"{name} must be a regular file; got {kind}"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10_000, '{"network": 1}', '{"network": {"layers": []}}'])
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"^polybn: {tmp_path}.* must hold the options of a run; got "):
        training.resume(tmp_path, epochs=1, data=TINY)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None}, {"config": {}}, {"epochs": 3}, {"epochs": [[1]]}, {"epochs": []}, {"losses": [["x"]]},
        {"config": {"network": {}}}, {"batch_size": "many"}, {"learning_rate": -1}, {"seed": None}, {"devices": 0.5},
        {"network": {"input_shape": [1, 28, 28], "layers": [{"layer": "Dense", "features": -1}]}},
        {"network": {"input_shape": [1, 28, 28], "layers": [{"layer": "Dense", "features": "x"}]}},
        {"network": {"input_shape": ["a", 28, None], "layers": []}},
    ],
)  # fmt: skip
def test_a_checkpoint_with_valid_digests_and_another_content(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = train(SPEC, data=TINY, epochs=1, out=tmp_path / "run")
    meta: dict[str, Any] = {
        "config": run.config,
        "epochs": [epoch._asdict() for epoch in run.epochs],
        "losses": run.losses,
    }
    top = {key: value for key, value in changes.items() if key in meta}
    meta |= top or {"config": run.config | changes}
    checkpoints.save(tmp_path / "run" / "checkpoints", run.state, meta, epoch=1)
    for read in (runs.load, lambda path: training.resume(path, epochs=2, data=TINY)):
        with pytest.raises(CheckpointError, match=rf"^polybn.*: {tmp_path}/run/checkpoints/epoch-0001\.npz must hold "):
            read(tmp_path / "run")


def test_a_directory_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"^polybn: {tmp_path} must hold a checkpoint; got none in "):
        runs.load(tmp_path)


def test_a_checkpoint_that_does_not_fit_its_own_network(tmp_path: Path) -> None:
    run = train(SPEC, data=TINY, epochs=1)
    del run.state["norm2.running_var"]
    meta = {"config": run.config, "epochs": [epoch._asdict() for epoch in run.epochs], "losses": run.losses}
    checkpoints.save(tmp_path / "checkpoints", run.state, meta, epoch=1)
    with pytest.raises(CheckpointError, match=r"hold float32 of shape \(16,\) as 'norm2.running_var'; got nothing"):
        runs.load(tmp_path)
