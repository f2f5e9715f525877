"""Measures an array that no worker can hold, with one worker after another.

The array is made block by block, so it needs no disk. Each number of workers gets a cluster of its own, of processes
with one thread each. What they find is compared with NumPy's moments of each block, merged.

    pip install distributed
    python docs/examples/dask_scaling.py --gigabytes 20 --workers 1 2 --json scaling.json

docs/results/dask-scaling.json was made so.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

import polybn

ROWS, CHANNELS, PIXELS = 5461, 3, 256
"""The shape of a block: 16 MiB of float32."""


def block(place: int) -> NDArray[np.float32]:
    """Make one block: a few thousand random values, repeated, with means of 1,000, 2,000 and 3,000."""
    values = np.random.default_rng(place).standard_normal(4093, np.float32) * 3 + np.float32(place % 7)
    means = np.float32(1000) * (1 + np.arange(CHANNELS, dtype=np.float32))
    return np.resize(values, (ROWS, CHANNELS, PIXELS)) + means[:, None]


def array(blocks: int) -> Any:
    """Return the array, of which nothing exists yet."""
    # Dask makes the blocks of map_blocks again for each pass. Those of from_delayed it keeps between two passes, and
    # writes them to disk when they outgrow the memory.
    return da.map_blocks(
        lambda block_info=None: block(block_info[None]["chunk-location"][0]),
        chunks=((ROWS,) * blocks, (CHANNELS,), (PIXELS,)),
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
    )


def expected(blocks: int) -> polybn.Moments:
    """Return the moments by NumPy: those of each block in float64, merged."""
    parts = (polybn.moments(block(k).astype(np.float64)) for k in track(range(blocks), "NumPy, block by block"))
    return functools.reduce(polybn.merge_moments, parts)


def measure(x: Any, workers: int, limit: str) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Compute the moments on a new cluster; return time and memory, and the moments."""
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=limit, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(workers)
        begin = time.perf_counter()
        found = client.compute(polybn.moments(x), sync=True)
        seconds = time.perf_counter() - begin
        peak = max(client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).values())
    return {"workers": workers, "seconds": seconds, "peak_bytes": peak * 1024}, found


def differences(found: Sequence[Any], right: polybn.Moments) -> dict[str, float]:
    """Return the largest relative differences from NumPy's moments, in units of 2^-24; the counts must be equal."""
    assert found[0].tolist() == right.count.tolist()
    pairs = {"mean": (found[1], right.mean), "m2": (found[2], right.m2)}
    return {name: float(np.abs(got / exact - 1).max() * 2**24) for name, (got, exact) in pairs.items()}


def main() -> None:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--limit", default="1GB", help="memory that each worker may use")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    blocks = round(options.gigabytes * 1e9 / (ROWS * CHANNELS * PIXELS * 4))
    x, right, runs = array(blocks), expected(blocks), []
    for workers in options.workers:
        run, found = measure(x, workers, options.limit)
        runs.append(run | differences(found, right))
        Console().print(runs[-1])
    if options.json:
        facts = {"date": str(date.today()), "bytes": x.nbytes, "limit": options.limit, "cpus": os.cpu_count(),
                 "dask": dask.__version__, "polybn": polybn.__version__}  # fmt: skip
        options.json.write_text(json.dumps(facts | {"runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
