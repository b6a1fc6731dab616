"""What the buckets of item fields stand for, in words, as far as the lake knows."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import date

import pyarrow as pa

from dig_models.features import bucket_of
from jobs.config import Config
from jobs.lake import Lake

log = logging.getLogger(__name__)


def field_values(config: Config, fields: Iterable[str], until: date) -> dict[str, dict[int, str]]:
    """Values of categorical item fields by bucket, of the newest items snapshot up to a day; values that share a bucket are joined.

    A lake that is elsewhere, has no snapshot, or lacks the column gives no words for a field: whoever shows buckets shows them bare.
    """
    place, sources = config.paths.at("lake"), {field.name: field for field in config.dataset.item_fields}
    if "://" in place:
        return {}
    lake = Lake(place)
    days = [day for day in lake.days("items") if day <= until]
    if not days:
        log.info("%s: no items snapshot up to %s: buckets are shown without their values", place, until)
        return {}
    table = lake.read_arrow("items", days[-1:])
    known = [sources[name] for name in fields if name in sources and sources[name].source_column in table.column_names]
    return {field.name: _by_bucket(table.column(field.source_column), field.buckets) for field in known}


def _by_bucket(column: pa.ChunkedArray, buckets: int) -> dict[int, str]:
    values: dict[int, list[str]] = {}
    for value in sorted(str(v) for v in column.unique().to_pylist() if v is not None):
        values.setdefault(bucket_of(value, buckets), []).append(value)
    return {bucket: " / ".join(some) for bucket, some in values.items() if bucket}
