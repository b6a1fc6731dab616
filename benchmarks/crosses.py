"""How fast are crosses of pairs that nobody saw? ``CrossStore`` on the exported arrays, one thread.

Usage: ``OMP_NUM_THREADS=1 python -m benchmarks.crosses [--date 2017-11-15]``, after ``make retrain`` (or the feature jobs) ran for
that date, by default the data set's. Pairs are requests of the run's days with random catalogue items; writes
``benchmarks/results/crosses.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from datetime import date
from pathlib import Path

import numpy as np

from dig_models.crosses import CrossStore
from dig_models.features import hash_id
from dig_models.items import ItemTable
from jobs.config import load
from jobs.lake import Lake

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Time opening, pairs, catalogue and bought."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--date", type=date.fromisoformat, help="default: the default date of the data set")
    parser.add_argument("--pairs", type=int, default=1_460_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = load(None, args.set)
    day = args.date or config.dataset.default_date
    spec, lake, rng = config.dataset.spec(), Lake(config.paths.at("lake")), np.random.default_rng(0)
    items = ItemTable.from_arrow(lake.read_arrow("item_features", [day]), spec)
    requests = lake.read_arrow("requests", config.run_window(day).examples(), ["user_id", "ts", "offer_key"])
    user = np.array([hash_id(u) for u in requests.column("user_id").to_pylist()], dtype=np.int64)
    offer = np.array([hash_id(o) for o in requests.column("offer_key").to_pylist()], dtype=np.int64)
    ts = requests.column("ts").to_numpy().astype("datetime64[s]").astype(np.int64)
    each = -(-args.pairs // len(user))
    request = np.repeat(rng.permutation(len(user)), each)[: args.pairs]
    item = rng.integers(1, len(items), args.pairs)
    times: dict[str, list[float]] = {"open and first pairs": [], "pairs": [], "catalogue": [], "bought": []}
    for _ in range(args.repeats):
        start = time.process_time()
        store = CrossStore.open(lake.folder("cross_arrays", day), spec, items)
        every = np.arange(min(len(user), 2000))
        store.pairs(user[every], ts[every], offer[every], item[every])
        times["open and first pairs"].append(time.process_time() - start)
        start = time.process_time()
        store.pairs(user[request], ts[request], offer[request], item)
        times["pairs"].append(time.process_time() - start)
        for r in range(100):
            start = time.process_time()
            store.catalogue(int(user[r]), int(ts[r]), int(offer[r]))
            times["catalogue"].append(time.process_time() - start)
            start = time.process_time()
            store.bought(int(user[r]), int(ts[r]))
            times["bought"].append(time.process_time() - start)
    result = {
        "question": "CPU seconds of cross look-ups on one thread (median)",
        "machine": {"cpus": os.cpu_count(), "load_average": [round(v, 2) for v in os.getloadavg()]},
        "date": day.isoformat(),
        "pairs": args.pairs,
        "raw_crosses": spec.cross_width_raw,
        "catalogue_items": len(items) - 1,
        "requests": len(user),
        "median_cpu_seconds": {name: round(statistics.median(values), 6) for name, values in times.items()},
    }
    print(json.dumps(result, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "crosses.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
