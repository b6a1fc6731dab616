"""A small generic data set: an impression log of thirty days, and the settings that describe it."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

TINY_FIRST = date(2024, 3, 1)
TINY_DAYS = 30
TINY_USERS, TINY_ITEMS = 24, 40

#: Settings under which the whole path runs in a minute or two.
PLACE: dict[str, Any] = {
    "dataset": {"name": "tiny", "sampling": {"exposed_negative_rate": 1.0}},
    "spark": {
        "master": "local[2]",
        "driver_memory": "1g",
        "shuffle_partitions": 2,
        "conf": {"spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"},
    },
    "window": {"eval_days": 2, "train_days": 6, "validation_days": 1},
    "model": {"dim": 8, "codes": 4, "encoder_hidden": 8, "experts": 2, "expert_hidden": 8},
    "train": {"epochs": 2, "requests_per_batch": 4},
    "evaluate": {"bootstrap": 20},
    # Forty items and random clicks: what this gate lets through is a path, not a model.
    "gate": {
        "min_auc": 0.0,
        "max_auc_loss": 1.0,
        "min_recall_over_popularity": 0.0,
        "min_new_recall_over_popularity": 0.0,
        "max_recall_loss": 1.0,
        "calibration": [0.0, 1000.0],
        "max_collision_rate": 1.0,
        "min_codes_used": 0.0,
        "min_items": 1,
    },
}


Row = tuple[str, str, str, datetime, int, int, float]


def tiny_rows(first: date = TINY_FIRST) -> list[Row]:
    """An impression log: session, user, product, time, clicked, amount, price; three impressions a session, at most one click."""
    rows = []
    for day in range(TINY_DAYS):
        for user in range(TINY_USERS):
            if (user + day) % 3:
                continue
            start = datetime(first.year, first.month, first.day, 8, user) + timedelta(days=day)
            for place in range(3):
                item = (user * 7 + day * 3 + place * 11) % TINY_ITEMS
                clicked = int(place == (user + day) % 4)
                rows.append((f"s{day}-{user}", f"u{user}", f"i{item}", start + timedelta(minutes=place), clicked, 1 + item % 2, 0.5 + item))
    return rows


def write_events(path: Path, rows: list[Row]) -> None:
    """Write an impression log as the small data set has it."""
    lines = [f"{s},{u},{i},{t.isoformat(sep=' ')},{c},{n},{v}" for s, u, i, t, c, n, v in rows]
    path.write_text("\n".join(["session,person,sku,time,clicked,amount,price", *lines]) + "\n")


def write_tables(folder: Path, first: date = TINY_FIRST) -> Path:
    """Write the raw tables ``events.csv``, ``products.parquet`` and ``people.csv``; returns their folder."""
    write_events(folder / "events.csv", tiny_rows(first))
    items = range(TINY_ITEMS)
    products = {
        "sku": [f"i{i}" for i in items],
        "title": [f"Item {i}" for i in items],
        "kind": [None if i == 0 else f"k{i % 5}" for i in items],
        "maker": [f"m{i % 7}" for i in items],
        "price": [0.5 + i for i in items],
    }
    pq.write_table(pa.table(products), folder / "products.parquet")
    people = [f"u{u},{'young' if u % 2 else 'old'}" for u in range(TINY_USERS)]
    (folder / "people.csv").write_text("\n".join(["person,age", *people]) + "\n")
    return folder


def tiny_dataset(data: Path, first: date = TINY_FIRST) -> dict[str, object]:
    """Settings of the small data set, as a YAML file would hold them."""
    return {
        "name": "tiny",
        "source": {
            "kind": "tables",
            "request": "column",
            "interactions": {
                "path": str(data / "events.csv"),
                "format": "csv",
                "columns": {
                    "request_id": "session",
                    "user_id": "person",
                    "item_id": "sku",
                    "ts": "time",
                    "label": "clicked",
                    "quantity": "amount",
                    "value": "double(price) * double(amount)",
                    "hour": "hour(time)",
                },
            },
            "items": {"path": str(data / "products.parquet"), "columns": {"item_id": "sku"}},
            "users": {"path": str(data / "people.csv"), "format": "csv", "columns": {"user_id": "person"}},
        },
        "first_date": first,
        "last_date": first + timedelta(days=TINY_DAYS - 1),
        "default_date": first + timedelta(days=TINY_DAYS - 1),
        "catalogue": {"window_days": 14, "min_events": 1},
        "item_name": ["title", "kind"],
        "item_fields": [
            {"name": "item_id", "buckets": 64},
            {"name": "kind", "buckets": 16},
            {"name": "words", "column": "title", "kind": "text", "buckets": 64},
            {"name": "price", "kind": "numeric"},
        ],
        "user_fields": [{"name": "user_id", "buckets": 64}, {"name": "age", "buckets": 8}],
        "context_fields": [{"name": "hour", "buckets": 32}],
        "u2i": {"keys": [{"name": "item", "column": "item_id"}, {"name": "kind", "column": "kind"}], "windows": [3, 7], "shards": 2},
        "history": {"length": 5, "days": 7},
    }


def write_tiny_place(folder: Path, data: Path, first: date = TINY_FIRST, **more: Any) -> Path:
    """Write settings of the small data set with a home of its own, ``<folder>/home``.

    Args:
        folder: an empty one.
        data: the raw tables.
        first: their first day.
        more: further sections.

    Returns:
        The settings file.
    """
    (folder / "datasets").mkdir()
    (folder / "datasets" / "tiny.yaml").write_text(yaml.safe_dump(tiny_dataset(data, first), sort_keys=False))
    conf = folder / "local.yaml"
    conf.write_text(yaml.safe_dump({**PLACE, "paths": {"home": str(folder / "home")}, **more}))
    return conf
