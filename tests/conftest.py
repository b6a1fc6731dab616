"""Fixtures of all tests: one Spark session, and a small generic data set with the settings that describe it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tiny_shop import TINY_ITEMS, TINY_USERS, tiny_dataset, tiny_rows, write_events

from jobs.config import Config, load

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """A small local session with the settings that jobs rely on."""
    from jobs.spark import spark_session

    with spark_session(tiny_session_config(), "tests") as session:
        yield session


def tiny_session_config() -> Config:
    """Settings of the tests' Spark session."""
    return load("conf/local.yaml", ["spark.driver_memory=2g", "spark.shuffle_partitions=2", "spark.master=local[2]"])


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
