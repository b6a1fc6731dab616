"""User-to-item crosses: events of each user with each key (item, type, category …) by time, and their windows as of a day's start.

``u2i_daily`` keeps what happened, ``u2i_crosses`` sums its closed days for the users that have a request on the day, and the cross
arrays answer for pairs that nobody saw.
"""

from __future__ import annotations

import logging
import sys
import time
from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Sequence
from datetime import date

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs import cross_arrays
from jobs.build import Build, event_days, events_option
from jobs.config import Config, ConfigError, DatasetConfig
from jobs.entry import Invocation, Request, run
from jobs.hashing import day_number, hash_id, key_hash, local_seconds, require_columns
from jobs.provenance import U2I_CROSSES as CODE
from jobs.spark import spark_session

log = logging.getLogger(__name__)
ITEM_COLUMN = "item_id"


def u2i_daily(interactions: DataFrame, items: DataFrame, dataset: DatasetConfig) -> DataFrame:
    """``u2i_daily``: events of each user, key and second; keys come from the item as its snapshot has it.

    An event counts for no key whose value is missing.

    Args:
        interactions: with the column ``items_ds``, the snapshot that stands for the day.
        items: the snapshots.
        dataset: the keys.

    Raises:
        JobError: a key's column is not in ``items``.
    """
    keys = dataset.u2i.keys
    columns = sorted({k.column for k in keys} - {ITEM_COLUMN})
    require_columns(items, columns, "items")
    events = interactions.select("user_id", ITEM_COLUMN, local_seconds(F.col("ts")).alias("ts"), "quantity", "value", "ds", "items_ds")
    if columns:
        known = items.select(ITEM_COLUMN, F.col("ds").alias("items_ds"), *(F.col(f"`{c}`") for c in columns))
        events = events.join(known, [ITEM_COLUMN, "items_ds"], "left")
    pairs = F.array(*(F.struct(F.lit(k.name).alias("key_name"), key_hash(F.col(f"`{k.column}`")).alias("key")) for k in keys))
    # Spread by user before every event becomes one row a key: the sums then need no second, larger shuffle.
    by_user = events.repartition("user_id")
    exploded = by_user.select("user_id", "ts", "quantity", "value", "ds", F.inline(pairs)).where(F.col("key") != 0)
    summed = exploded.groupBy("user_id", "key_name", "key", "ts", "ds").agg(
        F.count(F.lit(1)).cast("double").alias("events"),
        F.round(F.sum("quantity"), 6).alias("quantity"),
        F.round(F.sum("value"), 6).alias("value"),
    )
    return summed.select(
        "user_id", hash_id(F.col("user_id")).alias("user_hash"), "key_name", "key", "ts", "events", "quantity", "value", "ds"
    )


def u2i_crosses(daily: DataFrame, requests: DataFrame, windows: Sequence[int]) -> DataFrame:
    """``u2i_crosses`` of the days of ``requests``: sums over closed days, for users with a request on the day.

    Args:
        daily: ``u2i_daily`` of all days that the longest window reaches.
        requests: which users are asked for on which day.
        windows: in days; the one of ``w`` days covers the ``w`` days before the day.
    """
    asked = requests.select("user_id", F.col("ds").alias("for_ds"), day_number(F.col("ds")).alias("for_day")).distinct()
    events = daily.select("user_id", "user_hash", "key_name", "key", "ts", "events", day_number(F.col("ds")).alias("day"))
    reach = (F.col("day") < F.col("for_day")) & (F.col("day") >= F.col("for_day") - max(windows))
    joined = events.repartition("user_id").join(asked, "user_id").where(reach)
    sums = [F.sum(F.when(F.col("day") >= F.col("for_day") - w, F.col("events")).otherwise(0.0)).alias(f"n_{w}") for w in windows]
    grouped = joined.groupBy("user_id", "user_hash", "key_name", "key", "for_ds").agg(*sums, F.max("ts").alias("last_ts"))
    return grouped.select("user_id", "user_hash", "key_name", "key", *(f"n_{w}" for w in windows), "last_ts", F.col("for_ds").alias("ds"))


def build(spark: SparkSession, config: Config, request: Request) -> dict[str, list[date]]:
    """Build ``u2i_daily``, ``u2i_crosses`` and ``cross_arrays`` of the days asked for.

    Returns:
        The days that were built, by table.
    """
    made = Build(config, spark, "u2i_crosses", CODE, steps=3, request=request)
    events = made.to_do("u2i_daily")
    made.publish("u2i_daily", events, lambda: _daily(made, events), sort=["key_name", "user_hash", "key", "ts"])
    days = made.to_do("u2i_crosses")
    made.publish("u2i_crosses", days, lambda: _crosses(made, days), sort=["key_name", "user_hash", "key"], gate=True)
    started, exported = time.perf_counter(), made.to_do(cross_arrays.TABLE)
    for day in exported:
        cross_arrays.export(made, day)
    made.step(cross_arrays.TABLE, exported, time.perf_counter() - started)
    return made.built


def _daily(build: Build, days: list[date]) -> DataFrame:
    interactions = build.with_snapshot(build.lake.read(build.spark, "interactions", days), days)
    asked = interactions.select(ITEM_COLUMN, F.col("items_ds").alias("ds")).distinct()
    items = build.read_snapshots(days).join(build.few(asked, "interactions", days), [ITEM_COLUMN, "ds"], "left_semi")
    return u2i_daily(interactions, items, build.config.dataset)


def _crosses(build: Build, days: list[date]) -> DataFrame:
    # The first day of the data has no closed day before it; its own events are there and reach nothing.
    reached = build.reach.over("u2i_crosses", days, "u2i_daily") or days[:1]
    daily, requests = (build.lake.read(build.spark, table, some) for table, some in (("u2i_daily", reached), ("requests", days)))
    return u2i_crosses(daily, requests, build.config.dataset.u2i.windows)


def main(call: Invocation) -> None:
    """Build the crosses of the days asked for, daily aggregates as far back as ``--events-from`` says, and the last day's arrays."""
    days = {"u2i_daily": event_days(call.options.events_from, call.days), "u2i_crosses": call.days}
    if call.options.arrays and _run_is_possible(call):
        days[cross_arrays.TABLE] = [call.date]
    with spark_session(call.config, "u2i_crosses") as spark:
        build(spark, call.config, Request.of(days, missing=call.options.missing))


def _run_is_possible(call: Invocation) -> bool:
    try:
        call.config.run_window(call.date)
    except ConfigError as error:
        log.warning("no cross arrays for %s, a run for that day is not possible: %s", call.date, error)
        return False
    return True


def options(parser: ArgumentParser) -> None:
    """Options of the job."""
    events_option(parser)
    parser.add_argument(
        "--arrays", action=BooleanOptionalAction, default=True, help="export the cross arrays of the last day (default), or leave them out"
    )


if __name__ == "__main__":
    sys.exit(run("u2i_crosses", main, ranges=True, options=options))
