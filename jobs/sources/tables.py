"""Any Parquet or CSV tables, described by a data-set YAML alone.

Rules of this source:

- A column that ``columns`` does not name is taken from the raw column of the same name, if there is one.
- Every event belongs to a local day ``ds``: the column mapped to ``ds``, else the day in the path (``…/{ds}/…``), else the day
  of ``ts``. In the first two cases a ``ts`` outside that day survives, for the gate. A row without a day counts to the first day
  asked for, so that its null is seen and never lost.
- Rows of the same request and item are one interaction: quantities and values are summed, the time is the earliest.
- A request shows the user, the context and the time of its earliest row; one that crosses midnight is cut there.
- With a ``label`` column every row is an exposure of its request, label > 0 a positive as well; repeated exposures of an
  item in a request that agree in their offer columns are one. Rows of an ``offers`` table are kept as they are.
- A snapshot table without days (items, users) stands for every day. Without such a table, a day knows what was seen by its end, for
  which the interactions must not lie in a file a day.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Literal

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import DatasetConfig, TableConfig, TablesSource
from jobs.sources.base import RawDataError, Source, day_frame, fingerprint, local_files, parquet_schema
from jobs.sources.packages import location

CSV_OPTIONS = {"header": "true", "mode": "FAILFAST", "enforceSchema": "false"}
TEXT = ("string", "bigint", "int", "smallint", "tinyint", "boolean")
NUMBER = ("bigint", "int", "smallint", "tinyint", "double", "float", "decimal", "boolean", "string")
TIME = ("timestamp", "timestamp_ntz", "date", "string")
Kind = Literal["text", "number", "time", "any"]
RAW_OF = {
    "interactions": ("interactions",),
    "requests": ("interactions",),
    "offers": ("interactions", "offers"),
    "items": ("interactions", "items"),
    "users": ("interactions", "users"),
}


class Tables(Source):
    """The five lake tables from raw Parquet or CSV tables."""

    def __init__(self, dataset: DatasetConfig) -> None:
        super().__init__(dataset)
        if not isinstance(dataset.source, TablesSource):
            raise ValueError(f"data set {dataset.name}: source.kind is {dataset.source.kind}, expected tables")
        self.source = dataset.source
        self._digests: dict[str, str] = {}

    def _table(self, name: str) -> TableConfig | None:
        found: TableConfig | None = getattr(self.source, name)
        return found

    @cached_property
    def item_columns(self) -> dict[str, Kind]:
        """Columns of the lake's items and what each must be."""
        kinds: dict[str, Kind] = dict.fromkeys(self.dataset.item_name, "text")
        kinds |= {key.column: "text" for key in self.dataset.u2i.keys}
        kinds |= {f.source_column: _field_kind(f.kind) for f in self.dataset.item_fields}
        return {name: kind for name, kind in kinds.items() if name != "item_id"}

    @cached_property
    def user_columns(self) -> dict[str, Kind]:
        """Columns of the lake's users and what each must be."""
        return {f.source_column: _field_kind(f.kind) for f in self.dataset.user_fields if f.source_column != "user_id"}

    def inputs(self, table: str, day: date) -> dict[str, dict[str, str]]:
        """See ``Source.inputs``; a table whose path holds ``{ds}`` is fingerprinted by day."""
        found = {}
        for name in RAW_OF[table]:
            raw = self._table(name)
            if raw is not None:
                path = location(name, raw).replace("{ds}", day.isoformat())
                if path not in self._digests:
                    self._digests[path] = fingerprint(local_files(name, path))
                found[f"raw.{name}"] = {day.isoformat() if "{ds}" in raw.path else "all": self._digests[path]}
        return found

    def check(self, spark: SparkSession, days: Sequence[date]) -> None:
        """Files, columns, types, and that numbers and labels can be read as such."""
        for name in ("items", "users"):
            if self._table(name) is None and "{ds}" in self.source.interactions.path:
                raise RawDataError(
                    f"dataset.source.{name} is not given and interactions lie in a file a day: what was seen by the end of a day "
                    f"would depend on which days are read; give a table of {name} (its id column is enough)"
                )
        for name, columns in (("items", self.item_columns), ("users", self.user_columns), ("offers", self._offer_columns)):
            if self._table(name) is not None:
                key = {"items": "item_id", "users": "user_id", "offers": "offer_key"}[name]
                self._select(name, self._raw(spark, name, days), {key: "text", **columns})
            elif columns and name != "offers":
                raise RawDataError(f"dataset.source.{name} is not given, but fields use its columns {', '.join(columns)}")
        self._check_numbers(spark, days)

    def _check_numbers(self, spark: SparkSession, days: Sequence[date]) -> None:
        raw, columns = self._raw(spark, "interactions", days), self._expressions("interactions")
        events = self._events(spark, days)
        del events  # building it has checked the columns and their types
        for name in ("label", "quantity", "value"):
            text = self._expression(raw, columns, name)
            if text is None:
                continue
            unread = F.expr(text).isNotNull() & F.expr(text).try_cast("double").isNull()
            bad = unread | F.expr(text).isNull() if name == "label" else unread
            count, example = raw.agg(F.count(F.when(bad, 1)), F.first(F.when(unread, F.expr(text).cast("string")), True)).collect()[0]
            if count:
                raise RawDataError(
                    f"raw table interactions: column {name} ({text}): {count} rows hold no number"
                    f"{f', for example {example!r}' if example is not None else ' but null'}; expected a number in every row"
                )

    @property
    def _offer_columns(self) -> dict[str, Kind]:
        return {"item_id": "text", **{o.source_column: "text" for o in self.dataset.offers}}

    def _raw(self, spark: SparkSession, name: str, days: Sequence[date]) -> DataFrame:
        """A raw table after its ``where``; a column ``_day`` holds the day in the path, if there is one."""
        table = self._table(name)
        if table is None:
            raise ValueError(f"data set {self.dataset.name}: no raw table {name}")
        daily = "{ds}" in table.path
        path = location(name, table)
        paths = [path.replace("{ds}", day.isoformat()) for day in days] if daily else [path]
        files = [file for path in paths for file in local_files(name, path)]
        if table.format == "parquet":
            schema = parquet_schema(name, files)
            frame = spark.read.options(**table.options).parquet(*paths)
            nanos = [f.name for f in schema if str(f.type).startswith("timestamp[ns")]
            for column in (c for c, kind in frame.dtypes if c in nanos and kind == "bigint"):
                frame = frame.withColumn(column, F.expr(f"timestamp_micros(`{column}` div 1000)"))
        else:
            frame = spark.read.options(**{**CSV_OPTIONS, **table.options}).csv(paths)
        if daily:
            frame = frame.withColumn("_day", F.regexp_extract(F.col("_metadata.file_path"), _day_pattern(table.path), 1))
        if table.where:
            frame = self._resolved(name, "where", table.where, frame, lambda: frame.where(table.where))
        return frame

    def _resolved(self, name: str, column: str, text: str, raw: DataFrame, make: object) -> DataFrame:
        try:
            made: DataFrame = make()  # type: ignore[operator]
            return made
        except AnalysisException as error:
            raise RawDataError(
                f"raw table {name}: {column}: cannot make it from {text!r}: {str(error).splitlines()[0]}; "
                f"raw columns found: {', '.join(raw.columns)}"
            ) from None

    def _expressions(self, name: str) -> Mapping[str, str]:
        table = self._table(name)
        return table.columns if table is not None else {}

    @staticmethod
    def _expression(raw: DataFrame, columns: Mapping[str, str], name: str) -> str | None:
        """SQL of one of our columns: as mapped, else the raw column of that name, else none."""
        return columns.get(name) or (f"`{name}`" if name in raw.columns else None)

    def _select(self, name: str, raw: DataFrame, wanted: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None) -> DataFrame:
        """Our columns of a raw table, types checked; ``wanted`` ones must be there, ``optional`` ones may be."""
        columns, chosen = self._expressions(name), []
        for ours, kind in {**wanted, **(optional or {})}.items():
            text = self._expression(raw, columns, ours)
            if text is None and ours in wanted:
                raise RawDataError(
                    f"raw table {name}: column {ours} is missing; expected dataset.source.{name}.columns.{ours}, or a raw column of that "
                    f"name; raw columns found: {', '.join(raw.columns)}"
                )
            if text is not None:
                one = self._resolved(name, ours, text, raw, lambda text=text: raw.select(F.expr(text).alias("c")))
                chosen.append(self._typed(name, ours, text, kind, one.dtypes[0][1]).alias(ours))
        return raw.select(*chosen, *(["_day"] if "_day" in raw.columns else []))

    def _typed(self, name: str, ours: str, text: str, kind: Kind, found: str) -> Column:
        base, value = found.partition("(")[0], F.expr(text)
        time_kinds = TIME if self.source.time_unit == "timestamp" else NUMBER
        allowed = {"text": TEXT, "number": NUMBER, "time": time_kinds, "any": ()}[kind]
        if allowed and base not in allowed:
            raise RawDataError(f"raw table {name}: column {ours} ({text}) has type {found}, expected one of {', '.join(allowed)}")
        if kind == "text":
            return value.cast("string")
        if kind == "number":
            return value.try_cast("double")
        return self._local(value) if kind == "time" else value

    def _local(self, value: Column) -> Column:
        """Raw time to local wall clock; null where it cannot be read."""
        if self.source.time_unit == "timestamp":
            moment = value.try_cast("timestamp")
        else:
            scale = 1_000_000 if self.source.time_unit == "seconds" else 1_000
            moment = F.timestamp_micros((value.try_cast("decimal(20,6)") * scale).cast("long"))
        return moment + F.expr(f"INTERVAL {round(self.source.utc_offset_hours * 3600)} SECONDS")

    def _all_events(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """Every row of the interactions table under our names, sampled, with its day (null if it has none)."""
        raw = self._raw(spark, "interactions", days)
        wanted: dict[str, Kind] = {"user_id": "text", "item_id": "text", "ts": "time"}
        wanted |= {f.source_column: "any" if f.kind == "multi" else _field_kind(f.kind) for f in self.dataset.context_fields}
        optional: dict[str, Kind] = {"label": "number", "quantity": "number", "value": "number", "ds": "text"}
        if self.source.request == "column":
            wanted["request_id"] = "text"
        if self._is_log(raw):
            wanted |= {o.source_column: "text" for o in self.dataset.offers}
        else:
            optional["offer_key"] = "text"
        rows = self._select("interactions", raw, wanted, optional)
        if "ds" not in rows.columns:
            rows = rows.withColumn("ds", F.col("_day") if "_day" in rows.columns else F.to_date("ts").cast("string"))
        return rows.drop("_day").where(self.sampled(F.col("user_id")))

    def _is_log(self, raw: DataFrame) -> bool:
        """Whether the interactions are an impression log."""
        return self._expression(raw, self._expressions("interactions"), "label") is not None

    def _events(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """Events of the days with request_id, offer_key, quantity and value filled in."""
        rows = self._all_events(spark, days).withColumn("ds", F.coalesce("ds", F.lit(days[0].isoformat())))
        rows = rows.where(F.col("ds").isin(*(day.isoformat() for day in days)))
        if self.source.request == "user_day":
            rows = rows.withColumn("request_id", F.concat("user_id", F.lit("|"), "ds"))
        elif self.source.request == "event":
            rows = rows.withColumn("request_id", F.concat("user_id", F.lit("|"), "item_id", F.lit("|"), F.unix_micros("ts")))
        defaults = {"quantity": F.lit(1.0), "value": F.lit(0.0), "offer_key": F.lit(None).cast("string")}
        for name, default in defaults.items():
            if name not in rows.columns:
                rows = rows.withColumn(name, default)
        return rows.withColumn("offer_key", F.col("request_id")) if "label" in rows.columns else rows

    def interactions(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """See ``Source.interactions``."""
        rows = self._events(spark, days)
        rows = rows.where("label > 0") if "label" in rows.columns else rows
        # Rounded, because a sum of doubles depends on the order in which they arrive.
        sums = [F.round(F.sum(c), 6).alias(c) for c in ("quantity", "value")]
        found = rows.groupBy("request_id", "user_id", "item_id", "ds").agg(F.min("ts").alias("ts"), *sums)
        return found.select("request_id", "user_id", "item_id", "ts", "quantity", "value", "ds")

    def requests(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """See ``Source.requests``."""
        shown = ["offer_key", *dict.fromkeys(f.source_column for f in self.dataset.context_fields)]
        rows = self._events(spark, days).groupBy("request_id", "user_id", "ds").agg(F.min(F.struct("ts", *shown)).alias("first"))
        return rows.select("request_id", "user_id", "first.ts", *(f"first.{c}" for c in shown), "ds")

    def offers(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """See ``Source.offers``; empty if the data set knows no exposures, then every positive is organic."""
        events = self._events(spark, days)
        columns = [o.source_column for o in self.dataset.offers]
        if self._table("offers") is None:
            if "label" in events.columns:
                return events.select("offer_key", "item_id", *columns, "ds").distinct()
            empty = ", ".join(f"{c} string" for c in ("offer_key", "item_id", *columns, "ds"))
            return spark.createDataFrame([], empty)
        raw = self._raw(spark, "offers", days)
        rows = self._select("offers", raw, {"offer_key": "text", **self._offer_columns}, {"ds": "text"})
        if "_day" in rows.columns:
            rows = rows.withColumnRenamed("_day", "ds") if "ds" not in rows.columns else rows.drop("_day")
        asked = F.broadcast(events.select("offer_key", "ds").distinct())
        on = ["offer_key", "ds"] if "ds" in rows.columns else ["offer_key"]
        return rows.join(asked, on).select("offer_key", "item_id", *columns, "ds")

    def items(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """See ``Source.items``."""
        rows = self._snapshot(spark, "items", "item_id", self.item_columns, days)
        return rows.withColumn("name", self.display_name()).select("item_id", *self.item_columns, "name", "ds")

    def users(self, spark: SparkSession, days: Sequence[date]) -> DataFrame:
        """See ``Source.users``."""
        rows = self._snapshot(spark, "users", "user_id", self.user_columns, days)
        return rows.where(self.sampled(F.col("user_id"))).select("user_id", *self.user_columns, "ds")

    def _snapshot(self, spark: SparkSession, name: str, key: str, columns: Mapping[str, Kind], days: Sequence[date]) -> DataFrame:
        """One row per key and day: the table's own days, or the table for every day, or the keys seen by the end of each day."""
        if self._table(name) is None:
            seen = self._all_events(spark, days).where(F.col(key).isNotNull()).groupBy(key).agg(F.min("ds").alias("first_ds"))
            return seen.join(day_frame(spark, days), F.col("first_ds") <= F.col("ds")).select(key, "ds")
        rows = self._select(name, self._raw(spark, name, days), {key: "text", **columns}, {"ds": "text"})
        if "ds" in rows.columns or "_day" in rows.columns:
            rows = rows.withColumn("ds", F.col("ds" if "ds" in rows.columns else "_day"))
            return rows.where(F.col("ds").isin(*(day.isoformat() for day in days)))
        return rows.crossJoin(day_frame(spark, days))


def _field_kind(kind: str) -> Kind:
    return {"numeric": "number", "multi": "any"}.get(kind, "text")  # type: ignore[return-value]


def _day_pattern(path: str) -> str:
    """Regular expression that finds the day in a file's path: the part of the path between slashes that holds ``{ds}``."""
    part = next(p for p in path.split("/") if "{ds}" in p)
    return re.escape(part).replace(r"\{ds\}", r"(\d{4}-\d{2}-\d{2})").replace(r"\*", "[^/]*")
