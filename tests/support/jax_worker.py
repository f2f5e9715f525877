"""One process that trains on JAX devices, alone or as one of several, and prints what came out as JSON.

Its environment and its arguments are those that :mod:`tests.test_jax_parallel` gives; no test runs in it.
"""

from __future__ import annotations

import hashlib
import json
import sys

import polybn
from polybn.lenet import networks
from tests.support.training_worker import slice_of_sample


def main(options: str) -> None:
    """Train once for each number of devices."""
    asked = json.loads(options)
    import jax

    if "process" in asked:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            coordinator_address=f"localhost:{asked['port']}", num_processes=2, process_id=asked["process"],
            initialization_timeout=60,
        )  # fmt: skip
    results = {}
    for devices in asked["devices"]:
        run = polybn.train(
            networks.lenet(asked["norm"]), "jax", data=slice_of_sample(asked["images"], 20), epochs=asked["epochs"],
            batch_size=asked["batch_size"], learning_rate=asked["learning_rate"], devices=devices,
        )  # fmt: skip
        digest = hashlib.sha256(b"".join(value.tobytes() for value in run.state.values())).hexdigest()
        results[devices] = {
            "losses": [loss for losses in run.losses for loss in losses],
            "metrics": [[epoch.train_accuracy, epoch.test_accuracy] for epoch in run.epochs],
            "state": digest,
        }
    print(json.dumps(results), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
