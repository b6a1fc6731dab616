"""A lake that a training can run on, small enough for seconds."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa

from jobs.config import Config
from jobs.dates import days_between
from jobs.files import replace_text
from jobs.lake import MARKER, Lake
from tests.jobs import evaluation_world as ew

DAY = ew.DAY
SETS = (
    "window.train_days=8",
    "window.validation_days=2",
    "window.eval_days=2",
    "train.epochs=1",
    "train.requests_per_batch=8",
    "train.random_negatives=6",
    "train.checkpoint_steps=5",
    "train.ranks=1",
    "dataset.sampling.exposed_negative_rate=1.0",
)


def settings(home: Path, *sets: str) -> Config:
    return ew.settings(home, *SETS, *sets)


def build(home: Path, *, days: tuple[date, ...] = (DAY,)) -> Config:
    """Everything that training for ``days`` reads, with the digests that the feature jobs would leave."""
    config = settings(home)
    spec, lake = config.dataset.spec(), Lake(config.paths.at("lake"))
    table = ew.item_features(spec)
    items = ew.ItemTable.from_arrow(table, spec)
    for day in days:
        events, window = ew.simulate(day, 0), config.run_window(day)
        with lake.stage_files("cross_arrays", day) as stage:
            ew.write_crosses(stage.path, spec, items, events, day)
            stage.commit(rows=len(events), job="test", code="", config=config.dataset.rows_digest(), inputs={})
        store = ew.CrossStore.open(lake.folder("cross_arrays", day), spec, items)
        world = ew.World(config, spec, table, items, events, store)
        for of in days_between(window.train_first - timedelta(days=1), day):
            ew.commit(lake, "item_features", of, table.append_column("ds", pa.array([of.isoformat()] * len(table))))
        for of in days_between(window.train_first, window.eval_last):
            ew.commit(lake, "examples", of, ew.examples(world, of))
    for name in ("examples", "item_features"):
        stamp(lake, name, config.dataset.rows_digest())
    return config


def stamp(lake: Lake, table: str, config: str) -> None:
    """Set the settings digest of every day of a table."""
    for day in lake.days(table):
        marker = lake.marker(table, day)
        assert marker is not None
        replace_text(lake.day_dir(table, day) / MARKER, replace(marker, config=config).text())


def before(days: int) -> date:
    return DAY - timedelta(days=days)
