"""Batches streamed from Parquet: sharded by row group, shuffled, prepared ahead by a thread.

The row group is the unit of sharding and of reading. Which rank reads which row group, in which order, and where every batch
begins is a pure function of (the files' metadata, seed, epoch, rank, world): training resumes at any step without replaying
what came before, and needs no state but the step number. Random negatives are drawn from a generator that is keyed by (seed, epoch, step,
rank). At most one shuffle window of row groups is decoded at a time, so memory does not grow with the number of files.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dig_models.affinity import Affinity
from dig_models.batch import Batch
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.train.data import ExamplesError, RequestTable, collate, request_columns
from dig_models.u2t import PairLookup

_ASSIGN, _ORDER, _NEGATIVES = 1, 2, 3


@dataclass(frozen=True, kw_only=True, order=True)
class RowGroup:
    """One row group of a Parquet file; ``rows`` is its number of requests."""

    path: str
    index: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one rank reads in one epoch.

    Attributes:
        windows: shuffle windows, in reading order; the requests of a window are mixed.
        requests: requests of this rank.
        steps: batches of every rank; batch ``s`` holds requests ``bound(s)`` to ``bound(s + 1)`` of the mixed sequence.
    """

    windows: tuple[tuple[RowGroup, ...], ...]
    requests: int
    steps: int

    def bound(self, step: int) -> int:
        """Position of the first request of a batch; batch sizes differ by at most one."""
        return step * self.requests // self.steps if self.steps else 0


def row_groups(folders: Sequence[str]) -> list[RowGroup]:
    """All row groups that hold requests, in the order of folders and file names; only footers are read.

    Raises:
        ExamplesError: a file is not whole.
    """
    found = []
    for folder in folders:
        for file in sorted(Path(folder).glob("*.parquet")):
            try:
                meta = pq.read_metadata(file)
            except (pa.ArrowInvalid, OSError) as error:
                raise ExamplesError(f"{file}: no whole Parquet file ({str(error).splitlines()[0]}); rebuild the day") from None
            sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
            found += [RowGroup(path=str(file), index=i, rows=n) for i, n in enumerate(sizes) if n]
    return found


def assign(groups: Sequence[RowGroup], *, seed: int, epoch: int, world: int) -> list[list[RowGroup]]:
    """Row groups of each rank, every one exactly once; sizes are balanced (largest first to the least loaded rank), the order is random."""
    order = np.random.default_rng([seed, epoch, _ASSIGN]).permutation(len(groups))
    loads = [0] * world
    owner = {}
    for i in sorted(order.tolist(), key=lambda i: -groups[i].rows):
        rank = loads.index(min(loads))
        owner[i] = rank
        loads[rank] += groups[i].rows
    return [[groups[i] for i in order.tolist() if owner[i] == rank] for rank in range(world)]


