"""A few real days of The Complete Journey through the Spark jobs, against a slow reading of the installed package in pandas."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from dig_models.features import SOURCE_EXPOSED, SOURCE_ORGANIC, hash_id
from jobs import entry, examples, ingest, item_features, u2i_crosses
from jobs.config import Config, load
from jobs.lake import Lake
from jobs.sources.complete_journey import CompleteJourney

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FIRST, DAY = date(2017, 1, 29), date(2017, 3, 2)  # longer than the shorter windows
BEFORE = DAY - timedelta(days=1)
WEEK = (DAY - date(2016, 12, 26)).days // 7 + 1
SETS = (f"dataset.first_date={FIRST}", "dataset.sample_users=0.05", "dataset.catalogue.min_events=2")
CHECKED = 400


@dataclass(frozen=True)
class Reading:
    """What the jobs wrote, and the same raw data as pandas sees them."""

    config: Config
    lake: Lake
    events: pd.DataFrame
    promoted: dict[int, set[str]]
    products: pd.DataFrame

    @property
    def requests(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.lake.read_arrow("examples", [DAY]).to_pylist()
        return rows


def job(module: ModuleType, options: Any, home: Path, first: date, last: date, *more: str) -> None:
    sets = [part for one in (f"paths.home={home}", *SETS) for part in ("--set", one)]
    argv = ["--config", "conf/local.yaml", "--from", str(first), "--to", str(last), *more, *sets]
    assert entry.run(module.__name__.removeprefix("jobs."), module.main, argv, ranges=True, options=options) == 0


@pytest.fixture(scope="module")
def reading(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Reading:
    home = tmp_path_factory.mktemp("journey")
    job(ingest, ingest._options, home, FIRST, DAY, "--offers-from", str(BEFORE))
    job(item_features, item_features.options, home, BEFORE, BEFORE, "--events-from", str(FIRST))
    job(u2i_crosses, u2i_crosses.options, home, DAY, DAY, "--events-from", str(FIRST), "--no-arrays")
    job(examples, None, home, DAY, DAY)
    config = load("conf/local.yaml", [f"paths.home={home}", *SETS], {})
    lake = Lake(config.paths.at("lake"))
    return Reading(config, lake, *slow(config, set(lake.read_arrow("users", [DAY]).column("user_id").to_pylist())))


def slow(config: Config, users: set[str]) -> tuple[pd.DataFrame, dict[int, set[str]], pd.DataFrame]:
    """Bought items of visits up to the day, what each store promoted in its week, and the products, all read anew."""
    source = CompleteJourney(config.dataset)
    raw = {name: pd.read_parquet(source.folder / f"{name}.parquet") for name in ("transactions", "promotions", "products")}
    products = raw["products"].astype({"product_id": str})
    gone = products.department.isin(source.source.drop_departments) | products.product_category.isin(source.source.drop_categories)
    dropped = set(products[gone].product_id)
    lines = raw["transactions"].astype({"household_id": str, "product_id": str})
    lines["ts"] = lines.transaction_timestamp - pd.Timedelta(hours=5)
    lines["day"] = lines.ts.dt.date
    kept = (
        lines.household_id.isin(users) & (lines.quantity > 0) & ~lines.product_id.isin(dropped) & (lines.day >= FIRST) & (lines.day <= DAY)
    )
    visits = lines[kept].groupby(["household_id", "store_id", "day", "product_id"], as_index=False).ts.min()
    visits["second"] = visits.ts.astype("datetime64[s]").astype("int64")
    promotions = raw["promotions"][raw["promotions"].week == WEEK].astype({"product_id": str})
    promotions = promotions[~promotions.product_id.isin(dropped)].fillna("0")
    offered = promotions.groupby(["store_id", "product_id"])[["display_location", "mailer_location"]].agg(list)
    best = offered.apply(lambda row: max(zip(row.display_location, row.mailer_location, strict=True)), axis=1)
    promoted: dict[int, set[str]] = defaultdict(set)
    for (store, product), pair in best.items():
        if pair != ("0", "0"):
            promoted[int(store)].add(product)
    return visits, promoted, products[~gone].set_index("product_id")


def test_the_lake_holds_the_visits_of_the_day(reading: Reading) -> None:
    today = reading.events[reading.events.day == DAY]
    wanted = {f"{user}|{store}|{DAY}": int(ts) for (user, store), ts in today.groupby(["household_id", "store_id"]).second.min().items()}
    table = reading.lake.read_arrow("requests", [DAY])
    found = dict(
        zip(table.column("request_id").to_pylist(), table.column("ts").cast("timestamp[s]").cast("int64").to_pylist(), strict=True)
    )
    assert len(wanted) > 5
    assert found == wanted


def test_rows_are_what_the_store_promoted_and_what_else_was_bought(reading: Reading) -> None:
    counts = reading.events[reading.events.day <= BEFORE].product_id.value_counts()
    catalogue = set(counts[counts >= 2].index) & set(reading.products.index)
    today = reading.events[reading.events.day == DAY].groupby(["household_id", "store_id"]).product_id.agg(set)
    rate, kept, offered = reading.config.dataset.sampling.exposed_negative_rate, 0, 0
    seen = {row["request_id"]: row for row in reading.requests}
    for (user, store), bought in today.items():
        promoted = reading.promoted[int(store)] & catalogue
        positives = {SOURCE_EXPOSED: bought & promoted, SOURCE_ORGANIC: (bought & catalogue) - promoted}
        row = seen.pop(f"{user}|{store}|{DAY}", None)
        if row is None:
            assert not positives[SOURCE_EXPOSED] | positives[SOURCE_ORGANIC]
            continue
        rows = list(zip(row["item"], row["label"], row["source"], row["weight"], strict=True))
        for source, items in positives.items():
            assert {item for item, label, of, _ in rows if label and of == source} == {hash_id(i) for i in items}
        negatives = {item: weight for item, label, _, weight in rows if not label}
        assert set(negatives) <= {hash_id(i) for i in promoted - bought}
        assert all(weight == pytest.approx(1 / rate) for weight in negatives.values())
        kept, offered = kept + len(negatives), offered + len(promoted - bought)
    assert not seen
    assert offered > 1000
    assert abs(kept - rate * offered) < 5 * np.sqrt(offered * rate * (1 - rate))


def test_crosses_count_what_the_household_bought_strictly_before(reading: Reading) -> None:
    spec, rng = reading.config.dataset.spec(), np.random.default_rng(0)
    names, product = spec.raw_cross_names, {hash_id(i): i for i in reading.products.index}
    columns = {"item": None, "category": "product_category", "department": "department"}
    pairs = [(row, at) for row in reading.requests for at in range(len(row["item"]))]
    events = reading.events.copy()
    for key, column in columns.items():
        events[key] = events.product_id.map(reading.products[column]) if column else events.product_id
    bought = dict(list(events.groupby("household_id")))
    nonzero = 0
    for number in rng.choice(len(pairs), min(CHECKED, len(pairs)), replace=False):
        row, at = pairs[int(number)]
        cross = dict(zip(names, row["cross"][at * len(names) : (at + 1) * len(names)], strict=True))
        item, mine = product[row["item"][at]], bought[row["user_id"]]
        mine = mine[mine.second < row["ts"]]
        for key, column in columns.items():
            value = reading.products.at[item, column] if column else item
            same = mine[mine[key] == value]
            for window in spec.windows:
                recent = same[same.day >= DAY - timedelta(days=window)]
                assert cross[f"u2i_{key}_n_{window}"] == (0 if pd.isna(value) else len(recent))
                nonzero += cross[f"u2i_{key}_n_{window}"] > 0
    assert nonzero > 100
