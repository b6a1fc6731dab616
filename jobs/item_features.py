"""Daily aggregates of items, and the catalogue with its static features and popularity as of the end of each day.

A day costs what its windows cost, not what history costs: a range is one pass in which every daily aggregate enters and leaves
each window once.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import date

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from jobs.build import Build, event_days, events_option
from jobs.config import Config, DatasetConfig
from jobs.dates import days_between
from jobs.entry import Invocation, Request, run
from jobs.hashing import day_number, field, hash_id, key_hash, require_columns
from jobs.provenance import ITEM_FEATURES as CODE
from jobs.spark import spark_session

EPOCH = date(1970, 1, 1)


def item_daily(interactions: DataFrame) -> DataFrame:
    """``item_daily``: events, quantity and value of each item and day."""
    one = interactions.groupBy("item_id", "ds")
    # Rounded, because a sum of doubles depends on the order in which they arrive.
    return one.agg(
        F.count(F.lit(1)).alias("events"),
        F.round(F.sum("quantity"), 6).alias("quantity"),
        F.round(F.sum("value"), 6).alias("value"),
    ).select("item_id", "events", "quantity", "value", "ds")


def catalogue(daily: DataFrame, days: Sequence[date], dataset: DatasetConfig) -> DataFrame:
    """Items that can be recommended as of the end of each day, with the events of each window: ``item_id, ds, n_<w> …``.

    Args:
        daily: ``item_daily`` of all days that the windows reach.
        days: consecutive days.
        dataset: windows and the rules of the catalogue.
    """
    lengths = sorted({*dataset.u2i.windows, dataset.catalogue.window_days})
    first, last = ((d - EPOCH).days for d in (days[0], days[-1]))
    day = day_number(F.col("ds"))
    zero = F.lit(0).cast("bigint")
    # A daily aggregate enters every window on its day and leaves the one of w days after w days.
    enter = F.struct(
        F.greatest(day, F.lit(first)).alias("at"),
        *(F.when(day > first - w, F.col("events")).otherwise(zero).alias(f"n_{w}") for w in lengths),
    )
    leave = F.array(
        *(F.struct((day + w).alias("at"), *((-F.col("events") if v == w else zero).alias(f"n_{v}") for v in lengths)) for w in lengths)
    )
    steps = F.concat(F.array(enter), F.filter(leave, lambda s: (s["at"] > first) & (s["at"] <= last)))
    changes = daily.select("item_id", F.inline(steps)).groupBy("item_id", "at").agg(*(F.sum(f"n_{w}").alias(f"n_{w}") for w in lengths))
    by_item = Window.partitionBy("item_id").orderBy("at")
    state = changes.select(
        "item_id",
        "at",
        F.lead("at", 1, last + 1).over(by_item).alias("until"),
        *(F.sum(f"n_{w}").over(by_item).alias(f"n_{w}") for w in lengths),
    )
    events = f"n_{dataset.catalogue.window_days}"
    held = state.where(F.col(events) >= dataset.catalogue.min_events)
    dense = held.select("item_id", F.explode(F.sequence("at", F.col("until") - 1)).alias("at"), *(f"n_{w}" for w in lengths)).withColumn(
        "ds", F.date_from_unix_date("at").cast("string")
    )
    best = Window.partitionBy("ds").orderBy(F.desc(events), "item_id")
    kept = dense.withColumn("place", F.row_number().over(best)).where(F.col("place") <= dataset.catalogue.max_items)
    return kept.select("item_id", "ds", *(f"n_{w}" for w in lengths))


def item_features(shown: DataFrame, items: DataFrame, dataset: DatasetConfig) -> DataFrame:
    """``item_features`` of a catalogue; items without a row in ``items`` have missing fields and their id as name.

    Args:
        shown: see ``catalogue``, with the column ``items_ds``, the snapshot that stands for the day.
        items: the snapshots.
        dataset: fields and keys.

    Raises:
        JobError: a column that the settings name is not in ``items``.
    """
    require_columns(items, [f.source_column for f in dataset.item_fields] + [k.column for k in dataset.u2i.keys], "items")
    types = dict(items.dtypes)
    fields = [field(_column(f.source_column), f.spec(), types[f.source_column]).alias(f.spec().column) for f in dataset.item_fields]
    keys = [key_hash(_column(k.column)).alias(f"k_{k.name}") for k in dataset.u2i.keys]
    named = F.coalesce(F.col("name"), F.col("item_id")) if "name" in items.columns else F.col("item_id")
    return shown.join(items.withColumnRenamed("ds", "items_ds"), ["item_id", "items_ds"], "left").select(
        "item_id",
        hash_id(F.col("item_id")).alias("item_hash"),
        named.alias("name"),
        *fields,
        *keys,
        *(F.col(f"n_{w}").cast("double").alias(f"pop_{w}") for w in dataset.u2i.windows),
        "ds",
    )


def _column(name: str) -> Column:
    return F.col(f"`{name}`")


def build(spark: SparkSession, config: Config, request: Request) -> dict[str, list[date]]:
    """Build ``item_daily`` and ``item_features`` of the days asked for.

    Returns:
        The days that were built, by table.
    """
    made = Build(config, spark, "item_features", CODE, steps=2, request=request)
    events = made.to_do("item_daily")
    made.publish("item_daily", events, lambda: item_daily(made.lake.read(spark, "interactions", events)), sort=["item_id"])
    days = made.to_do("item_features")
    made.publish("item_features", days, lambda: _features(made, days), sort=["item_hash"], gate=True)
    return made.built


def _features(build: Build, days: list[date]) -> DataFrame:
    dataset, reached = build.config.dataset, build.reach.over("item_features", days, "item_daily")
    daily = build.lake.read(build.spark, "item_daily", reached)
    often = daily.groupBy("item_id").agg(F.sum("events").alias("n")).where(F.col("n") >= dataset.catalogue.min_events)
    candidates = build.few(often.select("item_id"), "item_daily", reached)
    # Between the days asked for may lie others, whose windows are not all there: the snapshots of just the days drop them.
    span = days_between(days[0], days[-1])
    shown = build.with_snapshot(catalogue(daily.join(candidates, "item_id", "left_semi"), span, dataset), days)
    return item_features(shown, build.read_snapshots(days).join(candidates, "item_id", "left_semi"), dataset)


def main(call: Invocation) -> None:
    """Build the catalogue of the days asked for and daily aggregates as far back as ``--events-from`` says."""
    days = {"item_daily": event_days(call.options.events_from, call.days), "item_features": call.days}
    with spark_session(call.config, "item_features") as spark:
        build(spark, call.config, Request.of(days, missing=call.options.missing))


def options(parser: ArgumentParser) -> None:
    """Options of the job."""
    events_option(parser)


if __name__ == "__main__":
    sys.exit(run("item_features", main, ranges=True, options=options))