def plan_epoch(
    groups: Sequence[RowGroup], *, seed: int, epoch: int, rank: int, world: int, requests_per_batch: int, shuffle_row_groups: int
) -> Plan:
    """Training plan of a rank: all ranks take the same number of steps and every request is used exactly once.

    Raises:
        ExamplesError: there are too few row groups to give every rank a request a step.
    """
    shares = assign(groups, seed=seed, epoch=epoch, world=world)
    sizes = [sum(g.rows for g in share) for share in shares]
    steps = -(-max(sizes) // requests_per_batch)
    if min(sizes) < max(steps, 1):
        raise ExamplesError(
            f"{len(groups)} row group(s) with {sum(sizes)} requests cannot be shared by {world} rank(s): the smallest share "
            f"has {min(sizes)} for {steps} steps; lower train.ranks or train.hosts, widen window.train_days or write smaller row groups"
        )
    own = shares[rank]
    windows = tuple(tuple(own[i : i + shuffle_row_groups]) for i in range(0, len(own), shuffle_row_groups))
    return Plan(windows=windows, requests=sizes[rank], steps=steps)


def plan_in_order(groups: Sequence[RowGroup], *, rank: int, world: int, requests_per_batch: int) -> Plan:
    """Plan of one pass in stored order; ranks may differ in steps, and one may have none."""
    own = sorted(assign(groups, seed=0, epoch=0, world=world)[rank])
    requests = sum(g.rows for g in own)
    return Plan(windows=tuple((g,) for g in own), requests=requests, steps=-(-requests // requests_per_batch))


@dataclass(frozen=True, kw_only=True)
class ExampleStream:
    """Batches of examples on disk.

    Attributes:
        groups: see ``row_groups``.
        lookup, keep_rate, random_negatives, history_negatives, popular_negatives, chance_N, open_positives, affinity: see ``collate``.
        seed: of order and negatives; rank and world: which share is this one's.
    """

    groups: Sequence[RowGroup]
    spec: FeatureSpec
    items: ItemTable
    lookup: PairLookup
    keep_rate: float
    random_negatives: int
    open_positives: Literal["all", "organic"]
    seed: int
    rank: int
    world: int
    requests_per_batch: int
    shuffle_row_groups: int
    history_negatives: int = 0
    popular_negatives: int = 0
    chance_N: NDArray[np.float64] | None = None
    affinity: Affinity | None = None

    def plan(self, epoch: int) -> Plan:
        """Training plan of an epoch, see ``plan_epoch``."""
        return plan_epoch(
            self.groups,
            seed=self.seed,
            epoch=epoch,
            rank=self.rank,
            world=self.world,
            requests_per_batch=self.requests_per_batch,
            shuffle_row_groups=self.shuffle_row_groups,
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Shuffled training batches from step ``start`` of an epoch; row groups before it are not read."""
        return self._batches(self.plan(epoch), epoch, start, shuffle=True)

    def in_order(self) -> Iterator[Batch]:
        """One pass over this rank's share in stored order, with the same negatives every time."""
        plan = plan_in_order(self.groups, rank=self.rank, world=self.world, requests_per_batch=self.requests_per_batch)
        return self._batches(plan, 0, 0, shuffle=False)

    def _batches(self, plan: Plan, epoch: int, start: int, *, shuffle: bool) -> Iterator[Batch]:
        step, begin = start, 0  # `begin` is the position of the next window's first request
        held: pa.Table | None = None
        for number, window in enumerate(plan.windows):
            size = sum(g.rows for g in window)
            skip = max(min(plan.bound(step) - begin, size), 0) if held is None else 0
            begin += size
            if skip == size:
                continue
            table = _read(window, self.spec)
            if shuffle:
                table = table.take(np.random.default_rng([self.seed, epoch, self.rank, number, _ORDER]).permutation(size))
            table = table.slice(skip)
            table = table if held is None else pa.concat_tables([held, table])
            first = begin - len(table)
            requests = RequestTable.from_arrow(table, self.spec, self.items)
            while step < plan.steps and plan.bound(step + 1) <= begin:
                index_B = np.arange(plan.bound(step) - first, plan.bound(step + 1) - first)
                yield self._collate(requests, index_B, epoch, step)
                step += 1
            held = table.slice(plan.bound(step) - first)

    def _collate(self, requests: RequestTable, index_B: np.ndarray, epoch: int, step: int) -> Batch:
        key = np.random.SeedSequence([self.seed, epoch, step, self.rank, _NEGATIVES])
        return collate(
            requests,
            index_B,
            spec=self.spec,
            items=self.items,
            lookup=self.lookup,
            keep_rate=self.keep_rate,
            random_negatives=self.random_negatives,
            history_negatives=self.history_negatives,
            popular_negatives=self.popular_negatives,
            chance_N=self.chance_N,
            rng=np.random.Generator(np.random.Philox(key)),
            open_positives=self.open_positives,
            affinity=self.affinity,
        )


def _read(window: Sequence[RowGroup], spec: FeatureSpec) -> pa.Table:
    parts = []
    for group in window:
        try:
            with pq.ParquetFile(group.path) as file:
                parts.append(file.read_row_group(group.index, columns=request_columns(spec), use_threads=False))
        except (pa.ArrowInvalid, OSError) as error:
            raise ExamplesError(f"{group.path}, row group {group.index}: cannot be read ({error}); rebuild the day") from None
    return pa.concat_tables(parts)


@dataclass
class Prefetcher:
    """Runs an iterator in a thread that stays up to ``depth`` batches ahead; use as a context manager.

    Attributes:
        wait_seconds: time that the consumer spent waiting for a batch.
    """

    source: Iterator[Batch]
    depth: int
    wait_seconds: float = 0.0
    _queue: queue.Queue[Batch | BaseException | None] = field(init=False)
    _stop: threading.Event = field(init=False, default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._queue = queue.Queue(maxsize=self.depth)
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            since = time.perf_counter()
            got = self._queue.get()
            self.wait_seconds += time.perf_counter() - since
            if got is None:
                return
            if isinstance(got, BaseException):
                raise got
            yield got

    def _fill(self) -> None:
        last: BaseException | None = None
        try:
            for batch in self.source:
                if not self._put(batch):
                    return
        except BaseException as error:  # raised again where the batch was wanted
            last = error
        self._put(last)

    def _put(self, value: Batch | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(value, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
