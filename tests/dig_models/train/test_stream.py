"""Sharding, shuffling, resuming and memory of the stream."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny, example_table

from dig_models.batch import Batch
from dig_models.train.data import ExamplesError
from dig_models.train.stream import ExampleStream, Prefetcher, RowGroup, assign, plan_epoch, plan_in_order, row_groups

sizes = st.lists(st.integers(1, 400), min_size=1, max_size=60)


def groups_of(counts: list[int]) -> list[RowGroup]:
    return [RowGroup(path=f"f{i // 3}", index=i % 3, rows=n) for i, n in enumerate(counts)]


@given(sizes, st.integers(1, 5), st.integers(0, 3))
def test_every_row_group_goes_to_exactly_one_rank(counts: list[int], world: int, epoch: int) -> None:
    groups = groups_of(counts)
    shares = assign(groups, seed=1, epoch=epoch, world=world)
    assert Counter(g for share in shares for g in share) == Counter(groups)


@settings(deadline=None)
@given(sizes, st.integers(1, 5), st.integers(1, 40), st.integers(1, 4))
def test_all_ranks_take_the_same_steps_and_use_every_request_once(counts: list[int], world: int, batch: int, window: int) -> None:
    groups, common = groups_of(counts), {"seed": 1, "epoch": 2, "world": world, "requests_per_batch": batch, "shuffle_row_groups": window}
    try:
        plans = [plan_epoch(groups, rank=rank, **common) for rank in range(world)]
    except ExamplesError:
        return
    assert len({p.steps for p in plans}) == 1
    assert sum(p.requests for p in plans) == sum(counts)
    for plan in plans:
        bounds = [plan.bound(s) for s in range(plan.steps + 1)]
        assert bounds[0] == 0 and bounds[-1] == plan.requests
        assert all(1 <= b - a <= batch for a, b in pairwise(bounds))
        assert sum(g.rows for w in plan.windows for g in w) == plan.requests


def test_too_few_row_groups_for_the_ranks_is_said() -> None:
    with pytest.raises(ExamplesError, match=r"1 row group.* 2 rank.*train.ranks"):
        plan_epoch(groups_of([50]), seed=0, epoch=0, rank=0, world=2, requests_per_batch=8, shuffle_row_groups=4)
    with pytest.raises(ExamplesError, match="0 row group"):
        plan_epoch([], seed=0, epoch=0, rank=0, world=1, requests_per_batch=8, shuffle_row_groups=4)


def test_the_order_follows_seed_and_epoch() -> None:
    groups, common = groups_of([10] * 20), {"rank": 0, "world": 2, "requests_per_batch": 4, "shuffle_row_groups": 3}
    first = plan_epoch(groups, seed=0, epoch=0, **common)
    assert first == plan_epoch(groups, seed=0, epoch=0, **common)
    assert first.windows != plan_epoch(groups, seed=0, epoch=1, **common).windows
    assert first.windows != plan_epoch(groups, seed=1, epoch=0, **common).windows


def test_validation_covers_everything_even_with_more_ranks_than_row_groups() -> None:
    groups = groups_of([7, 3])
    plans = [plan_in_order(groups, rank=r, world=4, requests_per_batch=4) for r in range(4)]
    assert sorted(g for p in plans for w in p.windows for g in w) == groups
    assert [p.steps for p in plans if not p.requests] == [0, 0]


def keys(batches: Iterator[Batch]) -> list[tuple[int, int]]:
    return [(int(u), int(t)) for b in batches for u, t in zip(b.user_hash_B, b.ts_B, strict=True)]


def stored(tiny: Tiny, kind: str = "fit") -> list[tuple[int, int]]:
    import pyarrow.parquet as pq

    tables = [pq.read_table(f) for folder in tiny.folders(kind) for f in sorted(Path(folder).glob("*.parquet"))]
    return [(r["user_hash"], r["ts"]) for t in tables for r in t.select(["user_hash", "ts"]).to_pylist()]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_holds_every_request_once_in_mixed_order(tiny: Tiny, world: int) -> None:
    shares = [keys(tiny.stream(rank=r, world=world).epoch(0)) for r in range(world)]
    assert Counter(k for share in shares for k in share) == Counter(stored(tiny))
    assert shares[0] != sorted(shares[0], key=stored(tiny).index)
    assert shares[0] != keys(tiny.stream(rank=0, world=world).epoch(1))


def equal(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in a.__dataclass_fields__)


def test_starting_at_any_step_gives_the_rest_of_the_epoch_bit_for_bit(tiny: Tiny) -> None:
    stream = tiny.stream(rank=1, world=2)
    whole = list(stream.epoch(1))
    assert len(whole) == stream.plan(1).steps
    for start in range(len(whole) + 1):
        rest = list(stream.epoch(1, start))
        assert len(rest) == len(whole) - start
        assert all(equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_starting_late_reads_no_row_group_that_lies_before(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from dig_models.train import stream as module

    stream, seen, read = tiny.stream(), [], module._read
    monkeypatch.setattr(module, "_read", lambda window, spec: seen.append(window) or read(window, spec))
    plan = stream.plan(0)
    list(stream.epoch(0, plan.steps - 1))
    assert seen == list(plan.windows[-1:])


def test_negatives_differ_between_ranks_and_steps_but_not_between_runs(tiny: Tiny) -> None:
    def negatives(rank: int) -> list[list[int]]:
        return [b.item_R[b.source_R == 2].tolist() for b in tiny.stream(rank=rank, world=2).epoch(0)]

    assert negatives(0) == negatives(0)
    assert negatives(0) != negatives(1)
    assert negatives(0)[0] != negatives(0)[1]


def test_a_pass_in_order_is_the_stored_order_and_always_the_same(tiny: Tiny) -> None:
    stream = tiny.stream("validation")
    assert keys(stream.in_order()) == stored(tiny, "validation")
    assert all(equal(a, b) for a, b in zip(stream.in_order(), stream.in_order(), strict=True))


def test_a_truncated_file_is_named(tiny: Tiny, tmp_path: Path) -> None:
    cut = tmp_path / "part-0.parquet"
    cut.write_bytes((Path(tiny.folders()[0]) / "part-0.parquet").read_bytes()[:-100])
    with pytest.raises(ExamplesError, match=r"part-0.parquet.*rebuild the day"):
        row_groups([str(tmp_path)])


def test_an_empty_partition_has_no_row_groups(tiny: Tiny, tmp_path: Path) -> None:
    other = Tiny(tmp_path, tiny.spec, tiny.items, tiny.store)
    table = example_table(tiny.spec, tiny.items, tiny.store, synthetic.DAY, 2)
    assert row_groups([str(other.write(synthetic.DAY, table.slice(0, 0)))]) == []


def peak_of_an_epoch(stream: ExampleStream) -> int:
    tracemalloc.start()
    pa.default_memory_pool().release_unused()
    before, most = pa.total_allocated_bytes(), 0
    for _ in stream.epoch(0):
        most = max(most, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1] + most
    tracemalloc.stop()
    return peak


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files(tiny: Tiny, tmp_path: Path) -> None:
    """Ten times the files take no more memory than a fifth above; the row groups are large enough to be what is measured."""
    table = pa.concat_tables([example_table(tiny.spec, tiny.items, tiny.store, synthetic.DAY, 40, seed=s) for s in range(2)] * 8)
    peaks = {}
    for files in (4, 40):
        other = Tiny(tmp_path / str(files), tiny.spec, tiny.items, tiny.store)
        for i in range(files):
            other.write(synthetic.DAY - timedelta(days=i), table, rows=len(table))
        peaks[files] = peak_of_an_epoch(other.stream(requests_per_batch=64))
    assert peaks[4] > 1e6
    assert peaks[40] < 1.2 * peaks[4]


def test_prefetching_keeps_order_and_counts_waiting(tiny: Tiny) -> None:
    def slow() -> Iterator[Batch]:
        for batch in tiny.stream().epoch(0):
            time.sleep(0.01)
            yield batch

    with Prefetcher(slow(), 2) as batches:
        got = list(batches)
    assert all(equal(a, b) for a, b in zip(got, tiny.stream().epoch(0), strict=True))
    assert batches.wait_seconds > 0.05


def test_an_error_of_the_loader_is_raised_where_the_batch_was_wanted(tiny: Tiny) -> None:
    def broken() -> Iterator[Batch]:
        yield next(iter(tiny.stream().epoch(0)))
        raise ExamplesError("day is damaged")

    with Prefetcher(broken(), 2) as batches:
        got = iter(batches)
        next(got)
        with pytest.raises(ExamplesError, match="day is damaged"):
            next(got)


def test_leaving_early_stops_the_thread(tiny: Tiny) -> None:
    with Prefetcher(tiny.stream().epoch(0), 1) as batches:
        next(iter(batches))
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]
