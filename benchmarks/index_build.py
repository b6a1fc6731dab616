"""How long does it take to build an index generation, and to open one? Catalogues of any size, through the real encoder.

Usage: ``python -m benchmarks.index_build [--items 10000 100000 1000000] [--threads 2]``. Items are synthetic rows of ``item_features``
with the fields of the data set's feature spec, skewed as real categories are; the model is the default network with codebooks built on
a part of them, and without the affinity. Phases: build, verify, open (and the first requests, which make what is made when first needed),
refresh with 1% arrivals and 1% withdrawals. Each runs in a process of its own, so that its peak memory is its own. Writes
``benchmarks/results/index_build.json`` and ``index_build.png``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dig_models.cross_files import CrossWriter
from dig_models.features import SECONDS_PER_DAY, FeatureSpec, FieldSpec, hash_id
from jobs.config import Config, load

RESULTS = Path(__file__).parent / "results"
DAY = date(2017, 11, 15)
GROUP = 50_000
SAMPLE = 20_000
DAYS = 30


def settings(sets: Sequence[str]) -> Config:
    """Settings in force; the affinity is off, for there are no events of more items than its matrix may have."""
    return load(None, [*sets, "model.affinity.enabled=false"])


def skewed(rng: np.random.Generator, buckets: int, count: int) -> np.ndarray:
    """Buckets ``1 .. buckets - 1``, a few of them often: as categories are."""
    return 1 + (rng.pareto(1.2, count) * buckets / 50).astype(np.int64) % (buckets - 1)


def field_values(rng: np.random.Generator, field: FieldSpec, count: int) -> pa.Array:
    """A column of ``item_features``."""
    if field.is_number:
        return pa.array(rng.lognormal(0, 1, count))
    if field.kind == "categorical":
        return pa.array(skewed(rng, field.buckets, count).astype(np.int32))
    length = rng.integers(1, 5, count)
    values = skewed(rng, field.buckets, int(length.sum())).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(length)]).astype(np.int32)), pa.array(values))


def write_catalogue(path: Path, spec: FeatureSpec, items: int) -> None:
    """Rows of ``item_features`` in the order of their ids, a group at a time."""
    writer, rng = None, np.random.default_rng(7)
    for at in range(0, items, GROUP):
        count = min(GROUP, items - at)
        ids = [f"sku-{number:08d}" for number in range(at, at + count)]
        hashes = np.array([hash_id(i) for i in ids], dtype=np.int64)
        columns: dict[str, Any] = {"item_id": ids, "item_hash": hashes, "name": [f"Product {i}, 500 g" for i in ids]}
        columns |= {field.column: field_values(rng, field, count) for field in spec.item_fields}
        columns |= {f"k_{key}": hashes if key == "item" else rng.integers(1, 2000, count) for key in spec.u2i_keys}
        group = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, group.schema)
        writer.write_table(group)
    if writer:
        writer.close()


def write_world(home: Path, config: Config, items: int, users: int) -> None:
    """Catalogue, user state, cross arrays and model of one size."""
    from dig_models.bundle import save_bundle
    from dig_models.dig import Dig
    from dig_models.items import ItemTable

    spec, rng = config.dataset.spec(), np.random.default_rng(11)
    home.mkdir(parents=True)
    write_catalogue(home / "items.parquet", spec, items)
    hash_M = pq.read_table(home / "items.parquet", columns=["item_hash"]).column(0).to_numpy()
    last = (DAY - date(1970, 1, 1)).days
    user_ids = [f"user-{number:07d}" for number in range(users)]
    user_hash = np.array([hash_id(u) for u in user_ids], dtype=np.int64)
    writer = CrossWriter(home / "crosses", first_day=last - DAYS + 1, last_day=last)
    events = 20 * users
    user_E, item_E = user_hash[rng.integers(0, users, events)], hash_M[rng.integers(0, len(hash_M), events)]
    ts_E = rng.integers((last - DAYS + 1) * SECONDS_PER_DAY, (last + 1) * SECONDS_PER_DAY, events)
    shards = config.dataset.u2i.shards
    for key in spec.u2i_keys:
        key_E = item_E if key == "item" else 1 + item_E % 2000
        for shard in range(shards):
            mine = user_E % shards == shard
            writer.put_u2i(key, shard, user_E[mine], key_E[mine], ts_E[mine], np.ones(int(mine.sum())))
    pop = rng.poisson(3, (2, len(hash_M))).astype(np.float32)
    writer.put_pop(np.array([last - 1, last]), np.sort(hash_M), dict.fromkeys(spec.windows, pop))
    none = np.zeros(0, dtype=np.int64)
    writer.put_offers(none, none, {o.name: none.astype(np.int16) for o in spec.offers})
    writer.close(spec, pop_first_day=last - 1, shards=shards)
    length = rng.integers(0, spec.history_length, users)
    bounds = np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
    history = hash_M[rng.integers(0, len(hash_M), int(length.sum()))]
    state: dict[str, Any] = {"user_id": user_ids, "user_hash": user_hash, "ts": np.full(users, (last + 1) * SECONDS_PER_DAY)}
    state |= {"offer_hash": np.zeros(users, dtype=np.int64)}
    state |= {
        f"{kind}_{f.name}": skewed(rng, f.buckets, users)
        for kind, some in (("u", spec.user_fields), ("c", spec.context_fields))
        for f in some
    }
    state |= {"hist_item": pa.ListArray.from_arrays(pa.array(bounds), pa.array(history))}
    state |= {"hist_ts": pa.ListArray.from_arrays(pa.array(bounds), pa.array(np.full(len(history), last * SECONDS_PER_DAY)))}
    pq.write_table(pa.table(state), home / "user_state.parquet")
    torch.manual_seed(5)
    model = Dig(config.model, spec, seed=5)
    part = ItemTable.from_arrow(pq.read_table(home / "items.parquet").slice(0, SAMPLE), spec)
    model.set_items(part)
    model.build_codebooks(5)
    save_bundle(home / "bundle", model.eval(), part, {"date": DAY.isoformat()})


class Memory:
    """Peak of this process while it is watched, in MB: all of it, and what is no mapped file."""

    def __init__(self) -> None:
        self.before = self._read()
        self.anonymous = self.before["RssAnon"]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @staticmethod
    def _read() -> dict[str, float]:
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return {line[0].rstrip(":"): float(line[1]) / 1024 for line in lines if line[0] in ("RssAnon:", "VmRSS:")}

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.anonymous = max(self.anonymous, self._read()["RssAnon"])

    def figures(self) -> dict[str, float]:
        """Stop; figures above what the process held before."""
        self._stop.set()
        self._thread.join()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "before_mb": round(self.before["VmRSS"], 1),
            "peak_rss_mb": round(peak, 1),
            "grown_anonymous_mb": round(self.anonymous - self.before["RssAnon"], 1),
        }


def build(home: Path, config: Config) -> dict[str, Any]:
    """Arrow to a verified generation, timed by step."""
    from dig_models.bundle import load_bundle
    from dig_models.index.catalogue import spill_items
    from dig_models.index.writer import Release, locked, scratch
    from dig_models.index.writer import build as build_generation

    root, spec = home / "index", config.dataset.spec()
    bundle = load_bundle(home / "bundle", spec)
    state = pq.read_table(home / "user_state.parquet")
    memory, start = Memory(), time.perf_counter()
    with locked(root), scratch(root) as folder:
        items = spill_items(lambda name: pq.read_table(home / "items.parquet", columns=[name]).column(0), spec, folder)
        spilled = time.perf_counter() - start
        release = Release(
            day=DAY, model_name="dig", model_version="1", bundle=bundle, items=items, user_state=state, cross_arrays=home / "crosses"
        )
        generation = build_generation(root, release)
    seconds = time.perf_counter() - start
    (root / "CURRENT").write_text(generation + "\n")
    size = sum(p.stat().st_size for p in (root / "generations" / generation).rglob("*") if p.is_file())
    return {
        "build_seconds": round(seconds, 2),
        "columns_seconds": round(spilled, 2),
        "generation_mb": round(size / 1e6, 1),
        **memory.figures(),
    }


def check(home: Path, config: Config) -> dict[str, Any]:
    """``verify``: every byte and every value."""
    from dig_models.index.verify import verify

    memory, start = Memory(), time.perf_counter()
    verify(home / "index")
    return {"verify_seconds": round(time.perf_counter() - start, 2), **memory.figures()}


def opened(home: Path, config: Config, repeats: int = 30) -> dict[str, Any]:
    """Open it again and again; then the first requests as they are served by default."""
    from dig_models.index.reader import IndexReader

    memory, times = Memory(), []
    for _ in range(repeats):
        start = time.perf_counter()
        reader = IndexReader.open(home / "index")
        times.append(1000 * (time.perf_counter() - start))
    held = memory.figures()
    settings, first = config.retrieve, []
    for _ in range(3):
        start = time.perf_counter()
        reader.retriever.retrieve(
            reader.state, np.array([1]), k=10, beam=settings.beam, rerank=settings.rerank, u2t=config.model.u2t_inference
        )
        first.append(round(1000 * (time.perf_counter() - start), 1))
    return {
        "first_open_ms": round(times[0], 1),
        "open_ms_median": round(statistics.median(times[1:]), 1),
        "open_ms_p95": round(float(np.percentile(times[1:], 95)), 1),
        "request_ms": first,
        **held,
    }


def fresh(home: Path, config: Config) -> dict[str, Any]:
    """A delta generation: a hundredth of the items new, as many withdrawn."""
    from dig_models.index.refresh import Fresh, refresh
    from dig_models.index.writer import locked
    from dig_models.items import ItemTable

    spec, root = config.dataset.spec(), home / "index"
    table = pq.read_table(home / "items.parquet")
    count = len(table) // 100
    arrived = table.slice(0, count)
    ids = [f"new-{number:08d}" for number in range(count)]
    hashes = pa.array([hash_id(i) for i in ids], pa.int64())
    for name, column in (("item_id", pa.array(ids)), ("item_hash", hashes), ("k_item", hashes)):
        if name in arrived.column_names:
            arrived = arrived.set_column(arrived.column_names.index(name), name, column)
    withdrawn = table.column("item_hash").slice(len(table) - count).to_numpy()
    given = Fresh(arrived=ItemTable.from_arrow(arrived, spec), withdrawn=withdrawn)
    memory, start = Memory(), time.perf_counter()
    with locked(root):
        generation = refresh(root, given, spec)
    seconds = time.perf_counter() - start
    size = sum(p.stat().st_size for p in (root / "generations" / generation).rglob("*") if p.is_file() and p.stat().st_nlink == 1)
    return {"refresh_seconds": round(seconds, 2), "own_mb": round(size / 1e6, 1), **memory.figures()}


def alone(phase: Callable[[Path, Config], dict[str, Any]], home: Path, config: Config, threads: int) -> dict[str, Any]:
    """Run a phase in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return pool.apply(phase, (home, config))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds, milliseconds and megabytes over items."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    items = [row["items"] for row in rows]
    curves = (
        ("build (s)", [row["build"]["build_seconds"] for row in rows], 60.0),
        ("open, median (ms)", [row["open"]["open_ms_median"] for row in rows], 50.0),
        ("memory that grows while building (MB)", [row["build"]["grown_anonymous_mb"] for row in rows], None),
    )
    for axis, (name, values, limit) in zip(axes, curves, strict=True):
        axis.plot(items, values, marker="o")
        if limit:
            axis.axhline(limit, color="grey", linestyle="--", label=f"limit at 1M: {limit:g}")
            axis.legend()
        axis.set(xscale="log", xlabel="items", title=name, ylim=(0, None))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Every size, every phase."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    config = settings(args.set)
    rows = []
    for items in sorted(args.items):
        with tempfile.TemporaryDirectory(prefix="dig-index-build-") as folder:
            home = Path(folder) / "world"
            write_world(home, config, items, args.users)
            phases = {"build": build, "verify": check, "open": opened, "refresh": fresh}
            row = {"items": items, **{name: alone(partial(phase), home, config, args.threads) for name, phase in phases.items()}}
        print(json.dumps(row, indent=1), flush=True)
        rows.append(row)
    result = {
        "question": "seconds to build, verify and refresh a generation, milliseconds to open it and to answer first, their memory",
        "machine": {"cpus": os.cpu_count(), "threads": args.threads, "load_average": [round(v, 2) for v in os.getloadavg()]},
        "users": args.users,
        "model": {"levels": config.model.levels, "codes": config.model.codes, "dim": config.model.dim},
        "rows": rows,
    }
    args.out.mkdir(exist_ok=True, parents=True)
    (args.out / "index_build.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, args.out / "index_build.png")


if __name__ == "__main__":
    main()
