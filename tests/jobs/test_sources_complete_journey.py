"""The Complete Journey: visits in local time, promotions by store and week, the documented clean-up."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs.config import Config, load
from jobs.sources import open_source
from jobs.sources.base import RawDataError, Source

DAY = date(2017, 1, 10)  # a Tuesday of week 3
Raw = dict[str, dict[str, list[Any]]]


def line(household: int, store: int, product: int, time: str, quantity: int = 1, value: float = 1.0, week: int = 3) -> tuple[Any, ...]:
    return (household, store, product, quantity, value, week, datetime.fromisoformat(time))


LINES = [
    line(1, 7, 100, "2017-01-10 15:30:00", 1, 0.1),
    line(1, 7, 100, "2017-01-10 20:00:00", 2, 0.2),  # another basket of the same visit
    line(1, 7, 101, "2017-01-10 15:31:00", 1, 3.0),
    line(1, 8, 100, "2017-01-10 16:00:00"),
    line(2, 7, 101, "2017-01-11 03:00:00"),  # 22:00 of the 10th in the store
    line(2, 7, 101, "2017-01-10 03:00:00"),  # 22:00 of the 9th in the store
    line(3, 7, 100, "2017-01-10 15:00:00", 0),  # corrections and returns
    line(3, 7, 101, "2017-01-10 15:00:00", -1),
    line(3, 7, 900, "2017-01-10 15:00:00"),  # fuel
    line(3, 7, 901, "2017-01-10 15:00:00"),  # coupon
    line(4, 9, 555, "2017-01-10 15:00:00"),  # not in the product table
]
PROMOTIONS = [
    (100, 7, "1", "0", 3),
    (101, 7, "0", "A", 3),
    (102, 7, "0", "0", 3),  # neither displayed nor mailed
    (103, 7, "2", "D", 3),
    (103, 7, "5", "0", 3),  # listed twice: the larger pair counts
    (103, 7, "5", "0", 3),
    (900, 7, "1", "A", 3),  # fuel
    (100, 7, "9", "A", 4),  # another week
    (100, 6, "9", "A", 3),  # a store that nobody visited
]


def raw() -> Raw:
    names = ("household_id", "store_id", "product_id", "quantity", "sales_value", "week", "transaction_timestamp")
    products = {
        "product_id": [100, 101, 102, 103, 900, 901],
        "manufacturer_id": [1, 2, 2, 3, 4, 5],
        "department": ["GROCERY", "GROCERY", "MEAT", "MEAT", "FUEL", "GROCERY"],
        "brand": ["National", "Private", "National", "National", "National", "National"],
        "product_category": ["MILK", None, "BEEF", "PORK", "FUEL", "COUPON/MISC ITEMS"],
        "product_type": ["WHOLE MILK", None, "STEAK", "RIBS", "GAS", "TICKETS"],
        "package_size": ["1 GA", None, None, "2 LB", None, None],
    }
    people = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")
    return {
        "transactions": {name: list(values) for name, values in zip(names, zip(*LINES, strict=True), strict=True)},
        "promotions": {
            name: list(values)
            for name, values in zip(
                ("product_id", "store_id", "display_location", "mailer_location", "week"), zip(*PROMOTIONS, strict=True), strict=True
            )
        },
        "products": products,
        "demographics": {"household_id": [1], **{name: ["x"] for name in people}},
    }


def written(folder: Path, tables: Raw) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        table = pa.table(columns)
        if "transaction_timestamp" in columns:
            at = table.schema.get_field_index("transaction_timestamp")
            table = table.set_column(at, "transaction_timestamp", table["transaction_timestamp"].cast(pa.timestamp("ns")))
        pq.write_table(table, folder / f"{name}.parquet")
    return load("conf/local.yaml", [f"dataset.source.path={folder}", "dataset.sample_users=1.0"], {})


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return open_source(written(tmp_path / "raw", raw()).dataset)


def rows(source: Source, spark: SparkSession, table: str, *columns: str) -> list[tuple[Any, ...]]:
    return sorted(tuple(r) for r in source.frame(table, spark, [DAY]).select(*columns).collect())


@pytest.mark.slow
def test_a_visit_is_household_store_and_local_day_with_its_baskets_merged(source: Source, spark: SparkSession) -> None:
    found = rows(source, spark, "interactions", "request_id", "user_id", "item_id", "quantity", "value")
    assert found == [
        ("1|7|2017-01-10", "1", "100", 3.0, 0.3),
        ("1|7|2017-01-10", "1", "101", 1.0, 3.0),
        ("1|8|2017-01-10", "1", "100", 1.0, 1.0),
        ("2|7|2017-01-10", "2", "101", 1.0, 1.0),
        ("4|9|2017-01-10", "4", "555", 1.0, 1.0),
    ]


@pytest.mark.slow
def test_three_in_the_morning_utc_belongs_to_the_day_before(source: Source, spark: SparkSession) -> None:
    visit = source.requests(spark, [DAY]).where("user_id = 2").collect()
    assert [(r["ts"], r["ds"], r["hour"], r["weekday"]) for r in visit] == [(datetime(2017, 1, 10, 22), "2017-01-10", "22", "Tue")]
    before = source.requests(spark, [date(2017, 1, 9)]).collect()
    assert [(r["request_id"], r["ts"]) for r in before] == [("2|7|2017-01-09", datetime(2017, 1, 9, 22))]


@pytest.mark.slow
def test_a_request_has_the_time_of_its_first_line_and_the_offer_key_of_store_and_week(source: Source, spark: SparkSession) -> None:
    found = rows(source, spark, "requests", "request_id", "ts", "offer_key", "store_id", "ds")
    assert found[0] == ("1|7|2017-01-10", datetime(2017, 1, 10, 10, 30), "7|3", "7", "2017-01-10")
    assert [r[0] for r in found] == ["1|7|2017-01-10", "1|8|2017-01-10", "2|7|2017-01-10", "4|9|2017-01-10"]


@pytest.mark.slow
def test_offers_are_what_a_visited_store_displays_or_mails_that_week(source: Source, spark: SparkSession) -> None:
    found = sorted(map(tuple, source.offers(spark, [DAY]).collect()), key=lambda r: r[1])
    assert found == [
        ("7|3", "100", "1", None, "2017-01-10"),
        ("7|3", "101", None, "A", "2017-01-10"),
        ("7|3", "103", "5", None, "2017-01-10"),
    ]


@pytest.mark.slow
def test_items_leave_out_fuel_and_coupons_and_are_named_by_what_is_known(source: Source, spark: SparkSession) -> None:
    found = rows(source, spark, "items", "item_id", "name", "manufacturer_id", "ds")
    assert found == [
        ("100", "WHOLE MILK, 1 GA, National", "1", "2017-01-10"),
        ("101", "Private", "2", "2017-01-10"),
        ("102", "STEAK, National", "2", "2017-01-10"),
        ("103", "RIBS, 2 LB, National", "3", "2017-01-10"),
    ]


@pytest.mark.slow
def test_users_are_the_households_seen_by_then_with_demographics_where_known(source: Source, spark: SparkSession) -> None:
    assert rows(source, spark, "users", "user_id", "ds")[:2] == [("1", "2017-01-10"), ("2", "2017-01-10")]
    assert {r["user_id"]: r["age"] for r in source.users(spark, [DAY]).collect()} == {"1": "x", "2": None, "3": None, "4": None}
    assert [r["user_id"] for r in source.users(spark, [date(2017, 1, 9)]).collect()] == ["2"]


@pytest.mark.slow
def test_days_of_a_range_come_out_as_if_built_alone(source: Source, spark: SparkSession) -> None:
    days = [date(2017, 1, 9), DAY]
    for table in ("interactions", "requests", "offers", "users"):
        alone = [tuple(r) for day in days for r in source.frame(table, spark, [day]).collect()]
        together = [tuple(r) for r in source.frame(table, spark, days).collect()]
        assert sorted(map(str, together)) == sorted(map(str, alone)), table


@pytest.mark.slow
def test_the_sample_is_a_share_of_the_users_and_the_same_in_every_table(spark: SparkSession, tmp_path: Path) -> None:
    tables = raw()
    tables["transactions"] = {name: values[:1] * 400 for name, values in tables["transactions"].items()}
    tables["transactions"]["household_id"] = list(range(400))
    dataset = written(tmp_path, tables).dataset
    half = open_source(dataset.model_copy(update={"sample_users": 0.5}))
    users = {r["user_id"] for r in half.users(spark, [DAY]).collect()}
    assert 150 < len(users) < 250
    assert (
        users
        == {r["user_id"] for r in half.interactions(spark, [DAY]).collect()}
        == {r["user_id"] for r in half.requests(spark, [DAY]).collect()}
    )
    assert users < {r["user_id"] for r in open_source(dataset).users(spark, [DAY]).collect()}
    fewer = {r["user_id"] for r in open_source(dataset.model_copy(update={"sample_users": 0.2})).users(spark, [DAY]).collect()}
    other = {
        r["user_id"] for r in open_source(dataset.model_copy(update={"sample_users": 0.5, "sample_seed": 1})).users(spark, [DAY]).collect()
    }
    assert fewer < users and other != users


@pytest.mark.slow
def test_null_keys_survive_for_the_gate(spark: SparkSession, tmp_path: Path) -> None:
    tables = raw()
    tables["transactions"]["product_id"][0] = None
    tables["transactions"]["household_id"][3] = None
    source = open_source(written(tmp_path, tables).dataset.model_copy(update={"sample_users": 0.999}))
    found = source.interactions(spark, [DAY])
    assert found.where("item_id IS NULL").count() == 1
    assert found.where("user_id IS NULL AND request_id IS NULL").count() == 1


def spoilt(tmp_path: Path, table: str, change: str) -> Source:
    tables = raw()
    if change == "renamed":
        tables[table]["shop"] = tables[table].pop("store_id")
    elif change == "retyped":
        tables[table]["week"] = [str(w) for w in tables[table]["week"]]
    elif change == "weeks":
        tables[table]["week"] = [w + 1 for w in tables[table]["week"]]
    elif change == "timeless":
        tables[table]["transaction_timestamp"][0] = None
    elif change == "added":
        tables[table]["colour"] = ["red"] * len(tables[table]["week"])
    return open_source(written(tmp_path, tables).dataset)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("transactions", "renamed", "raw table transactions: column store_id is missing; expected type int64.*new name: .*shop"),
        ("promotions", "retyped", "raw table promotions: column week has type string, expected int64"),
        ("transactions", "weeks", r"column week differs from floor.*in 7 of 7 lines .*utc_offset_hours \(now -5\)"),
        ("transactions", "timeless", "column transaction_timestamp is null in 1 lines"),
    ],
)
def test_raw_tables_that_are_not_as_documented_are_refused(
    spark: SparkSession, tmp_path: Path, table: str, change: str, message: str
) -> None:
    with pytest.raises(RawDataError, match=message):
        spoilt(tmp_path, table, change).check(spark, [date(2017, 1, 9), DAY])


@pytest.mark.slow
def test_an_added_raw_column_is_ignored(spark: SparkSession, tmp_path: Path) -> None:
    source = spoilt(tmp_path, "promotions", "added")
    source.check(spark, [DAY])
    assert source.offers(spark, [DAY]).columns == ["offer_key", "item_id", "display_location", "mailer_location", "ds"]


def test_a_missing_raw_file_is_named(tmp_path: Path) -> None:
    dataset = load("conf/local.yaml", [f"dataset.source.path={tmp_path}"], {}).dataset
    with pytest.raises(RawDataError, match=r"raw table transactions: .*transactions\.parquet not found"):
        open_source(dataset).inputs("interactions", DAY)
