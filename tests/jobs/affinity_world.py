"""A lake that a training with the affinity cross can run on: that of ``train_world``, and ``u2i_daily`` of every day."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa

from dig_models.features import SECONDS_PER_DAY, hash_id
from jobs.config import Config
from jobs.dates import days_between
from jobs.lake import Lake
from tests.jobs import evaluation_world as ew
from tests.jobs import train_world as tw

DAY = tw.DAY
ON = "model.affinity.enabled=true"
SETS = (ON, "model.affinity.ridge=5")
TYPES = {"user_hash": pa.int64(), "key_name": pa.string(), "key": pa.int64(), "ts": pa.int64(), "events": pa.float64()}


def settings(home: Path, *sets: str) -> Config:
    return tw.settings(home, *SETS, *sets)


def build(home: Path, planted: np.ndarray | None = None) -> Config:
    """The lake; ``planted`` are further events (user, item, ts) that ``u2i_daily`` alone knows of."""
    tw.build(home)
    config, whole = settings(home), world(home)
    ew.publishable(whole)
    dated = whole.table.append_column("ds", pa.array([DAY.isoformat()] * len(whole.table)))
    ew.commit(Lake(config.paths.at("lake")), "item_features", DAY, dated)
    lake, window, events = Lake(config.paths.at("lake")), config.run_window(DAY), ew.simulate(DAY, 0)
    tw.stamp(lake, "item_features", config.dataset.rows_digest())
    tw.stamp(lake, "user_state", config.dataset.rows_digest())
    known = events if planted is None else np.concatenate([events, planted])
    for day in days_between(window.events_first, window.eval_last):
        mine = known[known[:, 2] // SECONDS_PER_DAY == ew.epoch_day(day)]
        ew.commit(lake, "u2i_daily", day, daily(mine))
    tw.stamp(lake, "u2i_daily", config.dataset.rows_digest())
    return config


def daily(events: np.ndarray) -> pa.Table:
    """Rows of ``u2i_daily``: by item, and by a key that says nothing of items."""
    rows = []
    for user, item, ts in events.tolist():
        row = {"user_hash": hash_id(f"user-{user}"), "ts": ts, "events": 1.0}
        rows += [row | {"key_name": "item", "key": hash_id(f"item-{item}")}, row | {"key_name": "type", "key": hash_id(f"type-{item % 8}")}]
    return pa.Table.from_pylist(rows, schema=pa.schema(list(TYPES.items())))


def world(home: Path) -> ew.World:
    """What was built, as ``evaluation_world`` has it."""
    config = settings(home)
    spec, lake = config.dataset.spec(), Lake(config.paths.at("lake"))
    table = ew.item_features(spec)
    items = ew.ItemTable.from_arrow(table, spec)
    store = ew.CrossStore.open(lake.folder("cross_arrays", DAY), spec, items)
    return ew.World(config, spec, table, items, ew.simulate(DAY, 0), store)


def pair_bought(one: int, other: int, days: list[date]) -> np.ndarray:
    """Events of a relation between two items: on each day all users of even number buy both, at a second when nobody else comes."""
    seconds = [(ew.epoch_day(day) + 1) * SECONDS_PER_DAY - 1 for day in days]
    rows = [(user, item, second) for second in seconds for user in range(0, ew.USERS, 2) for item in (one, other)]
    return np.array(rows, dtype=np.int64)
