"""Export of the cross arrays of a run date: what ``dig_models.crosses.CrossStore`` looks crosses of any pair up in.

They are made from the same daily aggregates as ``u2i_crosses`` and ``item_features``, hence agree with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dig_models.cross_files import CrossWriter
from dig_models.features import hash_id as hash_of
from jobs.build import Build
from jobs.config import OfferColumn
from jobs.hashing import hash_id
from jobs.lake import Lake

EPOCH = date(1970, 1, 1)
TABLE = "cross_arrays"
Ints = NDArray[np.int64]


def export(build: Build, day: date) -> None:
    """Write and commit ``cross_arrays`` of a day.

    Raises:
        ConfigError: no run is possible for the day.
        MissingPartition: a day that the arrays must hold is not in the lake.
    """
    dataset, lake, window = build.config.dataset, build.lake, build.config.run_window(day)
    days, spec = build.reach.of(TABLE, day), dataset.spec()
    events, popular, offered = days["u2i_daily"], days["item_daily"], days["offers"]
    inputs = build.reach.inputs(TABLE, day)
    with lake.stage_files(TABLE, day) as stage:
        writer = CrossWriter(stage.path, first_day=_day(events[0]), last_day=_day(day))
        rows = _events(writer, lake, spec.u2i_keys, dataset.u2i.shards, events)
        items = _popularity(writer, lake, spec.windows, popular, window.train_first, dataset.catalogue.min_events)
        _offers(writer, build, dataset.offers, offered, items)
        writer.close(spec, pop_first_day=_day(window.train_first) - 1, shards=dataset.u2i.shards)
        stage.commit(rows=rows, job=build.job, code=build.code, config=build.settings, inputs=inputs)


def _day(day: date) -> int:
    return (day - EPOCH).days


def _events(writer: CrossWriter, lake: Lake, keys: Sequence[str], shards: int, days: Sequence[date]) -> int:
    """The u2i arrays; returns the rows written."""
    table = lake.read_arrow("u2i_daily", days, ["key_name", "user_hash", "key", "ts", "events"])
    for key in keys:
        mine = table.filter(pc.equal(table.column("key_name"), key))
        user, value, ts, events = (mine.column(c).to_numpy() for c in ("user_hash", "key", "ts", "events"))
        shard = user % shards
        for at in range(shards):
            rows = np.flatnonzero(shard == at)
            writer.put_u2i(key, at, user[rows], value[rows], ts[rows], events[rows])
    return len(table)


def _popularity(
    writer: CrossWriter, lake: Lake, windows: Sequence[int], days: Sequence[date], train_first: date, min_events: int
) -> pa.Table:
    """The popularity arrays; returns the items they hold (``item_id``)."""
    table = lake.read_arrow("item_daily", days, ["item_id", "events", "ds"])
    totals = table.group_by("item_id").aggregate([("events", "sum")])
    totals = totals.filter(pc.greater_equal(totals.column("events_sum"), min_events))
    hashes = np.array([hash_of(i) for i in totals.column("item_id").to_pylist()], dtype=np.int64)
    order = np.argsort(hashes)
    ids, hashes = totals.column("item_id").take(pa.array(order)), hashes[order]
    item = pc.index_in(table.column("item_id"), value_set=ids.combine_chunks())
    known = pc.is_valid(item)
    names = pa.array([d.isoformat() for d in days])
    events_TN = np.zeros((len(days) + 1, len(hashes)))
    at = pc.index_in(table.column("ds"), value_set=names).filter(known).to_numpy() + 1
    np.add.at(events_TN, (at, item.filter(known).to_numpy()), table.column("events").filter(known).to_numpy())
    total_TN = events_TN.cumsum(axis=0)
    asked = np.arange(days.index(train_first) - 1, len(days)) + 1  # rows of total_TN: row i is the end of day i - 1
    pops = {w: (total_TN[asked] - total_TN[np.maximum(asked - w, 0)]).astype(np.float32) for w in windows}
    writer.put_pop(asked - 1 + _day(days[0]), hashes, pops)
    return pa.table({"item_id": ids})


def offer_code(column: OfferColumn) -> Column:
    """1-based position of an offer's value in the declared list; 0 if it is missing or not declared."""
    found = F.array_position(F.array(*(F.lit(v) for v in column.values)), F.col(f"`{column.source_column}`").cast("string"))
    return F.coalesce(found, F.lit(0)).cast("int").alias(f"code_{column.name}")


def _offers(writer: CrossWriter, build: Build, columns: Sequence[OfferColumn], days: Sequence[date], items: pa.Table) -> None:
    """The offer arrays: of each offer key what was offered on the day of its newest request, of the items in ``items``."""
    spark = build.spark
    offers = build.lake.read(spark, "offers", days)
    newest = build.lake.read(spark, "requests", days).groupBy("offer_key").agg(F.max("ds").alias("ds"))
    known = F.broadcast(spark.createDataFrame(items.to_pandas(), "item_id string"))
    codes = [offer_code(c) for c in columns]
    wanted: DataFrame = offers.join(known, "item_id", "left_semi").join(F.broadcast(newest), ["offer_key", "ds"])
    one = (
        wanted.select("offer_key", "item_id", *codes)
        .groupBy("offer_key", "item_id")
        .agg(F.lit(1).alias("one"), *(F.max(f"code_{c.name}").alias(f"code_{c.name}") for c in columns))
    )
    hashed = one.select(
        hash_id(F.col("offer_key")).alias("offer"), hash_id(F.col("item_id")).alias("item"), *(f"code_{c.name}" for c in columns)
    )
    table = hashed.toArrow()
    writer.put_offers(
        table.column("offer").to_numpy(),
        table.column("item").to_numpy(),
        {c.name: table.column(f"code_{c.name}").to_numpy().astype(np.int16) for c in columns},
    )
