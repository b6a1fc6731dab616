"""The feature jobs on a small lake against slow readings of the contracts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from dig_models.crosses import CrossStore
from dig_models.features import SECONDS_PER_DAY, bucket_of, hash_id
from dig_models.items import ItemTable
from jobs import examples, item_features, u2i_crosses
from jobs.config import Config
from jobs.dates import days_between
from jobs.entry import Invocation, JobError
from jobs.lake import Lake, Marker, MissingPartition
from tests.jobs.feature_world import DAYS, FIRST, LAST, QUIET, World, config_of, seconds

pytestmark = pytest.mark.slow
TRAIN_FIRST = date(2017, 1, 9)  # run of LAST: evaluation 13-14, training 9-12
TABLES = ("item_daily", "item_features", "u2i_daily", "u2i_crosses", "examples", "user_state")
JOBS = {"item_features": item_features, "u2i_crosses": u2i_crosses, "examples": examples}


def call(job: str, config: Config, days: list[date], **options: Any) -> None:
    given = {"missing": False, "events_from": None, "arrays": True} | options
    JOBS[job].main(Invocation(config=config, days=days, options=argparse.Namespace(**given)))


def build(config: Config, **options: Any) -> None:
    call("item_features", config, days_between(FIRST, LAST), events_from=FIRST, **options)
    call("u2i_crosses", config, days_between(FIRST + timedelta(days=1), LAST), events_from=FIRST, **options)
    call("examples", config, days_between(FIRST + timedelta(days=1), LAST), **options)


def changed(config: Config, max_items: int) -> Config:
    """Settings of another digest that make the same examples."""
    catalogue = config.dataset.catalogue.model_copy(update={"max_items": max_items})
    return config.model_copy(update={"dataset": config.dataset.model_copy(update={"catalogue": catalogue})})


@dataclass
class Built:
    world: World
    config: Config
    lake: Lake

    def rows(self, table: str) -> list[dict[str, Any]]:
        return self.lake.read_arrow(table, self.lake.days(table)).to_pylist()

    def markers(self) -> dict[tuple[str, date], Marker | None]:
        return {(t, d): self.lake.marker(t, d) for t in (*TABLES, "cross_arrays") for d in self.lake.days(t)}


@pytest.fixture(scope="module")
def built(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Built:
    config = config_of(tmp_path_factory.mktemp("home"))
    world, lake = World.make(), Lake(config.paths.at("lake"))
    world.write(spark, lake)
    build(config)
    return Built(world, config, lake)


def test_the_catalogue_holds_the_most_bought_items_of_its_window_with_their_popularity(built: Built) -> None:
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for r in built.rows("item_features"):
        found.setdefault(r["ds"], {})[r["item_id"]] = (r["pop_2"], r["pop_5"])
    for day in DAYS:
        expected = {i: (built.world.events_of(i, day, 2), built.world.events_of(i, day, 5)) for i in built.world.catalogue(day)}
        assert found.get(day.isoformat(), {}) == expected


def test_item_fields_are_hashed_and_bad_or_absent_values_are_missing(built: Built) -> None:
    seen = {r["item_id"]: r for r in built.rows("item_features") if r["ds"] > "2017-01-11"}
    assert {"i4", "i9"} & seen.keys() == {"i4", "i9"}, "the world no longer holds the cases of this test"
    for item, row in seen.items():
        i = int(item[1:])
        kind = None if i in (4, 9) else "kind2" if i == 0 else f"kind{i % 3}"
        assert (row["item_hash"], row["f_item_id"], row["f_kind"]) == (hash_id(item), bucket_of(item, 64), bucket_of(kind, 8))
        assert (row["k_item"], row["k_kind"]) == (hash_id(item), hash_id(kind) if kind else 0)
        if i == 9:
            assert (row["name"], row["f_tags"], row["f_words"], row["x_price"]) == ("i9", [], [], None)
            continue
        tags, words = [[], [], ["a", "b"], ["c"]][i % 4], [[], ["ground", "beef", "80"], ["beef", "ground"]][i % 3]
        assert row["f_tags"] == sorted({bucket_of(t, 16) for t in tags})
        assert row["f_words"] == sorted({bucket_of(w, 32) for w in words})
        assert row["x_price"] == [None, 1.5, None, None][i % 4]


def test_u2i_crosses_sum_the_closed_days_of_the_users_with_a_request(built: Built) -> None:
    found = {(r["user_id"], r["key_name"], r["key"], r["ds"]): [r["n_2"], r["n_5"], r["last_ts"]] for r in built.rows("u2i_crosses")}
    expected = {}
    for user, ds in {(r["user_id"], r["ds"]) for r in built.world.requests if r["ds"] > FIRST.isoformat()}:
        start = (date.fromisoformat(ds) - date(1970, 1, 1)).days * SECONDS_PER_DAY
        mine = [r for r in built.world.interactions if r["user_id"] == user]
        for name in ("item", "kind"):
            for key in {built.world.key(name, r["item_id"], r["ds"]) for r in mine} - {0}:
                values = built.world.u2i(user, name, key, start, closed=True)
                if values[1]:
                    expected[user, name, key, ds] = values
    assert found == expected


def test_examples_hold_just_what_was_known_before_each_request(built: Built) -> None:
    world, rate = built.world, 0.5
    found = {(r["request_id"], r["ds"]): r for r in built.rows("examples")}
    kept_negatives = all_negatives = 0
    for request in world.requests:
        if request["ds"] == FIRST.isoformat():
            continue
        row, ts = found.pop((request["request_id"], request["ds"]), None), seconds(request["ts"])
        every = world.rows(request)
        if row is None:
            assert not any(label for label, _ in every.values())
            all_negatives += len(every)
            continue
        assert (row["user_hash"], row["ts"], row["offer_hash"]) == (hash_id(request["user_id"]), ts, hash_id(request["offer_key"]))
        assert (row["u_user_id"], row["u_age"]) == world.profile(request["user_id"])
        assert row["c_store"] == bucket_of(request["store_id"], 8)
        assert list(zip(row["hist_ts"], row["hist_item"], strict=True)) == world.history(request["user_id"], ts)
        kept = {i: v for i, v in every.items() if v[0] or hash_id(i) in row["item"]}
        order = sorted(kept, key=lambda i: (kept[i][1], hash_id(i)))
        assert row["item"] == [hash_id(i) for i in order]
        assert row["label"] == [kept[i][0] for i in order]
        assert row["source"] == [kept[i][1] for i in order]
        assert row["weight"] == [1.0 if kept[i][0] else 1 / rate for i in order]
        expected = np.array([world.cross(request, i) for i in order])
        np.testing.assert_allclose(np.reshape(row["cross"], (len(order), -1)), expected, rtol=1e-6, atol=1e-6)
        all_negatives += sum(not label for label, _ in every.values())
        kept_negatives += sum(not label for label, _ in kept.values())
    assert not found
    assert 0.35 < kept_negatives / all_negatives < 0.65


def test_the_world_has_events_earlier_on_the_day_of_a_request(built: Built) -> None:
    some = 0
    for request in built.world.requests:
        ts, mine = seconds(request["ts"]), [r for r in built.world.interactions if r["user_id"] == request["user_id"]]
        some += any(r["ds"] == request["ds"] and seconds(r["ts"]) < ts for r in mine)
    assert some > 10


def test_user_state_is_the_request_side_at_the_end_of_the_day(built: Built) -> None:
    rows = {r["user_id"]: r for r in built.rows("user_state")}
    end = ((LAST - date(1970, 1, 1)).days + 1) * SECONDS_PER_DAY
    expected = {f"u{u}" for u in range(6) if built.world.history(f"u{u}", end)}
    assert rows.keys() == expected
    assert "item" not in next(iter(rows.values()))
    for user, row in rows.items():
        newest = max((r for r in built.world.requests if r["user_id"] == user), key=lambda r: r["ts"])
        offered = newest["offer_key"] in {r["offer_key"] for r in built.world.offers if r["ds"] == LAST.isoformat()}
        assert (row["ts"], row["ds"], row["offer_key"]) == (end, LAST.isoformat(), newest["offer_key"] if offered else "")
        assert row["offer_hash"] == (hash_id(newest["offer_key"]) if offered else 0)
        assert row["c_store"] == bucket_of(newest["store_id"], 8)
        assert list(zip(row["hist_ts"], row["hist_item"], strict=True)) == built.world.history(user, end)


def test_cross_arrays_agree_with_the_crosses_that_spark_computed(built: Built) -> None:
    spec, lake = built.config.dataset.spec(), built.lake
    pairs = 0
    for day in days_between(TRAIN_FIRST, LAST):
        items = ItemTable.from_arrow(lake.read_arrow("item_features", [day - timedelta(days=1)]), spec)
        store = CrossStore.open(lake.folder("cross_arrays", LAST), spec, items)
        for r in lake.read_arrow("examples", [day]).to_pylist():
            size = len(r["item"])
            rows = items.rows(np.array(r["item"], dtype=np.int64))
            got = store.pairs(np.full(size, r["user_hash"]), np.full(size, r["ts"]), np.full(size, r["offer_hash"]), rows)
            np.testing.assert_allclose(got, np.reshape(r["cross"], (size, -1)), rtol=1e-6, atol=1e-6)
            whole = store.catalogue(r["user_hash"], r["ts"], r["offer_hash"])
            np.testing.assert_allclose(whole[rows], got, rtol=1e-6, atol=1e-6)
            pairs += size
    assert pairs > 50


def test_a_day_without_visits_is_committed_empty(built: Built) -> None:
    for table in ("item_daily", "u2i_daily", "u2i_crosses", "examples"):
        marker = built.lake.marker(table, QUIET)
        assert marker is not None
        assert marker.rows == 0
        assert built.lake.read_arrow(table, [QUIET]).num_rows == 0


def test_a_second_run_gives_the_same_partitions(built: Built) -> None:
    before = built.markers()
    build(built.config)
    assert built.markers() == before


def test_with_missing_nothing_is_built_twice_and_a_changed_setting_builds_anew(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.lake import Staging

    written: list[tuple[str, int]] = []
    plain = Staging.write

    def counted(self: Staging, df: Any, days: Any, **rest: Any) -> None:
        written.append((self.table, len(days)))
        plain(self, df, days, **rest)

    monkeypatch.setattr(Staging, "write", counted)
    build(built.config, missing=True)
    assert written == []
    call("examples", changed(built.config, 7), [LAST], missing=True)
    assert written == [("examples", 1), ("user_state", 1)]


def test_a_day_alone_gives_what_the_range_gave(built: Built, spark: SparkSession, tmp_path: Path) -> None:
    config, day = config_of(tmp_path), date(2017, 1, 12)
    lake = Lake(config.paths.at("lake"))
    built.world.write(spark, lake, days_between(FIRST, day))
    call("item_features", config, [day - timedelta(days=1)], events_from=FIRST)
    call("u2i_crosses", config, [day], events_from=FIRST, arrays=False)
    call("examples", config, [day])
    for table in ("item_features", "u2i_crosses"):
        there = lake.days(table)[-1]
        assert lake.marker(table, there) == built.lake.marker(table, there)
    mine, whole = lake.marker("examples", day), built.lake.marker("examples", day)
    assert mine is not None and whole is not None
    assert (mine.content, mine.rows) == (whole.content, whole.rows)


def test_examples_without_the_catalogue_of_the_day_before_say_so(spark: SparkSession, built: Built, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    built.world.write(spark, Lake(config.paths.at("lake")), [LAST])
    with pytest.raises(JobError, match=r"item_features/ds=2017-01-13, which is not there.*jobs\.item_features --from 2017-01-13"):
        examples.examples(examples.Build(config, spark, "examples", ["jobs.examples"], steps=1), [LAST])


def test_a_missing_day_of_events_is_named(spark: SparkSession, built: Built, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    built.world.write(spark, Lake(config.paths.at("lake")), [LAST])
    with pytest.raises(MissingPartition, match="table item_daily: 5 of 6 days are missing"):
        call("item_features", config, [LAST])


def test_examples_of_the_first_day_of_the_data_are_refused(built: Built) -> None:
    with pytest.raises(ValueError, match="the earliest day possible is 2017-01-02"):
        call("examples", built.config, [FIRST])


def test_a_column_that_the_items_lack_is_named(spark: SparkSession, built: Built) -> None:
    config = config_of(Path(built.config.paths.home), item_fields=[{"name": "brand"}])
    with pytest.raises(JobError, match=r"table items: column\(s\) brand are missing, found item_id, kind"):
        call("item_features", config, [LAST])


def test_a_day_is_stored_in_several_row_groups(built: Built, spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "REQUESTS_PER_ROW_GROUP", 2)
    call("examples", changed(built.config, 8), [LAST])
    file = next(built.lake.folder("examples", LAST).glob("*.parquet"))
    meta = pq.read_metadata(file)
    assert meta.num_rows > 2
    assert max(meta.row_group(i).num_rows for i in range(meta.num_row_groups)) == 2
