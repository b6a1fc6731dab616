"""Worlds in which nothing can be known, or only from the future: what a leak would show in."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import evaluation_world as ew
import numpy as np
import pyarrow as pa

from dig_models.crosses import CrossStore
from dig_models.features import SECONDS_PER_DAY
from dig_models.items import ItemTable
from jobs.dates import days_between
from jobs.lake import Lake

LAST_SECOND = (ew.epoch_day(ew.DAY) + 1) * SECONDS_PER_DAY - 1
"""Nobody asks for anything as late as this: visits are between 8 and 20 o'clock."""


def build(home: Path, events: np.ndarray, told: np.ndarray | None = None) -> ew.World:
    """A lake whose visits and labels are those of ``events``.

    Args:
        home: a place of its own.
        events: (user, item, ts) as ``evaluation_world.simulate`` gives them.
        told: what cross arrays and histories know besides ``events``; visits at the times of ``told`` are none.
    """
    config = ew.settings(home)
    spec, lake, window = config.dataset.spec(), Lake(config.paths.at("lake")), config.run_window(ew.DAY)
    table = ew.item_features(spec)
    items = ItemTable.from_arrow(table, spec)
    known = events if told is None else np.concatenate([events, told])
    known = known[np.argsort(known[:, 2], kind="stable")]
    with lake.stage_files("cross_arrays", ew.DAY) as stage:
        ew.write_crosses(stage.path, spec, items, known, ew.DAY)
        stage.commit(rows=len(known), job="test", code="", config="", inputs={})
    store = CrossStore.open(lake.folder("cross_arrays", ew.DAY), spec, items)
    world = ew.World(config, spec, table, items, known, store)
    visits = {(f"user-{u}", int(t)) for u, _, t in events}
    for day in days_between(window.eval_first - timedelta(days=7), window.eval_last):
        rows = [r for r in ew.examples(world, day).to_pylist() if (r["user_id"], r["ts"]) in visits]
        ew.commit(lake, "examples", day, pa.Table.from_pylist(rows, schema=ew.example_schema(spec)))
    return world


def shuffled_within_user(seed: int) -> np.ndarray:
    """Events of a world without anything to learn: each user's labels are dealt anew over all that he was offered in all his visits.

    What was bought beside the offers is left out, so that every purchase is one of the dealt labels; crosses, histories and popularity
    are made from what was dealt, as the feature jobs would.
    """
    events, rng, rows = ew.simulate(ew.DAY, seed), np.random.default_rng([seed, 1]), []
    by_hash = sorted(
        range(ew.ITEMS), key=lambda i: ew.hash_id(f"item-{i}")
    )  # the order of an item table, whose thirds are on offer in turn
    for user in range(ew.USERS):
        mine = events[events[:, 0] == user]
        shown = [(item, int(ts)) for ts in np.unique(mine[:, 2]) for item in by_hash[int(ts) // SECONDS_PER_DAY % 7 % 3 :: 3]]
        bought = {(int(i), int(t)) for _, i, t in mine}
        label = rng.permutation([s in bought for s in shown])
        rows += [(user, item, ts) for (item, ts), taken in zip(shown, label, strict=True) if taken]
    return np.array(sorted(rows, key=lambda r: r[2]), dtype=np.int64)


def seen_a_second_early(world: ew.World, path: Path) -> CrossStore:
    """Cross arrays with every event a second earlier: a request then sees its own labels, which is the leak to be found."""
    early = world.events - np.array([0, 0, 1])
    ew.write_crosses(path, world.spec, world.items, early, ew.DAY)
    return CrossStore.open(path, world.spec, world.items)
