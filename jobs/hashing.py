"""Spark expressions for ids, buckets and fields; equal to ``dig_models.features.hash_id`` and ``bucket_of``."""

from __future__ import annotations

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dig_models.features import FieldSpec
from jobs.config import SourceField
from jobs.entry import JobError

NOT_ALPHANUMERIC = r"[^\p{L}\p{N}]+"
SEPARATOR = r"\|"


def hash_id(value: Column) -> Column:
    """xxhash64 (seed 42) of the value as a string; null if it is missing, that is null or an empty string."""
    text = value.cast("string")
    return F.when(text != "", F.xxhash64(text))


def key_hash(value: Column) -> Column:
    """``hash_id``, 0 if missing: the value of a u2i key."""
    return F.coalesce(hash_id(value), F.lit(0).cast("bigint"))


def bucket(value: Column, buckets: int) -> Column:
    """Bucket in ``1..buckets-1`` (int); 0 if missing."""
    return F.coalesce(_bucket_of_hash(hash_id(value), buckets), F.lit(0))


def _bucket_of_hash(hashed: Column, buckets: int) -> Column:
    return (F.pmod(hashed, F.lit(max(buckets - 1, 1)).cast("bigint")) + 1).cast("int")


def tokens(value: Column, kind: str, spark_type: str) -> Column:
    """Distinct tokens of a ``multi`` (array, or ``|``-separated) or ``text`` value, in order of appearance; empty if missing."""
    if kind == "text":
        parts = F.split(F.lower(value.cast("string")), NOT_ALPHANUMERIC)
    elif spark_type.startswith("array"):
        parts = F.transform(value, lambda v: F.trim(v.cast("string")))
    else:
        parts = F.transform(F.split(value.cast("string"), SEPARATOR), lambda v: F.trim(v))
    kept = F.filter(parts, lambda v: v.isNotNull() & (v != ""))
    return F.coalesce(F.array_distinct(kept), F.array().cast("array<string>"))


def field(value: Column, spec: FieldSpec, spark_type: str) -> Column:
    """A declared field as ``item_features`` keeps it: bucket, array of buckets, or a number (null if missing or not finite)."""
    if spec.kind == "numeric":
        number = value.try_cast("double")
        return F.when(~F.isnan(number) & (F.abs(number) != float("inf")), number)
    if spec.kind == "categorical":
        return bucket(value, spec.buckets)
    found = F.transform(tokens(value, spec.kind, spark_type), lambda v: _bucket_of_hash(F.xxhash64(v), spec.buckets))
    return F.array_sort(F.array_distinct(found))


def user_buckets(frame: DataFrame, fields: Mapping[str, SourceField], table: str) -> list[Column]:
    """Bucket columns ``{name: field}`` of a user or a request.

    Raises:
        JobError: a column is not in the table, or the field is not categorical.
    """
    out = []
    for name, one in fields.items():
        if one.kind != "categorical":
            raise JobError(f"field {one.name}: kind {one.kind} found; fields of table {table} must be categorical, bucket the values first")
        require_columns(frame, [one.source_column], table)
        out.append(bucket(F.col(f"`{one.source_column}`"), one.buckets).alias(name))
    return out


def require_columns(frame: DataFrame, columns: list[str], table: str) -> None:
    """Hold a frame against the columns that the data set's settings name.

    Raises:
        JobError: a column is missing; the message lists those that are there.
    """
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise JobError(
            f"table {table}: column(s) {', '.join(missing)} are missing, found {', '.join(frame.columns)}; "
            "mend the column names in the data set's YAML or ingest the table anew"
        )


def local_seconds(ts: Column) -> Column:
    """Seconds since 1970-01-01 of the local clock, from a naive timestamp (the session's time zone is UTC)."""
    return F.unix_seconds(ts.cast("timestamp"))


def day_number(ds: Column) -> Column:
    """Days since 1970-01-01 of a ``ds`` string."""
    return F.unix_date(F.to_date(ds))
