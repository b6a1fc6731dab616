"""The request side: profile, context and history of a request, and of every user as of the end of a day (``user_state``)."""

from __future__ import annotations

from datetime import date

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dig_models.features import SECONDS_PER_DAY
from jobs.build import Build
from jobs.config import DatasetConfig, HistoryConfig
from jobs.hashing import hash_id, key_hash, user_buckets

EPOCH = date(1970, 1, 1)


def histories(daily: DataFrame) -> DataFrame:
    """All item events of each user, newest first: ``user_hash, events array<struct<age_key: -ts, item>>``."""
    items = daily.where(F.col("key_name") == "item")
    one = F.struct((-F.col("ts")).alias("minus_ts"), F.col("key").alias("item"))
    return items.groupBy("user_hash").agg(F.sort_array(F.collect_list(one)).alias("events"))


def history_before(events: Column, ts: Column, history: HistoryConfig) -> Column:
    """The newest events strictly before ``ts``, of the days that the history reaches back from the start of its day."""
    start = F.floor(ts / SECONDS_PER_DAY) * SECONDS_PER_DAY - history.days * SECONDS_PER_DAY
    inside = F.filter(events, lambda e: (-e["minus_ts"] < ts) & (-e["minus_ts"] >= start))
    return F.coalesce(F.slice(inside, 1, history.length), F.array().cast("array<struct<minus_ts:bigint,item:bigint>>"))


def request_side(requests: DataFrame, users: DataFrame, daily: DataFrame, dataset: DatasetConfig) -> DataFrame:
    """Request-level columns of ``examples``; an unknown user has missing fields and an empty history.

    Args:
        requests: with user_hash and ts in seconds.
        users: snapshots of the days of the requests.
        daily: ``u2i_daily`` of the days that the history reaches.
        dataset: fields and history.
    """
    profile = user_buckets(users, {f"u_{f.name}": f for f in dataset.user_fields}, "users")
    context = user_buckets(requests, {f"c_{f.name}": f for f in dataset.context_fields}, "requests")
    known = users.select("user_id", "ds", *profile).dropDuplicates(["user_id", "ds"])
    joined = (
        requests.select("request_id", "user_id", "user_hash", "ts", "offer_key", *context, "ds")
        .join(known, ["user_id", "ds"], "left")
        .join(histories(daily), "user_hash", "left")
        .withColumn("history", history_before(F.col("events"), F.col("ts"), dataset.history))
    )
    return joined.select(
        "request_id",
        "user_id",
        "user_hash",
        "ts",
        F.coalesce("offer_key", F.lit("")).alias("offer_key"),
        key_hash(F.col("offer_key")).alias("offer_hash"),
        *(F.coalesce(f"u_{f.name}", F.lit(0)).alias(f"u_{f.name}") for f in dataset.user_fields),
        *(f"c_{f.name}" for f in dataset.context_fields),
        F.col("history.item").alias("hist_item"),
        F.transform("history", lambda e: -e["minus_ts"]).alias("hist_ts"),
        "ds",
    )


def user_state(build: Build, day: date) -> DataFrame:
    """``user_state`` of a day: users with an event in the history window, as of the end of the day.

    Context is that of the user's newest request, ``request_id`` its id; so is the offer key, if something is on offer under it on the day:
    what was promoted weeks ago must not count as promoted now.
    """
    spark, lake, dataset = build.spark, build.lake, build.config.dataset
    reached = build.reach.of("user_state", day)["u2i_daily"]
    daily = lake.read(spark, "u2i_daily", reached)
    active = daily.select("user_id").distinct()
    requests = lake.read(spark, "requests", reached).join(active, "user_id", "left_semi")
    newest = requests.groupBy("user_id").agg(
        F.max_by(F.struct(*(f"`{c}`" for c in requests.columns)), F.struct("ts", "request_id")).alias("r")
    )
    on_offer = lake.read(spark, "offers", [day]).select(F.col("offer_key").alias("valid_key")).distinct()
    end = ((day - EPOCH).days + 1) * SECONDS_PER_DAY
    asked = (
        newest.select("r.*")
        .join(F.broadcast(on_offer), F.col("offer_key") == F.col("valid_key"), "left")
        .withColumn("offer_key", F.col("valid_key"))
        .drop("valid_key")
        .withColumn("user_hash", hash_id(F.col("user_id")))
        .withColumn("ts", F.lit(end).cast("bigint"))
        .withColumn("ds", F.lit(day.isoformat()))
    )
    return request_side(asked, lake.read(spark, "users", [day]), daily, dataset)
