"""Train LeNet, export it to every format, and compare what the frameworks compute with the exact scores.

    python -m tests.support.export_record

writes docs/results/exports.json, if the libraries of all formats are installed; it takes some minutes.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import polybn
from polybn import exports, fashion_mnist, networks
from polybn.lenet import program
from polybn.lenet.runs import Run
from tests.support import exported
from tests.support import reference_lenet as reference

RECORD = Path(__file__).parents[2] / "docs" / "results" / "exports.json"
EPOCHS = 10
BOUNDED = 500
"""The number of images whose scores are compared with the bound of float32's errors, which takes many runs."""
SCORERS = {
    "onnx": "onnxruntime", "safetensors": "torch", "pt": "torch", "flax": "flax", "keras": "keras", "gluon": "mxnet",
}  # fmt: skip
"""The distribution that scores the images, by format."""


def record() -> dict[str, Any]:
    """Return the figures of one run, with a row for PolyBN and for each format."""
    data = fashion_mnist.load()
    run = polybn.train(networks.lenet(), "numpy", data=data, epochs=EPOCHS)
    exact = _scores(run, data.test_images, reference.exact)
    bounds = reference.allowed(lambda rounded: {"logits": _scores(run, data.test_images[:BOUNDED], rounded)})["logits"]

    def row(name: str, scores: NDArray[Any]) -> dict[str, Any]:
        error = abs(scores.astype(np.float64) - exact)
        return {
            "name": name,
            "differ": int((scores.argmax(1) != exact.argmax(1)).sum()),
            "error": float(error.max()),
            "share": float((error[:BOUNDED] / bounds).max()),
        }

    compiled = program.compile(networks.lenet(), polybn.backend("numpy"), run.state, batch_size=1000)
    own = compiled.logits(compiled.place(data.test_images, data.test_labels))
    rows = [{**row("PolyBN, NumPy", np.asarray(own)), "format": None, "same_bits": True}]
    for format, scorer in SCORERS.items():
        with tempfile.TemporaryDirectory() as folder:
            files = exports.export(run, Path(folder, "lenet"), format)
            scores = exported.SCORE[format](files, data.test_images)
            _, state = exports.load(files[-1])
        same = all(state[name].tobytes() == array.tobytes() for name, array in run.state.items())
        rows.append({**row(f"{scorer} {version(scorer)}", scores), "format": format, "same_bits": same})
    best = np.sort(exact, 1)[:, -2:]
    facts = {"images": len(exact), "bounded": BOUNDED, "epochs": EPOCHS, "gap": float(np.diff(best).min())}
    accuracy = float((exact.argmax(1) == data.test_labels).mean())
    return {"date": date.today().isoformat(), **facts, "accuracy": accuracy, "rows": rows}


def _scores(run: Run, images: NDArray[np.uint8], rounded: reference.Rounded) -> NDArray[Any]:
    network = exports.trained.of_run(run).network
    return reference.forward(network, run.state, images, training=False, rounded=rounded).logits


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    RECORD.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
