"""Rows of ``item_features`` for a few items, without Spark: the same buckets, keys and names as ``jobs.item_features`` gives them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dig_models.features import FieldSpec, bucket_of, hash_id
from jobs.config import DatasetConfig
from jobs.entry import JobError


def item_rows(items: pa.Table, dataset: DatasetConfig) -> pa.Table:
    """``item_id, item_hash, name``, fields and keys of rows of ``items``.

    Args:
        items: rows of an items snapshot, each item once.
        dataset: fields and keys.

    Raises:
        JobError: a column that the settings name is missing, or is of a type whose text Spark writes in a way of its own.
    """
    ids = items.column("item_id").cast(pa.string())
    names = pc.coalesce(items.column("name").cast(pa.string()), ids) if "name" in items.column_names else ids
    columns: dict[str, Any] = {"item_id": ids, "item_hash": pa.array([hash_id(i) for i in ids.to_pylist()], pa.int64()), "name": names}
    for field in dataset.item_fields:
        columns[field.spec().column] = field_values(_column(items, field.source_column), field.spec())
    columns |= {column: pa.array([0.0] * len(items), pa.float64()) for column in dataset.popularity_columns}  # nobody bought it yet
    for key in dataset.u2i.keys:
        texts = _texts(_column(items, key.column), key.column).to_pylist()
        columns[f"k_{key.name}"] = pa.array([hash_id(text) if text else 0 for text in texts], pa.int64())
    return pa.table(columns)


def field_values(column: pa.ChunkedArray, spec: FieldSpec) -> pa.Array:
    """A declared field: bucket, sorted buckets, or a number (null if missing or not finite)."""
    if spec.kind == "numeric":
        return pa.array([_number(value) for value in column.to_pylist()], pa.float64())
    if spec.kind == "categorical":
        return pa.array([bucket_of(text, spec.buckets) for text in _texts(column, spec.name).to_pylist()], pa.int32())
    if spec.kind == "multi" and pa.types.is_list(column.type):
        parts = [_trimmed(value or []) for value in column.to_pylist()]
    elif spec.kind == "multi":
        parts = [_trimmed((text or "").split("|")) for text in _texts(column, spec.name).to_pylist()]
    else:
        parts = [words(text or "") for text in _texts(column, spec.name).to_pylist()]
    return pa.array([sorted({bucket_of(part, spec.buckets) for part in some}) for some in parts], pa.list_(pa.int32()))


def words(text: str) -> list[str]:
    """Runs of letters and numbers of the lower-cased text."""
    return "".join(c if unicodedata.category(c)[0] in "LN" else " " for c in text.lower()).split()


def _trimmed(parts: Iterable[Any]) -> list[str]:
    stripped = (str(part).strip(" ") for part in parts if part is not None)
    return [part for part in stripped if part]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _column(items: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in items.column_names:
        raise JobError(
            f"table items: column {name} is missing, found {', '.join(items.column_names)}; mend the column names in the data set's YAML "
            "or ingest the table anew"
        )
    return items.column(name)


def _texts(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    types = pa.types
    known: Sequence[Any] = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean, types.is_date32, types.is_null)
    if not any(is_type(column.type) for is_type in known):
        raise JobError(
            f"table items: column {name} has type {column.type}, whose text differs from system to system; make it a string or a whole "
            "number where the source is read (columns: in the data set's YAML), or leave new items to the next daily index"
        )
    return column.cast(pa.string())
