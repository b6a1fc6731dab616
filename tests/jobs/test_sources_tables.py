"""The generic source: any tables through settings alone, nothing lost in silence."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs.config import DatasetConfig
from jobs.sources import open_source
from jobs.sources.base import RawDataError, Source, reading

pytestmark = pytest.mark.slow
DAY, NEXT = date(2024, 3, 5), date(2024, 3, 6)
Rows = list[tuple[Any, ...]]


def dataset(interactions: dict[str, Any], **changed: Any) -> DatasetConfig:
    source = {"kind": "tables", "interactions": interactions, **changed.pop("source", {})}
    return DatasetConfig.model_validate(
        {
            "name": "own",
            "source": source,
            "first_date": "2024-03-01",
            "last_date": "2024-03-31",
            "default_date": "2024-03-20",
            "item_fields": [{"name": "item_id", "buckets": 64}],
            "user_fields": [{"name": "user_id", "buckets": 64}],
            "u2i": {"keys": [{"name": "item", "column": "item_id"}]},
            **changed,
        }
    )


def csv(path: Path, header: str, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def collected(source: Source, spark: SparkSession, table: str, *columns: str, days: list[date] | None = None) -> Rows:
    return sorted((tuple(r) for r in source.frame(table, spark, days or [DAY]).select(*columns).collect()), key=str)


KEYS = (("items", "item_id"), ("users", "user_id"))
EVENTS = ("user,item,at", "a,x,2024-03-05 10:00:00", "a,x,2024-03-05 11:00:00", "a,y,2024-03-05 09:00:00", "b,x,2024-03-06 00:30:00")
MAPPED = {"user_id": "user", "item_id": "item", "ts": "at"}


def test_events_of_a_user_and_day_are_one_request_and_repeated_items_one_row(spark: SparkSession, tmp_path: Path) -> None:
    source = open_source(dataset({"path": csv(tmp_path / "e.csv", *EVENTS), "format": "csv", "columns": MAPPED}))
    source.check(spark, [DAY])
    assert collected(source, spark, "interactions", "request_id", "item_id", "ts", "quantity", "value", "ds") == [
        ("a|2024-03-05", "x", datetime(2024, 3, 5, 10), 2.0, 0.0, "2024-03-05"),
        ("a|2024-03-05", "y", datetime(2024, 3, 5, 9), 1.0, 0.0, "2024-03-05"),
    ]
    assert collected(source, spark, "requests", "request_id", "user_id", "ts", "offer_key") == [
        ("a|2024-03-05", "a", datetime(2024, 3, 5, 9), None)
    ]
    assert collected(source, spark, "offers", "offer_key", "item_id", "ds") == []
    assert collected(source, spark, "items", "item_id", "name", days=[DAY, NEXT]) == [("x", "x"), ("x", "x"), ("y", "y"), ("y", "y")]
    assert collected(source, spark, "users", "user_id", "ds", days=[DAY, NEXT]) == [
        ("a", "2024-03-05"),
        ("a", "2024-03-06"),
        ("b", "2024-03-06"),
    ]


def test_local_time_decides_the_day_for_every_unit_of_time(spark: SparkSession, tmp_path: Path) -> None:
    moment = 1709695800  # 2024-03-06 03:30 UTC
    for unit, value in (("timestamp", "2024-03-06 03:30:00"), ("seconds", str(moment)), ("milliseconds", f"{moment}000")):
        table = {"path": csv(tmp_path / unit, "user,item,at", f"a,x,{value}"), "format": "csv", "columns": MAPPED}
        source = open_source(dataset(table, source={"time_unit": unit, "utc_offset_hours": -5, "request": "event"}))
        assert collected(source, spark, "interactions", "ts", "ds") == [(datetime(2024, 3, 5, 22, 30), "2024-03-05")], unit
    table = pa.table({"user": ["a"], "item": [7], "at": pa.array([moment * 10**9], pa.timestamp("ns"))})
    pq.write_table(table, tmp_path / "e.parquet")
    source = open_source(dataset({"path": str(tmp_path / "e.parquet"), "columns": MAPPED}, source={"utc_offset_hours": -5}))
    assert collected(source, spark, "interactions", "item_id", "ts") == [("7", datetime(2024, 3, 5, 22, 30))]


def test_an_impression_log_gives_offers_and_requests_without_positives(spark: SparkSession, tiny_dataset_source: Source) -> None:
    source = tiny_dataset_source
    source.check(spark, [DAY])
    requests = source.requests(spark, [DAY])
    offers = source.offers(spark, [DAY])
    positives = source.interactions(spark, [DAY])
    assert requests.count() == 8 and offers.count() == 24
    assert 0 < positives.count() < 8
    assert offers.join(requests, "offer_key").count() == 24
    assert positives.join(offers.withColumnRenamed("offer_key", "request_id"), ["request_id", "item_id"]).count() == positives.count()
    assert {r["hour"] for r in requests.collect()} == {"8"}


@pytest.fixture
def tiny_dataset_source(tiny_config: Any) -> Source:
    return open_source(tiny_config.dataset)


def test_repeated_impressions_that_agree_are_one_offer_and_others_reach_the_gate(spark: SparkSession, tmp_path: Path) -> None:
    lines = ("r1,a,x,2024-03-05 10:00:00,0,top", "r1,a,x,2024-03-05 10:01:00,1,top", "r1,a,y,2024-03-05 10:00:00,0,top")
    path = csv(tmp_path / "log.csv", "request_id,user_id,item_id,ts,label,place", *lines, "r1,a,y,2024-03-05 10:00:00,0,side")
    offers = [{"name": "place", "values": ["top", "side"]}]
    source = open_source(dataset({"path": path, "format": "csv"}, offers=offers, source={"request": "column"}))
    assert collected(source, spark, "offers", "offer_key", "item_id", "place") == [
        ("r1", "x", "top"),
        ("r1", "y", "side"),
        ("r1", "y", "top"),
    ]
    assert collected(source, spark, "interactions", "item_id") == [("x",)]


def test_a_table_of_offers_is_cut_to_the_keys_of_the_days_requests_and_keeps_its_duplicates(spark: SparkSession, tmp_path: Path) -> None:
    events = csv(tmp_path / "e.csv", "user_id,item_id,ts,offer_key", "a,x,2024-03-05 10:00:00,k1", "b,x,2024-03-06 10:00:00,k2")
    offers = csv(tmp_path / "o.csv", "offer_key,item_id,shelf", "k1,x,A", "k1,x,A", "k2,y,B", "k3,z,A")
    source = open_source(
        dataset(
            {"path": events, "format": "csv"},
            offers=[{"name": "shelf", "values": ["A", "B"]}],
            source={"offers": {"path": offers, "format": "csv"}},
        )
    )
    source.check(spark, [DAY, NEXT])
    assert collected(source, spark, "offers", "offer_key", "item_id", "shelf", "ds") == [("k1", "x", "A", "2024-03-05")] * 2
    assert collected(source, spark, "offers", "offer_key", "ds", days=[DAY, NEXT])[-1] == ("k2", "2024-03-06")


def test_times_outside_the_day_of_their_file_and_null_keys_survive_for_the_gate(spark: SparkSession, tmp_path: Path) -> None:
    lines = ("a,x,2024-03-05 10:00:00", "a,x,2024-03-09 10:00:00", ",x,2024-03-05 10:00:00", "b,,2024-03-05 10:00:00", "c,x,soon")
    csv(tmp_path / "events-2024-03-05.csv", "user_id,item_id,ts", *lines)
    csv(tmp_path / "events-2024-03-06.csv", "user_id,item_id,ts", "a,z,2024-03-06 10:00:00")
    source = open_source(dataset({"path": str(tmp_path / "events-{ds}.csv"), "format": "csv"}, source={"request": "event"}))
    found = source.interactions(spark, [DAY])
    assert found.count() == 5
    assert {r["ds"] for r in found.collect()} == {"2024-03-05"}
    assert found.where("to_date(ts) <> ds").count() == 1
    assert found.where("user_id IS NULL").count() == found.where("item_id IS NULL").count() == found.where("ts IS NULL").count() == 1
    assert collected(source, spark, "interactions", "item_id", days=[NEXT]) == [("z",)]
    assert source.inputs("interactions", DAY) != source.inputs("interactions", NEXT)


def test_a_day_that_was_not_delivered_is_named(spark: SparkSession, tmp_path: Path) -> None:
    csv(tmp_path / "events-2024-03-05.csv", "user_id,item_id,ts", "a,x,2024-03-05 10:00:00")
    known = {name: {"path": csv(tmp_path / f"{name}.csv", key, "x"), "format": "csv"} for name, key in KEYS}
    source = open_source(dataset({"path": str(tmp_path / "events-{ds}.csv"), "format": "csv"}, source=known))
    with pytest.raises(RawDataError, match=r"raw table interactions: no file at .*events-2024-03-06\.csv"):
        source.check(spark, [DAY, NEXT])


@pytest.mark.parametrize(("missing", "given"), [("items", "users"), ("users", "items")])
def test_daily_files_need_tables_of_items_and_users(spark: SparkSession, tmp_path: Path, missing: str, given: str) -> None:
    csv(tmp_path / "events-2024-03-05.csv", "user_id,item_id,ts", "a,x,2024-03-05 10:00:00")
    known = {given: {"path": csv(tmp_path / f"{given}.csv", dict(KEYS)[given], "x"), "format": "csv"}}
    source = open_source(dataset({"path": str(tmp_path / "events-{ds}.csv"), "format": "csv"}, source=known))
    with pytest.raises(RawDataError, match=rf"dataset\.source\.{missing} is not given .* a table of {missing}"):
        source.check(spark, [DAY])


def test_a_row_without_a_day_counts_to_the_first_day_asked_for(spark: SparkSession, tmp_path: Path) -> None:
    path = csv(tmp_path / "e.csv", "user_id,item_id,ts", "a,x,2024-03-06 10:00:00", "a,y,")
    source = open_source(dataset({"path": path, "format": "csv"}, source={"request": "event"}))
    assert collected(source, spark, "interactions", "item_id", "ts", "ds", days=[DAY, NEXT])[1] == ("y", None, "2024-03-05")


def test_non_finite_numbers_survive_for_the_gate(spark: SparkSession, tmp_path: Path) -> None:
    path = csv(tmp_path / "e.csv", "user_id,item_id,ts,value", "a,x,2024-03-05 10:00:00,NaN", "a,y,2024-03-05 10:00:00,Infinity")
    source = open_source(dataset({"path": path, "format": "csv"}))
    source.check(spark, [DAY])
    assert [str(r[0]) for r in collected(source, spark, "interactions", "value")] == ["inf", "nan"]


@pytest.mark.parametrize(
    ("header", "row", "columns", "message"),
    [
        (
            "user,item,at",
            "a,x,2024-03-05",
            {},
            r"column user_id is missing; expected dataset\.source\.interactions\.columns\.user_id.*user, item, at",
        ),
        ("user,item,at", "a,x,2024-03-05", {**MAPPED, "ts": "time"}, r"interactions: ts: cannot make it from 'time'.*user, item, at"),
        (
            "user,item,at,clicked",
            "a,x,2024-03-05,yes",
            {**MAPPED, "label": "clicked"},
            r"column label \(clicked\): 1 rows hold no number.*'yes'",
        ),
        (
            "user,item,at,clicked",
            "a,x,2024-03-05,",
            {**MAPPED, "label": "clicked"},
            r"column label \(clicked\): 1 rows hold no number but null",
        ),
        ("user,item,at", "a,x,2024-03-05", {**MAPPED, "item_id": "double(7)"}, r"column item_id \(double\(7\)\) has type double, expected"),
    ],
)
def test_columns_that_are_missing_or_of_another_type_are_named(
    spark: SparkSession, tmp_path: Path, header: str, row: str, columns: dict[str, str], message: str
) -> None:
    path = csv(tmp_path / "e.csv", header, row)
    source = open_source(dataset({"path": path, "format": "csv", "columns": columns}))
    with pytest.raises(RawDataError, match=message):
        source.check(spark, [DAY])


def test_where_drops_what_the_settings_say(spark: SparkSession, tmp_path: Path) -> None:
    table = {"path": csv(tmp_path / "e.csv", *EVENTS), "format": "csv", "columns": MAPPED, "where": "item <> 'x'"}
    assert collected(open_source(dataset(table)), spark, "interactions", "item_id") == [("y",)]


def test_snapshots_with_days_are_read_by_day_and_fields_keep_their_kind(spark: SparkSession, tmp_path: Path) -> None:
    items = pa.table({"item_id": [1, 2, 1], "price": [1, 2, 3], "tags": [["a"], ["b", "c"], []], "ds": ["2024-03-05"] * 2 + ["2024-03-06"]})
    pq.write_table(items, tmp_path / "items.parquet")
    config = dataset(
        {"path": csv(tmp_path / "e.csv", *EVENTS), "format": "csv", "columns": MAPPED},
        source={"items": {"path": str(tmp_path / "items.parquet")}},
        item_fields=[{"name": "item_id"}, {"name": "price", "kind": "numeric"}, {"name": "tags", "kind": "multi"}],
    )
    assert collected(open_source(config), spark, "items", "item_id", "price", "tags", "name") == [
        ("1", 1.0, ["a"], "1"),
        ("2", 2.0, ["b", "c"], "2"),
    ]


def test_fields_without_their_table_are_an_error(spark: SparkSession, tmp_path: Path) -> None:
    table = {"path": csv(tmp_path / "e.csv", *EVENTS), "format": "csv", "columns": MAPPED}
    with pytest.raises(RawDataError, match=r"dataset\.source\.users is not given, but fields use its columns age"):
        open_source(dataset(table, user_fields=[{"name": "age"}])).check(spark, [DAY])


def test_a_malformed_csv_row_is_an_error(spark: SparkSession, tmp_path: Path) -> None:
    path = csv(tmp_path / "e.csv", "user_id,item_id,ts", "a,x,2024-03-05 10:00:00,too,many")
    told = r"raw data for table interactions, /.*e\.csv: Malformed.*a,x,2024.*; mend the file"
    with pytest.raises(RawDataError, match=told), reading("interactions"):
        open_source(dataset({"path": path, "format": "csv"})).interactions(spark, [DAY]).collect()
