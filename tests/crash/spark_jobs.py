"""Crash scenario of the Spark jobs: a range is ingested, then a table of features is made; both replace what is there.

The processes share one Java side, which starts once: they connect to its gateway. A Python process that is killed leaves it alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs import ingest
from jobs.build import Build
from jobs.entry import Invocation, run
from jobs.lake import STAGING, Lake
from tests import tiny_shop as shop
from tests.crash.harness import Scenario, files_of

DAYS = [date(2024, 3, 1), date(2024, 3, 2)]
TABLES = ("interactions", "requests", "offers", "items", "users", "item_daily")


def attach(root: Path) -> None:
    """Make the shared session the active one of this process."""
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    port, secret = json.loads((root.parent / "gateway").read_text())
    os.environ |= {"PYSPARK_GATEWAY_PORT": str(port), "PYSPARK_GATEWAY_SECRET": secret}
    gateway = launch_gateway()
    java = gateway.jvm.JavaSparkContext.fromSparkContext(gateway.jvm.org.apache.spark.SparkContext.getOrCreate())
    SparkSession(SparkContext(gateway=gateway, jsc=java, conf=SparkConf(_jvm=gateway.jvm, _jconf=java.getConf())))


def raw(root: Path, *, price: float) -> None:
    """Raw tables in which everything costs that much more."""
    home = root / "raw"
    home.mkdir(exist_ok=True)
    shop.write_events(home / "events.csv", [(*row[:-1], row[-1] + price) for row in shop.tiny_rows()])
    items = range(shop.TINY_ITEMS)
    columns = {"sku": [f"i{i}" for i in items], "title": [f"Item {i}" for i in items], "kind": [f"k{i % 5}" for i in items]}
    pq.write_table(pa.table(columns | {"price": [price + i for i in items]}), home / "products.parquet")
    (home / "people.csv").write_text("\n".join(["person,age", *(f"u{u},young" for u in range(shop.TINY_USERS))]) + "\n")


def built(root: Path) -> None:
    """Both days are there, made from other raw tables."""
    raw(root, price=1.0)
    place = root / "conf" / "datasets"
    place.mkdir(parents=True)
    (place / "tiny.yaml").write_text(yaml.safe_dump(shop.tiny_dataset(root / "raw"), sort_keys=False))
    settings = {"dataset": {"name": "tiny"}, "paths": {"home": str(root / "home")}, "checks": {"enabled": False}}
    (place.parent / "local.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert step(root) == 0
    raw(root, price=2.0)


def step(root: Path) -> int:
    """``python -m jobs.ingest``, then a table of features, with the session of this process."""
    attach(root)
    options = ["--config", str(root / "conf" / "local.yaml"), "--from", str(DAYS[0]), "--to", str(DAYS[-1])]
    first = run("ingest", ingest.main, options, ranges=True, options=ingest._options)
    return first or run("item_features", features, options, ranges=True)


def features(call: Invocation) -> None:
    """What each item was worth on a day."""
    from pyspark.sql import SparkSession

    spark = SparkSession.getActiveSession()
    assert spark is not None
    build = Build(call.config, spark, "item_features", (), 1)
    frame = build.lake.read(spark, "interactions", call.days).groupBy("item_id", "ds").sum("value")
    build.publish("item_daily", call.days, lambda: frame.toDF("item_id", "ds", "value"), sort=["item_id"])


def look(root: Path) -> Mapping[str, str]:
    """The content of every day of every table, read whole."""
    lake = Lake(str(root / "home" / "lake"))
    found = {}
    for table in TABLES:
        for day in DAYS:
            marker = lake.marker(table, day)
            assert marker is not None and len(lake.read_arrow(table, [day])) == marker.rows
            found[f"{table} {day}"] = f"{marker.content} {marker.inputs}"
    return found


def leaves(root: Path) -> Mapping[str, object]:
    """Every marker byte by byte, how many files there are, and what is left of staging."""
    lake = root / "home" / "lake"
    markers = {str(path.relative_to(lake)): path.read_text() for path in sorted(lake.rglob("_MARKER.json"))}
    return markers | files_of(lake / STAGING) | {"files": len(list(lake.rglob("*.parquet")))}


SCENARIOS = [
    Scenario(
        area="spark jobs",
        situation="two days of six tables replaced",
        prepare=built,
        step=step,
        look=look,
        leaves=leaves,
        points=(
            *("partition.rows_written", "ingest.gates_passed", "partition.day_committed"),
            *("ingest.table_committed", "partition.gate_passed"),
        ),
        needs="gateway",
    )
]
