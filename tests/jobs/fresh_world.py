"""A promoted version with its index, and items snapshots of some days: what a refresh works on."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.config import Config
from jobs.lake import Lake
from jobs.promotion import move
from tests.jobs import release_world as rw

TODAY = rw.DAY + timedelta(days=1)
LATER = TODAY + timedelta(days=1)
NEW, GONE = ("fresh-1", "fresh-2"), ("i3", "i7")
NEVER_BOUGHT = "dusty"


def snapshot(config: Config, day: date, ids: Iterable[str]) -> None:
    """Commit the items snapshot of a day; some values are missing, some were never seen before."""
    held = list(ids)
    columns = {"manufacturer_id": "m-{}", "department": "d-{}", "brand": "b", "product_category": "cat {}", "package_size": "{} OZ"}
    rows: dict[str, object] = {name: [text.format(len(item)) for item in held] for name, text in columns.items()}
    rows |= {"item_id": held, "product_type": [None if item == "fresh-2" else f"Type/{item} new" for item in held]}
    rows |= {"name": [None if item == "fresh-2" else f"Product {item}" for item in held], "ds": [day.isoformat()] * len(held)}
    with Lake(config.paths.at("lake")).stage_files("items", day) as stage:
        pq.write_table(pa.table(rows), stage.path / "part-0.parquet")
        stage.commit(rows=len(held), job="test", code="", config="", inputs={})


def make(home: Path, versions: int = 1) -> rw.ReleaseWorld:
    """Version 1 is champion and serves the items of ``rw.DAY``; on the next day two are new and two are gone."""
    world = rw.make(home, versions)
    move(world.config, world.pairs[0], rw.asks(reason="the first"))
    snapshot(world.config, rw.DAY, [*rw.ITEMS, NEVER_BOUGHT])
    snapshot(world.config, TODAY, [*(i for i in rw.ITEMS if i not in GONE), NEVER_BOUGHT, *NEW])
    return world
