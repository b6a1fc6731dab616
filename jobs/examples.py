"""Examples: every request of a day with what was known before it, and the rows (request x item) that ride on it.

Rows are the exposures of the request and its positives that were not exposed (``organic``), restricted to the catalogue of the day
before. All positives stay; exposed negatives stay by a hash of the row, with the weight 1 / rate. A request without rows is dropped:
it says nothing about any item.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from functools import partial

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from dig_models.features import SECONDS_PER_DAY, SOURCE_EXPOSED, SOURCE_ORGANIC
from jobs.build import Build
from jobs.config import Config, ConfigError, DatasetConfig
from jobs.cross_arrays import offer_code
from jobs.entry import Invocation, JobError, Request, run
from jobs.hashing import hash_id, local_seconds, require_columns
from jobs.provenance import EXAMPLES as CODE
from jobs.spark import spark_session
from jobs.user_state import request_side, user_state

MILLION = 1_000_000
REQUESTS_PER_ROW_GROUP = 128
COPARTITION = {"spark.sql.requireAllClusterKeysForCoPartition": "false"}


def candidate_rows(requests: DataFrame, offers: DataFrame, interactions: DataFrame, dataset: DatasetConfig) -> DataFrame:
    """Rows to keep, before the catalogue decides: ``request_id, item_id, ds, label, source, code_<column> …``.

    Exposures have label 0 here and interactions source organic: of a positive that was exposed both are there, see ``merged``.

    Args:
        requests: request_id, offer_key, ds.
        offers: of the same days.
        interactions: of the same days.
        dataset: the sampling of negatives and the offer columns.

    Raises:
        JobError: an offer column is missing.
    """
    codes = [f"code_{o.name}" for o in dataset.offers]
    require_columns(offers, [o.source_column for o in dataset.offers], "offers")
    row = F.xxhash64("request_id", "item_id", F.lit(dataset.sampling.seed))
    # Looked up by hash, because this join sees every exposure; labels come from the interactions themselves.
    bought = interactions.select(row.alias("row"), "ds").distinct().withColumn("bought", F.lit(True))
    sampled = F.pmod(F.col("row"), F.lit(MILLION)) < round(dataset.sampling.exposed_negative_rate * MILLION)
    exposed = (
        offers.select("offer_key", "item_id", "ds", *(offer_code(o) for o in dataset.offers))
        .join(requests.select("request_id", "offer_key", "ds"), ["offer_key", "ds"])
        .withColumn("row", row)
        .join(bought, ["row", "ds"], "left")
        .where(F.col("bought").isNotNull() | sampled)
    )
    organic = interactions.select("request_id", "item_id", "ds", *_is(1, SOURCE_ORGANIC), *(F.lit(0).alias(c) for c in codes))
    return exposed.select("request_id", "item_id", "ds", *_is(0, SOURCE_EXPOSED), *codes).unionByName(organic)


def _is(label: int, source: int) -> tuple[Column, Column]:
    return F.lit(label).cast("byte").alias("label"), F.lit(source).cast("byte").alias("source")


def merged(rows: DataFrame, codes: Sequence[str]) -> DataFrame:
    """One row per request and item: a positive that was exposed is exposed; what was offered twice has its largest codes."""
    combined = ("label", "source", *codes)
    grouped = rows.groupBy(*(c for c in rows.columns if c not in combined))
    return grouped.agg(F.max("label").alias("label"), F.min("source").alias("source"), *(F.max(c).alias(c) for c in codes))


def prefix_of_day(daily: DataFrame, requests: DataFrame) -> DataFrame:
    """What users did earlier on the day of a request: ``user_hash, ts, key_name, key, n, last_ts``.

    Args:
        daily: ``u2i_daily`` of the days of the requests.
        requests: user_hash, ts, ds.
    """
    asked = requests.select("user_hash", "ts", "ds").distinct()
    before = daily.select("user_hash", "ds", F.col("ts").alias("event_ts"), "key_name", "key", "events")
    joined = before.join(asked, ["user_hash", "ds"]).where(F.col("event_ts") < F.col("ts"))
    return joined.groupBy("user_hash", "ts", "key_name", "key").agg(F.sum("events").alias("n"), F.max("event_ts").alias("last_ts"))


def with_crosses(rows: DataFrame, crosses: DataFrame, prefix: DataFrame, dataset: DatasetConfig) -> DataFrame:
    """Rows with the column ``cross``, in ``spec.raw_cross_names`` order.

    Args:
        rows: user_hash, ts, ds, ``k_<key>``, ``pop_<w>``, ``code_<column>``; partitioned by user_hash.
        crosses: ``u2i_crosses`` of the same days.
        prefix: see ``prefix_of_day``.
        dataset: keys, windows and offer columns.
    """
    windows, values = dataset.u2i.windows, []
    out, crosses, prefix = rows, crosses.repartition("user_hash"), prefix.repartition("user_hash")
    for i, key in enumerate(dataset.u2i.keys):
        closed = crosses.where(F.col("key_name") == key.name).select(
            "user_hash",
            "ds",
            F.col("key").alias(f"k_{key.name}"),
            *(F.col(f"n_{w}").alias(f"closed_{i}_{w}") for w in windows),
            F.col("last_ts").alias(f"closed_{i}_last"),
        )
        today = prefix.where(F.col("key_name") == key.name).select(
            "user_hash",
            "ts",
            F.col("key").alias(f"k_{key.name}"),
            F.col("n").alias(f"today_{i}"),
            F.col("last_ts").alias(f"today_{i}_last"),
        )
        out = out.join(closed.hint("shuffle_hash"), ["user_hash", "ds", f"k_{key.name}"], "left")
        out = out.join(today.hint("shuffle_hash"), ["user_hash", "ts", f"k_{key.name}"], "left")
        now = F.coalesce(F.col(f"today_{i}"), F.lit(0.0))
        values += [F.coalesce(F.col(f"closed_{i}_{w}"), F.lit(0.0)) + now for w in windows]
        last = F.coalesce(F.col(f"today_{i}_last"), F.col(f"closed_{i}_last"))
        values.append(F.coalesce((F.col("ts") - last) / SECONDS_PER_DAY, F.lit(-1.0)))
    values += [F.col(f"pop_{w}") for w in windows] + [F.col(f"code_{o.name}") for o in dataset.offers]
    return out.select(*rows.columns, F.array(*(v.cast("float") for v in values)).alias("cross"))


def row_lists(rows: DataFrame, rate: float) -> DataFrame:
    """Rows gathered into lists: one row per request and day, ``user_hash, request_id, ds, item, label, source, weight, cross``.

    In each request rows are ordered by (source, item hash). A request that crosses midnight is one on either day.
    """
    one = F.struct("source", "item_hash", "label", "cross")
    lists = rows.groupBy("user_hash", "request_id", "ds").agg(F.sort_array(F.collect_list(one)).alias("rows"))
    weight = F.transform(
        "rows", lambda r: F.when((r["source"] == SOURCE_EXPOSED) & (r["label"] == 0), F.lit(1.0 / rate)).otherwise(1.0).cast("float")
    )
    return lists.select(
        "user_hash",
        "request_id",
        "ds",
        F.col("rows.item_hash").alias("item"),
        F.col("rows.label").alias("label"),
        F.col("rows.source").alias("source"),
        weight.alias("weight"),
        F.flatten("rows.cross").alias("cross"),
    )


def catalogue_of_day_before(build: Build, days: Sequence[date]) -> DataFrame:
    """``item_features`` of the day before each day, with ``ds`` moved to the day itself.

    Raises:
        JobError: a catalogue is missing; the message says how to build it.
    """
    before = [day - timedelta(days=1) for day in days]
    missing = [day for day in before if build.lake.marker("item_features", day) is None]
    if missing:
        raise JobError(
            f"examples of {missing[0] + timedelta(days=1)} show the items of item_features/ds={missing[0]}, which is not there "
            f"({len(missing)} days are missing); run python -m jobs.item_features --from {missing[0]} --to {missing[-1]} first"
        )
    features, dataset = build.lake.read(build.spark, "item_features", before), build.config.dataset
    moved = F.date_add(F.to_date("ds"), 1).cast("string").alias("ds")
    keys, pops = [f"k_{k.name}" for k in dataset.u2i.keys], [f"pop_{w}" for w in dataset.u2i.windows]
    return features.select("item_id", "item_hash", *keys, *pops, moved)


def examples(build: Build, days: Sequence[date]) -> DataFrame:
    """``examples`` of the days."""
    spark, lake, dataset = build.spark, build.lake, build.config.dataset
    shown = build.few(catalogue_of_day_before(build, days), "item_features", [day - timedelta(days=1) for day in days])
    requests = (
        lake.read(spark, "requests", days).withColumn("ts", local_seconds(F.col("ts"))).withColumn("user_hash", hash_id(F.col("user_id")))
    )
    daily = lake.read(spark, "u2i_daily", build.reach.over("examples", days, "u2i_daily"))
    of_days = F.col("ds").isin(*(d.isoformat() for d in days))
    candidates = candidate_rows(requests, lake.read(spark, "offers", days), lake.read(spark, "interactions", days), dataset)
    known = candidates.join(shown, ["ds", "item_id"]).join(requests.select("request_id", "ds", "user_hash", "ts"), ["request_id", "ds"])
    rows = merged(known.repartition("user_hash"), [f"code_{o.name}" for o in dataset.offers])
    crossed = with_crosses(rows, lake.read(spark, "u2i_crosses", days), prefix_of_day(daily.where(of_days), requests), dataset)
    sides = request_side(requests, lake.read(spark, "users", days), daily, dataset)
    lists = row_lists(crossed, dataset.sampling.exposed_negative_rate)
    return sides.join(lists, ["user_hash", "request_id", "ds"]).select(
        *(c for c in sides.columns if c != "ds"), "item", "label", "source", "weight", "cross", "ds"
    )


def build(spark: SparkSession, config: Config, request: Request) -> dict[str, list[date]]:
    """Build ``examples`` and ``user_state`` of the days asked for.

    Returns:
        The days that were built, by table.
    """
    made = Build(config, spark, "examples", CODE, steps=2, request=request)
    days = made.to_do("examples")
    # Several row groups a day let ranks share it and mix it.
    with _set(spark, {"parquet.block.row.count.limit": str(REQUESTS_PER_ROW_GROUP), **COPARTITION}):
        made.publish("examples", days, lambda: examples(made, days), sort=[F.xxhash64("request_id")], gate=True)
    states, started = made.to_do("user_state"), time.perf_counter()
    with _set(spark, COPARTITION):
        for day in states:
            made.commit("user_state", [day], partial(user_state, made, day), sort=["user_hash"])
    made.step("user_state", states, time.perf_counter() - started)
    return made.built


@contextmanager
def _set(spark: SparkSession, conf: dict[str, str]) -> Iterator[None]:
    """Settings of the session while the context is open; Spark hands them to the Parquet writer too."""
    before = {key: spark.conf.get(key, None) for key in conf}
    for key, value in conf.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        for key, old in before.items():
            spark.conf.unset(key) if old is None else spark.conf.set(key, old)


def main(call: Invocation) -> None:
    """Build ``examples`` of the days asked for, and ``user_state`` of the last one."""
    dataset = call.config.dataset
    if call.days[0] <= dataset.first_date:
        raise ConfigError(
            f"examples of {call.days[0]}: data start on {dataset.first_date}, and examples need the catalogue of the day before; "
            f"the earliest day possible is {dataset.first_date + timedelta(days=1)}"
        )
    with spark_session(call.config, "examples") as spark:
        build(spark, call.config, Request.of({"examples": call.days, "user_state": [call.date]}, missing=call.options.missing))


if __name__ == "__main__":
    sys.exit(run("examples", main, ranges=True))
