"""How much of a training step is spent waiting for data when batches are streamed from Parquet.

Two arms take the same steps with the same model: one streams batches as training does (row groups, shuffle, look-ups of random
negatives, a prefetch thread), the other has just these batches in memory before the clock starts. Arms take turns; figures are
medians over rounds. Run alone, or with two ranks:

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.training [--date 2017-11-15]

The lake must hold what training for the date reads. Writes ``benchmarks/results/training.json`` and ``training.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dig_models.affinity import Affinity, Neighbours
from dig_models.batch import Batch
from dig_models.bundle import NEIGHBOURS
from dig_models.crosses import CrossStore
from dig_models.dig import Dig
from dig_models.items import ItemTable
from dig_models.train import optim
from dig_models.train.data import pair_lookup, popular_chances
from dig_models.train.distributed import World, process_group
from dig_models.train.stream import ExampleStream, Prefetcher, row_groups
from jobs.config import Config, load
from jobs.neighbours import neighbours as fit_neighbours
from jobs.train_inputs import TrainInputs, train_inputs

RESULTS = Path(__file__).parent / "results"
LIMIT = 0.10


class Arm:
    """A model that takes the joint phase's steps and keeps time of each."""

    def __init__(self, config: Config, items: ItemTable, stream: ExampleStream, neighbours: Neighbours | None) -> None:
        torch.manual_seed(config.train.seed)
        self.model = Dig(config.model, stream.spec, seed=config.train.seed)
        self.model.neighbours = neighbours
        self.model.set_items(items)
        self.model.build_codebooks(config.train.seed)
        self.ddp = DistributedDataParallel(self.model, forward_sync_buffers=False)
        self.optimizer = optim.build(self.model, config.train)
        self.stream = stream
        self.clip = config.train.grad_clip
        self.depth = config.train.prefetch

    def step(self, batch: Batch) -> None:
        """One optimizer step and one step of the codebooks."""
        self.optimizer.zero_grad(set_to_none=True)
        self.ddp(batch, "joint", self.stream.lookup)["total"].backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.model.update_codebooks()

    def streamed(self, steps: int) -> tuple[list[float], float]:
        """Seconds of each step (waiting included), and seconds waited in all."""
        with Prefetcher(self.stream.epoch(0), self.depth) as batches:
            seconds = self._take(iter(batches), steps)
            return seconds, batches.wait_seconds

    def in_memory(self, batches: list[Batch]) -> list[float]:
        """Seconds of each step on batches that are there already."""
        return self._take(iter(batches), len(batches))

    def _take(self, batches: Iterator[Batch], steps: int) -> list[float]:
        seconds = []
        for _ in range(steps):
            since = time.perf_counter()
            self.step(next(batches))
            seconds.append(time.perf_counter() - since)
        return seconds


def item_neighbours(inputs: TrainInputs, world: World) -> Neighbours | None:
    """The affinity's matrix that training would use; None where the model reads none."""
    if not inputs.config.model.affinity.enabled:
        return None
    with tempfile.TemporaryDirectory(prefix="dig-training-") as folder:
        return world.handed(fit_neighbours(inputs, Path(folder) / NEIGHBOURS) if world.leads else None)


def make_stream(inputs: TrainInputs, items: ItemTable, world: World, affinity: Affinity | None = None) -> ExampleStream:
    """The stream that training would use."""
    config, spec = inputs.config, inputs.config.dataset.spec()
    store = CrossStore.open(inputs.lake.folder("cross_arrays", inputs.day), spec, items)
    return ExampleStream(
        groups=row_groups(inputs.fit),
        spec=spec,
        items=items,
        lookup=pair_lookup(store, spec),
        keep_rate=config.dataset.sampling.exposed_negative_rate,
        random_negatives=config.train.random_negatives,
        history_negatives=config.train.history_negatives,
        popular_negatives=config.train.popular_negatives,
        chance_N=popular_chances(store, spec, inputs.first_second),
        open_positives=config.model.open_positives,
        seed=config.train.seed,
        rank=world.rank,
        world=world.size,
        requests_per_batch=config.train.requests_per_batch,
        shuffle_row_groups=config.train.shuffle_row_groups,
        affinity=affinity,
    )


def measure(inputs: TrainInputs, world: World, steps: int, rounds: int) -> dict[str, Any]:
    """Both arms in turn; figures of rank 0."""
    items = ItemTable.from_arrow(inputs.items_shown(), inputs.config.dataset.spec())
    neighbours = item_neighbours(inputs, world)
    stream = make_stream(inputs, items, world, None if neighbours is None else neighbours.over(items.hash_N))
    steps = min(steps, stream.plan(0).steps)
    batches = [batch for batch, _ in zip(stream.epoch(0), range(steps), strict=False)]
    arm = Arm(inputs.config, items, stream, neighbours)
    arm.in_memory(batches[: max(steps // 10, 1)])  # warm caches and shards
    streamed, memory, waits = [], [], []
    for _ in range(rounds):
        seconds, waited = arm.streamed(steps)
        streamed.append(statistics.median(seconds))
        waits.append(waited / sum(seconds))
        memory.append(statistics.median(arm.in_memory(batches)))
    since = time.perf_counter()
    made = sum(batch.rows for batch, _ in zip(stream.epoch(0), range(steps), strict=False))
    load_step = (time.perf_counter() - since) / steps
    return {
        "date": inputs.day.isoformat(),
        "dataset": inputs.config.dataset.name,
        "catalogue": len(items) - 1,
        "ranks": world.size,
        "threads_per_rank": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "steps": steps,
        "rounds": rounds,
        "requests_per_batch": inputs.config.train.requests_per_batch,
        "rows_per_batch": made / steps,
        "streamed_ms": [1000 * s for s in streamed],
        "memory_ms": [1000 * s for s in memory],
        "wait_shares": waits,
        "median": {
            "streamed_ms": 1000 * statistics.median(streamed),
            "memory_ms": 1000 * statistics.median(memory),
            "wait_share": statistics.median(waits),
            "slower_than_memory": statistics.median(streamed) / statistics.median(memory) - 1,
            "making_a_batch_ms": 1000 * load_step,
        },
        "limit": LIMIT,
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """Step time of each round in both arms, with the waiting of the streamed one."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    streamed, memory, waits = (found[k] for k in ("streamed_ms", "memory_ms", "wait_shares"))
    at = range(1, len(streamed) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(at, streamed, "o-", label="streamed from Parquet")
    left.plot(at, memory, "s-", label="already in memory")
    left.set(xlabel="round", ylabel="median step, ms", ylim=(0, None), title=f"{found['ranks']} rank(s), {found['cores']} cores")
    left.legend()
    right.bar(at, [100 * w for w in waits], color="tab:blue")
    right.axhline(100 * LIMIT, color="tab:red", linestyle="--", label="limit")
    right.set(xlabel="round", ylabel="waiting for data, % of a step", title="streamed")
    right.legend()
    for axis in (left, right):
        axis.set_xticks(list(at))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, write the results, say what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--date", type=date.fromisoformat)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    config = load(args.config, args.set)
    inputs = train_inputs(config, args.date or config.dataset.default_date)
    with process_group(config.train.backend, config.train.threads_per_rank) as world:
        found = measure(inputs, world, args.steps, args.rounds)
        if world.leads:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "training.json").write_text(json.dumps(found, indent=2) + "\n")
            plot(found, RESULTS / "training.png")
            print(json.dumps(found["median"], indent=2))
        world.barrier()


if __name__ == "__main__":
    main()
