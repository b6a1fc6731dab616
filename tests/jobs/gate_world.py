"""Good staged tables of a small data set, to be spoilt by tests of the data gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from dig_models.features import SECONDS_PER_DAY, hash_id
from jobs.checks.tables import gate_of
from jobs.config import Config
from jobs.dates import days_between
from jobs.lake import Lake

FIRST = date(2020, 3, 1)
Row = dict[str, Any]
SCHEMAS = {
    "interactions": "request_id string, user_id string, item_id string, ts timestamp, quantity double, value double, ds string",
    "requests": "request_id string, user_id string, ts timestamp, offer_key string, store_id string, weekday string, ds string",
    "offers": "offer_key string, item_id string, shown string, ds string",
    "items": "item_id string, kind string, price double, name string, ds string",
    "users": "user_id string, age string, ds string",
    "item_features": "item_id string, item_hash long, name string, f_kind int, f_words array<int>, x_price double, k_item long, "
    "k_kind long, pop_3 double, pop_9 double, ds string",
    "u2i_crosses": "user_id string, user_hash long, key_name string, key long, n_3 double, n_9 double, last_ts long, ds string",
    "examples": "request_id string, user_id string, user_hash long, ts long, offer_key string, offer_hash long, u_age int, c_store int, "
    "c_weekday int, hist_item array<long>, hist_ts array<long>, item array<long>, label array<byte>, source array<byte>, "
    "weight array<float>, cross array<float>, ds string",
    "recommendations": "user_id string, place int, item_id string, sid string, probability double, generation string, ds string",
}


def config_of(home: Path, **checks: Any) -> Config:
    """Settings of the small data set; ``checks`` overrides limits of the gates."""
    dataset = {
        "name": "small",
        "source": {"kind": "tables", "interactions": {"path": "unused"}},
        "first_date": FIRST,
        "default_date": FIRST,
        "last_date": FIRST + timedelta(days=99),
        "item_fields": [
            {"name": "kind", "buckets": 16},
            {"name": "words", "column": "kind", "kind": "text", "buckets": 32},
            {"name": "price", "kind": "numeric"},
        ],
        "user_fields": [{"name": "age", "buckets": 8}],
        "context_fields": [{"name": "store", "column": "store_id", "buckets": 8}, {"name": "weekday", "buckets": 16}],
        "offers": [{"name": "display", "column": "shown", "values": ["1", "2"]}],
        "u2i": {"keys": [{"name": "item", "column": "item_id"}, {"name": "kind", "column": "kind"}], "windows": [3, 9]},
        "history": {"length": 3, "days": 5},
    }
    paths = {"home": str(home)}
    return Config.model_validate({"dataset": dataset, "paths": paths, "checks": {"min_trailing_days": 4, "trailing_days": 8, **checks}})


def days(count: int) -> list[date]:
    """The first days of the data set."""
    return days_between(FIRST, FIRST + timedelta(days=count - 1))


def rows_of(table: str, day: date, count: int = 24) -> list[Row]:
    """Good rows of one day."""
    makers = {
        **{"interactions": _interaction, "requests": _request, "offers": _offer, "items": _item, "users": _user},
        **{"item_features": _item_feature, "u2i_crosses": _u2i_cross, "examples": _example},
        "recommendations": _recommendation,
    }
    return [makers[table](day, i) for i in range(count)]


def frame(spark: SparkSession, table: str, rows: Sequence[Row], schema: str = "") -> DataFrame:
    """Rows as a staged frame."""
    return spark.createDataFrame([dict(row) for row in rows], schema or SCHEMAS[table])


def commit(
    spark: SparkSession,
    lake: Lake,
    table: str,
    rows: Sequence[Row],
    when: list[date],
    stats: Mapping[date, dict[str, float]],
    config: str = "",
) -> None:
    """Commit days without a gate, with the settings of ``config_of`` unless said otherwise."""
    own = config_of(lake.root)
    settings = config or own.dataset.rows_digest(raw=gate_of(table, own).raw)
    with lake.stage(table, "world") as stage:
        stage.write(frame(spark, table, rows), when)
        stage.commit(spark, when, job="world", code="", config=settings, inputs=lambda day: {}, stats=stats)


def start_of(day: date) -> int:
    """Local second at which a day starts."""
    return (day - date(1970, 1, 1)).days * SECONDS_PER_DAY


def _moment(day: date, i: int) -> datetime:
    return datetime(day.year, day.month, day.day, i % 24, i % 60)


def _interaction(day: date, i: int) -> Row:
    keys = {"request_id": f"r{i // 2}", "user_id": f"u{i // 2 % 7}", "item_id": f"i{i}"}
    return {**keys, "ts": _moment(day, i // 2), "quantity": 1.0 + i % 3, "value": 0.5 * (i % 5), "ds": day.isoformat()}


def _request(day: date, i: int) -> Row:
    row = {"request_id": f"r{i}", "user_id": f"u{i % 7}", "ts": _moment(day, i), "offer_key": f"o{i % 3}", "store_id": f"s{i % 3}"}
    return {**row, "weekday": str(day.weekday()), "ds": day.isoformat()}


def _offer(day: date, i: int) -> Row:
    return {"offer_key": f"o{i % 3}", "item_id": f"i{i // 3}", "shown": [None, "0", "1", "2"][i % 4], "ds": day.isoformat()}


def _item(day: date, i: int) -> Row:
    return {"item_id": f"i{i}", "kind": f"k{i % 4}", "price": 1.0 + i, "name": f"Item {i}", "ds": day.isoformat()}


def _user(day: date, i: int) -> Row:
    return {"user_id": f"u{i}", "age": f"a{i % 3}", "ds": day.isoformat()}


def _item_feature(day: date, i: int) -> Row:
    row = {"item_id": f"i{i}", "item_hash": hash_id(f"i{i}"), "name": f"Item {i}", "f_kind": i % 16, "f_words": [i % 32, 31]}
    row |= {"x_price": None if i == 0 else 2.0 * i, "k_item": hash_id(f"i{i}"), "k_kind": 0, "pop_3": float(i % 3), "pop_9": 4.0}
    return {**row, "ds": day.isoformat()}


def _u2i_cross(day: date, i: int) -> Row:
    row = {"user_id": f"u{i % 7}", "user_hash": hash_id(f"u{i % 7}"), "key_name": ["item", "kind"][i % 2], "key": hash_id(f"k{i}")}
    return {**row, "n_3": float(i % 2), "n_9": 1.0 + i % 2, "last_ts": start_of(day) - 3600 * (i + 1), "ds": day.isoformat()}


def _example(day: date, i: int) -> Row:
    user, ts = f"u{i % 7}", start_of(day) + 3600 * (i % 24)
    row = {"request_id": f"r{i}", "user_id": user, "user_hash": hash_id(user), "ts": ts, "offer_key": "o1", "offer_hash": hash_id("o1")}
    row |= {
        "u_age": i % 8,
        "c_store": i % 3,
        "c_weekday": day.weekday() + 1,
        "hist_item": [5, 6],
        "hist_ts": [start_of(day) - 60, start_of(day) - 90],
    }
    row |= {"item": [1, 2, 3], "label": [int(i % 4 == 0), 0, 1], "source": [0, 0, 1], "weight": [1.0, 10.0, 1.0]}
    # Raw crosses of one row: two windows and days since for each of two keys, two popularities, one offer code.
    cross = [[1.0, 2.0, 0.5 + j, 0.0, 0.0, -1.0, 3.0, 4.0 + i % 2, float(j)] for j in range(3)]
    return {**row, "cross": [x for part in cross for x in part], "ds": day.isoformat()}


def _recommendation(day: date, i: int) -> Row:
    row = {"user_id": f"u{i // 4}", "place": 1 + i % 4, "item_id": f"i{i % 4}", "sid": f"{i % 4}-0-12", "probability": 0.5 / (1 + i % 4)}
    return {**row, "generation": f"{day}-v1-0123456789", "ds": day.isoformat()}
