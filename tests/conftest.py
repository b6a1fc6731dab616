"""Fixtures of all tests: one Spark session, and a small generic data set with the settings that describe it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.config import Config, load

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TINY_FIRST = date(2024, 3, 1)
TINY_DAYS = 30
TINY_USERS, TINY_ITEMS = 24, 40


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """A small local session with the settings that jobs rely on."""
    from jobs.spark import spark_session

    with spark_session(tiny_session_config(), "tests") as session:
        yield session


def tiny_session_config() -> Config:
    """Settings of the tests' Spark session."""
    return load("conf/local.yaml", ["spark.driver_memory=2g", "spark.shuffle_partitions=2", "spark.master=local[2]"])


def tiny_rows() -> list[tuple[str, str, str, datetime, int, int, float]]:
    """An impression log: session, user, product, time, clicked, amount, price; three impressions a session, at most one click."""
    rows = []
    for day in range(TINY_DAYS):
        for user in range(TINY_USERS):
            if (user + day) % 3:
                continue
            start = datetime(TINY_FIRST.year, TINY_FIRST.month, TINY_FIRST.day, 8, user) + timedelta(days=day)
            for place in range(3):
                item = (user * 7 + day * 3 + place * 11) % TINY_ITEMS
                clicked = int(place == (user + day) % 4)
                rows.append((f"s{day}-{user}", f"u{user}", f"i{item}", start + timedelta(minutes=place), clicked, 1 + item % 2, 0.5 + item))
    return rows


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw tables of the small data set: events.csv, products.parquet, people.csv."""
    folder = tmp_path_factory.mktemp("tiny")
    write_events(folder / "events.csv", tiny_rows())
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


def write_events(path: Path, rows: list[tuple[str, str, str, datetime, int, int, float]]) -> None:
    """Write an impression log as the small data set has it."""
    lines = [f"{s},{u},{i},{t.isoformat(sep=' ')},{c},{n},{v}" for s, u, i, t, c, n, v in rows]
    path.write_text("\n".join(["session,person,sku,time,clicked,amount,price", *lines]) + "\n")


def tiny_dataset(data: Path) -> dict[str, object]:
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
        "first_date": TINY_FIRST,
        "last_date": TINY_FIRST + timedelta(days=TINY_DAYS - 1),
        "default_date": TINY_FIRST + timedelta(days=TINY_DAYS - 1),
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


@pytest.fixture
def tiny_conf(tmp_path: Path, tiny_data: Path) -> Path:
    """A settings file for the small data set with a home of its own; returns ``<tmp>/conf/local.yaml``."""
    (tmp_path / "conf" / "datasets").mkdir(parents=True)
    (tmp_path / "conf" / "datasets" / "tiny.yaml").write_text(yaml.safe_dump(tiny_dataset(tiny_data), sort_keys=False))
    place = {
        "dataset": {"name": "tiny"},
        "paths": {"home": str(tmp_path / "home")},
        "spark": {"master": "local[2]", "driver_memory": "2g", "shuffle_partitions": 2},
        "window": {"eval_days": 2, "train_days": 6, "validation_days": 1},
    }
    path = tmp_path / "conf" / "local.yaml"
    path.write_text(yaml.safe_dump(place, sort_keys=False))
    return path


@pytest.fixture
def tiny_config(tiny_conf: Path) -> Config:
    """Settings of the small data set, loaded."""
    return load(tiny_conf)
