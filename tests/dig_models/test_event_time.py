"""Event-level time in the cross arrays: what happens at or after a request's second does not reach it, not even on its own day."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dig_models.cross_files import CrossWriter
from dig_models.crosses import CrossStore
from dig_models.features import SECONDS_PER_DAY, FeatureSpec
from dig_models.items import ItemTable

FIRST, LAST, SHARDS, USERS = 17_000, 17_004, 2, 4
Events = NDArray[np.int64]  # (E, 3): user, item row, second


def sittings(items: ItemTable, seed: int = 0) -> Events:
    """Users who do most of what they do in a few seconds of one day, many things in the same second."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(USERS):
        for day in rng.choice(np.arange(FIRST, LAST + 1), 2, replace=False):
            seconds = day * SECONDS_PER_DAY + np.array([0, SECONDS_PER_DAY - 1, *rng.integers(0, SECONDS_PER_DAY, 4)])
            rows += [(user, int(rng.integers(1, len(items))), int(s)) for s in np.repeat(seconds, 5)]
    return np.array(rows, dtype=np.int64)


def store_of(path: Path, spec: FeatureSpec, items: ItemTable, events: Events) -> CrossStore:
    """Cross arrays of some events; popularity is none, because it is of closed days and no matter of seconds."""
    writer = CrossWriter(path, first_day=FIRST, last_day=LAST)
    for k, key in enumerate(spec.u2i_keys):
        of_key = np.stack([events[:, 0], items.key_KN[k, events[:, 1]], events[:, 2]], axis=1).reshape(-1, 3)
        rows, count = np.unique(of_key, axis=0, return_counts=True)
        for shard in range(SHARDS):
            mine = rows[:, 0] % SHARDS == shard
            writer.put_u2i(key, shard, rows[mine, 0], rows[mine, 1], rows[mine, 2], count[mine].astype(float))
    days = np.arange(FIRST - 1, LAST + 1)  # a request of the first day asks for the end of the day before
    writer.put_pop(days, items.hash_N[1:], {w: np.zeros((len(days), len(items) - 1), np.float32) for w in spec.windows})
    none = np.zeros(0, dtype=np.int64)
    writer.put_offers(none, none, {o.name: none.astype(np.int16) for o in spec.offers})
    writer.close(spec, pop_first_day=FIRST - 1, shards=SHARDS)
    return CrossStore.open(path, spec, items)


def told(store: CrossStore, items: ItemTable, user: int, ts: int) -> list[NDArray[np.generic]]:
    """Everything that the arrays say of a user at a second."""
    rows = np.arange(1, len(items), dtype=np.int64)
    pairs = store.pairs(np.full(len(rows), user), np.full(len(rows), ts), np.zeros(len(rows), np.int64), rows)
    return [pairs, store.catalogue(user, ts, 0), store.bought(user, ts), *(part for both in store.profile(user, ts) for part in both)]


def moments(events: Events) -> list[tuple[int, int]]:
    """Each second at which a user did something, the one before and the one after it."""
    asked = {(int(u), int(t) + d) for u, _, t in events for d in (-1, 0, 1)}
    low, high = FIRST * SECONDS_PER_DAY, (LAST + 1) * SECONDS_PER_DAY
    return sorted((u, t) for u, t in asked if low <= t < high)


def test_what_happens_at_or_after_a_second_changes_nothing_that_is_known_at_it(tmp_path: Path, spec: FeatureSpec, items: ItemTable) -> None:
    events = sittings(items)
    whole = store_of(tmp_path / "whole", spec, items, events)
    for at, (user, ts) in enumerate(np.random.default_rng(3).permutation(moments(events))[:8].tolist()):
        before = store_of(tmp_path / str(at), spec, items, events[events[:, 2] < ts])
        rest = events.copy()
        rest[rest[:, 2] >= ts, 1] = np.random.default_rng(at).integers(1, len(items), int((rest[:, 2] >= ts).sum()))
        other = store_of(tmp_path / f"other-{at}", spec, items, rest)
        expected = told(before, items, user, ts)
        for store in (whole, other):
            # Keys that only later events have are listed with "never"; what is known of the others is the same to the bit.
            found = told(store, items, user, ts)
            for a, b in zip(found[:3], expected[:3], strict=True):
                np.testing.assert_array_equal(a, b)


def test_an_event_sees_every_earlier_second_of_its_day_and_none_of_its_own(tmp_path: Path, spec: FeatureSpec, items: ItemTable) -> None:
    events = sittings(items, seed=1)
    store = store_of(tmp_path / "s", spec, items, events)
    column, days = spec.raw_cross_names.index(f"u2i_item_n_{min(spec.windows)}"), spec.raw_cross_names.index("u2i_item_days")
    same_day = 0
    for user, item, ts in events:
        raw_NW = store.catalogue(int(user), int(ts), 0)
        mine = events[events[:, 0] == user]
        for row in {int(item), *mine[:, 1].tolist()}:
            earlier = mine[(mine[:, 1] == row) & (mine[:, 2] < ts), 2]
            assert raw_NW[row, column] == len(earlier)  # the window of days is wider than the world
            assert raw_NW[row, days] == pytest.approx((ts - earlier.max()) / SECONDS_PER_DAY if len(earlier) else -1.0)
            same_day += int((earlier // SECONDS_PER_DAY == ts // SECONDS_PER_DAY).sum())
    assert same_day > 100  # the test is about sittings: it must have met some
