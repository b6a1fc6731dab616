"""A log whose sittings lie within one day, through the feature jobs: an event never sees itself, its own second, or anything later."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from dig_models.crosses import CrossStore
from dig_models.features import SECONDS_PER_DAY, hash_id
from dig_models.items import ItemTable
from jobs import examples, ingest, item_features, u2i_crosses
from jobs.config import Config, load
from jobs.dates import days_between
from jobs.entry import Invocation
from jobs.lake import Lake
from jobs.sources import open_source
from tests.jobs import ratings_package as rp

pytestmark = pytest.mark.slow
DAYS = 6
LAST = rp.FIRST + timedelta(days=DAYS - 1)
CUT = rp.midnight(LAST) + SECONDS_PER_DAY // 2
SETS = (
    "checks.enabled=false",
    "window={eval_days: 1, train_days: 3, validation_days: 1}",
    "dataset.catalogue={window_days: 30, min_events: 1, max_items: 100}",
    "dataset.u2i.windows=[1, 3]",
    "dataset.history={length: 8, days: 3}",
)


@dataclass
class Built:
    ratings: list[rp.Rating]
    config: Config
    lake: Lake

    def rows(self) -> list[dict[str, Any]]:
        return self.lake.read_arrow("examples", self.lake.days("examples")).to_pylist()

    def liked(self, user: str, before: int, key: str, value: str) -> list[int]:
        """Seconds strictly before one at which a user liked a film with a value of a key."""
        return [t for u, i, r, t in self.ratings if str(u) == user and r >= 4 and t < before and key_of(key, i) == value]


def key_of(key: str, item: int) -> str:
    mix, year = rp.genres_of(item), rp.year_of(item)
    return {"item": str(item), "genre": mix.split(" ")[0], "mix": mix, "year": year, "decade": year[:3]}[key]


def build(site: Path, home: Path, ratings: Sequence[rp.Rating], monkeypatch: pytest.MonkeyPatch) -> Built:
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(rp.install(site, ratings)))
        config = load("conf/movielens.yaml", [f"paths.home={home}", *SETS], environ={})
        every = days_between(rp.FIRST, LAST)
        options = {"missing": False, "events_from": None, "arrays": True, "offers_from": None}
        for job, days, more in (
            (ingest, every, {}),
            (item_features, every, {}),
            (u2i_crosses, every[1:], {"events_from": rp.FIRST}),
            (examples, every[1:], {}),
        ):
            job.main(Invocation(config=config, days=days, options=argparse.Namespace(**options | more)))  # type: ignore[attr-defined]
    return Built(list(ratings), config, Lake(config.paths.at("lake")))


@pytest.fixture(scope="module")
def built(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("ratings")
    with pytest.MonkeyPatch.context() as patch:
        return build(folder / "site", folder / "home", rp.ratings(DAYS), patch)


def test_a_request_is_what_a_user_rated_in_one_second(built: Built) -> None:
    found = {(r["user_id"], r["ts"]): dict(zip(r["item"], r["label"], strict=True)) for r in built.rows()}
    asked: dict[tuple[str, int], dict[int, int]] = {}
    for user, item, rating, ts in built.ratings:
        known = any(i == item and r >= 4 and t < ts // SECONDS_PER_DAY * SECONDS_PER_DAY for _, i, r, t in built.ratings)
        if known and ts >= rp.midnight(rp.FIRST) + SECONDS_PER_DAY:  # the catalogue is that of the day before
            asked.setdefault((str(user), ts), {})[hash_id(str(item))] = int(rating >= 4)
    assert found == asked


def test_crosses_and_history_hold_the_earlier_seconds_of_the_day_and_no_other_event_of_it(built: Built) -> None:
    names, same_day = built.config.dataset.spec().raw_cross_names, 0
    number = {hash_id(str(i)): i for i in range(1, rp.ITEMS + 1)}
    for row in built.rows():
        user, ts, midnight = row["user_id"], row["ts"], row["ts"] // SECONDS_PER_DAY * SECONDS_PER_DAY
        for hashed, raw in zip(row["item"], np.reshape(row["cross"], (len(row["item"]), -1)), strict=True):
            values = dict(zip(names, raw.tolist(), strict=True))
            for key in ("item", "genre", "mix", "year", "decade"):
                seconds = built.liked(user, ts, key, key_of(key, number[hashed]))
                for window in (1, 3):
                    assert values[f"u2i_{key}_n_{window}"] == sum(t >= midnight - window * SECONDS_PER_DAY for t in seconds)
                near = [t for t in seconds if t >= midnight - 3 * SECONDS_PER_DAY]
                assert values[f"u2i_{key}_days"] == pytest.approx((ts - max(near)) / SECONDS_PER_DAY if near else -1.0, abs=1e-6)
                same_day += sum(t >= midnight for t in seconds)
            for window in (1, 3):  # popularity is of closed days: nobody's same-day events are in it
                closed = [t for _, i, r, t in built.ratings if i == number[hashed] and r >= 4 and t < midnight]
                assert values[f"pop_{window}"] == sum(t >= midnight - window * SECONDS_PER_DAY for t in closed)
        past = sorted(
            (
                (t, hash_id(str(i)))
                for u, i, r, t in built.ratings
                if str(u) == user and r >= 4 and midnight - 3 * SECONDS_PER_DAY <= t < ts
            ),
            key=lambda e: (-e[0], e[1]),
        )
        assert list(zip(row["hist_ts"], row["hist_item"], strict=True)) == past[:8]
    assert same_day > 50


def test_the_cross_arrays_give_the_crosses_that_the_examples_hold(built: Built) -> None:
    spec = built.config.dataset.spec()
    pairs = 0
    for day in built.config.run_window(LAST).examples():
        items = ItemTable.from_arrow(built.lake.read_arrow("item_features", [day - timedelta(days=1)]), spec)
        store = CrossStore.open(built.lake.folder("cross_arrays", LAST), spec, items)
        for row in built.lake.read_arrow("examples", [day]).to_pylist():
            size, at = len(row["item"]), items.rows(np.array(row["item"], dtype=np.int64))
            expected = np.reshape(row["cross"], (size, -1))
            got = store.pairs(np.full(size, row["user_hash"]), np.full(size, row["ts"]), np.full(size, row["offer_hash"]), at)
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(store.catalogue(row["user_hash"], row["ts"], row["offer_hash"])[at], expected, rtol=1e-6, atol=1e-6)
            pairs += size
    assert pairs > 20


def test_other_events_at_and_after_a_second_leave_every_example_up_to_it_as_it_was(
    built: Built, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [r for r in built.ratings if r[3] < CUT]
    later = [r for r in built.ratings if r[3] >= CUT]
    # Of what comes later every label is turned, and each sitting shows other films: the future is another one.
    turned = [(u, i % rp.ITEMS + 1, 6 - r, t) for u, i, r, t in later]
    other = build(tmp_path / "site", tmp_path / "home", [*kept, *turned], monkeypatch)
    before = {r["request_id"]: r for r in built.rows() if r["ts"] < CUT}
    assert before == {r["request_id"]: r for r in other.rows() if r["ts"] < CUT}
    assert any(r["ts"] >= rp.midnight(LAST) for r in before.values())
    at_cut = {r["request_id"]: r for r in built.rows() if r["ts"] >= CUT}
    assert later
    assert at_cut != {r["request_id"]: r for r in other.rows() if r["ts"] >= CUT}


def installed() -> bool:
    return util.find_spec("recbole") is not None and metadata.version("recbole") == "1.2.1"


@pytest.mark.skipif(not installed(), reason="pip install --no-deps recbole==1.2.1 for the test on the real files")
def test_the_real_log_is_read_whole(spark: SparkSession) -> None:
    dataset = load("conf/movielens.yaml", environ={}).dataset
    source, days = open_source(dataset), days_between(dataset.first_date, dataset.last_date)
    source.check(spark, days)
    frames = {table: source.frame(table, spark, days) for table in ("interactions", "requests", "offers")}
    assert {table: frame.count() for table, frame in frames.items()} == {"interactions": 55_375, "requests": 49_439, "offers": 100_000}
    assert frames["requests"].select("user_id").distinct().count() == 943
    assert frames["requests"].where("ts is null or weekday is null or hour is null").count() == 0
    assert source.items(spark, days[-1:]).where("title is not null and size(genres) > 0 and genre <> ''").count() == 1_682
    assert source.users(spark, days[-1:]).where("age is not null and gender in ('F', 'M') and occupation <> ''").count() == 943
